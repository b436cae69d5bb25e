"""`alphaplus audit list | verify | head`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.orm import Session

from db import audit as log
from db.session import transaction
from ml.errors import AuditChainBroken, InputRejected
from runtime.settings import load_settings
from worker.database import command_engine
from worker.tables import console, table

__all__ = ["audit"]

ROWS_WITH_A_BAR = 20_000
"""About a second's."""
HEAD = re.compile(r"(\d+):([0-9a-f]{64})")
HEAD_LIMIT = "ID:HASH, or a file that `alphaplus audit head` wrote"

as_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
subject_option = click.option("--subject", help="As BTCUSDT, 'BTCUSDT 1h' or 'BTCUSDT 1h trending'.")
action_option = click.option("--action", help="As promote, force, rollback, reject, freeze, key_add.")
limit_option = click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True)


@click.group(invoke_without_command=True)
@subject_option
@action_option
@limit_option
@as_json_option
@click.pass_context
def audit(context: click.Context, subject: str | None, action: str | None, limit: int, as_json: bool) -> None:
    """Who changed what and why, newest first; `verify` finds what was changed by hand."""
    if context.invoked_subcommand is None:
        _list(subject, action, limit, as_json)
        return
    given = [
        option
        for option, name in (
            ("--subject", "subject"),
            ("--action", "action"),
            ("--limit", "limit"),
            ("--json", "as_json"),
        )
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if given:
        named, command = ", ".join(given), context.invoked_subcommand
        raise click.UsageError(f"give {named} after {command}: `alphaplus audit {command} {given[0]} …`")


@audit.command("list")
@subject_option
@action_option
@limit_option
@as_json_option
def list_(subject: str | None, action: str | None, limit: int, as_json: bool) -> None:
    """Rows of the audit log, newest first."""
    _list(subject, action, limit, as_json)


@audit.command()
@click.option("--head", "expected", metavar="FILE|ID:HASH", help="Exported earlier: it must be in the chain.")
@as_json_option
def verify(expected: str | None, as_json: bool) -> None:
    """Walk the whole log and find any change made by hand, down to the row. Exit code 3 where there is one.

    Rows cut off the end, or all of them, are found by a head that was exported earlier, or by a champion
    (its version, its bytes) or a frozen key that the log does not know. A log that was made anew to its end
    is found by the head, and by the rows' signatures where ALPHAPLUS_AUDIT_HMAC_KEY is set: then a log
    without a signed row is a break, too. If the key was set only now, make the next change first, or verify
    without the key.
    """
    settings = load_settings()
    head = None if expected is None else parse_head(expected)
    key = settings.audit_key
    with command_engine(settings) as engine, transaction(engine) as session:
        # One moment of the database: a promotion meanwhile is in both the log and the registry, or in none.
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        with _progress(log.head(session).id) as on_row:
            verified, broken = log.examine(session, key, expected=head, on_row=on_row)
        contradictions = log.contradictions(session)
    if as_json:
        report = {
            "ok": broken is None and not contradictions,
            **asdict(verified),
            "broken": None if broken is None else broken.as_json(),
            "contradictions": contradictions,
        }
        click.echo(json.dumps(report, indent=2))
    if broken is not None or contradictions:
        if not as_json and broken is not None and broken.holds is not None:
            console().print(_row_table(broken.holds))
        problems = [*([] if broken is None else [str(broken)]), *contradictions]
        raise AuditChainBroken("\n".join([*problems, "Compare with a backup; nothing was mended."]))
    if not as_json:
        _print_verified(verified, head)


@audit.command("head")
@as_json_option
def head_(as_json: bool) -> None:
    """The newest row's id and hash: keep it elsewhere, and give it to `verify --head` later."""
    with command_engine(load_settings()) as engine, transaction(engine) as session:
        found = log.head(session)
    click.echo(json.dumps(asdict(found)) if as_json else f"{found.id}:{found.hash}")


def parse_head(text: str) -> log.Head:
    """``17:ab34…``, or a file that holds that or the same as JSON.

    Raises:
        InputRejected: it is neither.
    """
    if HEAD.fullmatch(text) is None:
        try:
            text = Path(text).read_text().strip()
            if text.startswith("{"):
                text = "{id}:{hash}".format_map(json.loads(text))
        except (OSError, ValueError, LookupError) as error:
            raise InputRejected("head", text, HEAD_LIMIT) from error
    match = HEAD.fullmatch(text)
    if match is None:
        raise InputRejected("head", text, HEAD_LIMIT)
    return log.Head(int(match[1]), match[2])


@contextmanager
def _progress(rows: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr for a long chain; nothing where stderr is no terminal."""
    out = console(stderr=True)
    if not out.is_terminal or rows < ROWS_WITH_A_BAR:
        yield None
        return
    columns = TextColumn("verifying"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=out, transient=True) as progress:
        bar = progress.add_task("", total=rows)

        def on_row(walked: int) -> None:
            if walked % 1000 == 0:
                progress.update(bar, completed=walked)

        yield on_row


def _list(subject: str | None, action: str | None, limit: int, as_json: bool) -> None:
    with command_engine(load_settings()) as engine, transaction(engine) as session:
        rows = _rows(session, subject, action, limit)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(
            "No such rows." if subject or action else "The audit log is empty: nothing was decided yet."
        )
        return
    made = table(">Row", "At (UTC)", "Action", "Subject", "Why")
    for row in rows:
        made.add_row(
            str(row["id"]), row["at"][:16].replace("T", " "), row["action"], row["subject"], _why(row)
        )
    console().print(made)


def _rows(session: Session, subject: str | None, action: str | None, limit: int) -> list[dict[str, Any]]:
    return [log.entry_json(row) for row in log.recent(session, limit, subject=subject, action=action)]


def _why(row: dict[str, Any]) -> str:
    """``v3 for v2: two weeks of shadow look good (cli:ada)``."""
    version, replaced = row["details"].get("version"), row["details"].get("replaces_version")
    what = "" if version is None else f"v{version}{f' for v{replaced}' if replaced else ''}: "
    return f"{what}{row['why']} ({row['actor']})"


def _row_table(row: dict[str, Any]) -> Table:
    """What one row holds, a line a column."""
    made = table("Column", "Why")
    made.columns[1].header = "What the row holds now"
    for name, value in row.items():
        made.add_row(name, value if isinstance(value, str) else json.dumps(value))
    return made


def _print_verified(verified: log.Verified, head: log.Head | None) -> None:
    rows = "1 row is" if verified.rows == 1 else f"{verified.rows:,} rows are"
    click.echo(f"{rows} in order; every champion and every frozen key is as they say.")
    if verified.signed:
        click.echo(f"Signatures checked: {verified.signed:,}, from row {verified.signed_from} on.")
    if verified.unchecked:
        click.echo(f"Signed rows not checked: {verified.unchecked:,}; ALPHAPLUS_AUDIT_HMAC_KEY is not set.")
    if head is not None:
        click.echo(f"The head exported at row {head.id} is in it.")
    click.echo(f"Head: {verified.head.id}:{verified.head.hash}")
