"""`alphaplus promote` and `alphaplus rollback`: which version answers for a key, by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import click

from ml.errors import BrokerUnavailable, InputRejected, ServersMissing
from ml.keys import ModelKey
from runtime.settings import Settings, load_settings
from worker.actor import check_reason, cli_actor
from worker.clock import make_clock

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.registry import ModelRow

__all__ = ["promote", "rollback"]

interval_option = click.option("--interval", help="Of the candles.  [default: the default interval]")
as_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of champion, committed."""

    key: str
    action: Literal["promote", "force", "rollback"]
    from_version: int | None
    to_version: int
    model_id: int
    audit_id: int
    actor: str
    reason: str
    frozen: str | None
    """Why the key is frozen, and by whom; None where it is not."""
    warnings: tuple[str, ...]
    """What the new champion will not do."""


@click.command()
@click.argument("symbol")
@click.argument("regime")
@click.option("--version", type=click.IntRange(1), required=True, help="`alphaplus models` lists them.")
@click.option("--force", is_flag=True, help="Whatever its state, and whatever the gates said.")
@click.option("--reason", required=True, help="Kept in the audit log.")
@interval_option
@as_json_option
def promote(
    *, symbol: str, regime: str, version: int, force: bool, reason: str, interval: str | None, as_json: bool
) -> None:
    """Make one version of SYMBOL REGIME its champion.

    Without --force it must be a candidate, or answer in shadow, have passed every gate, and have a
    calibration of its drift. A model whose bytes cannot be read is refused in any case, and nothing is
    changed.

    \b
    alphaplus promote BTCUSDT trending --version 3 --reason "two weeks of shadow look good"
    """
    settings = load_settings()
    key = ModelKey(symbol, settings.default_interval if interval is None else interval, regime)

    def choose(session: Session) -> ModelRow:
        from db import registry

        registry.lock_key(session, key)
        row = registry.get(session, key, version)
        if row is None:
            limit = f"a version of {key}"
            raise InputRejected("version", version, limit, "`alphaplus models` lists them")
        if row.state == "champion":
            raise InputRejected("version", version, "a version that is not the champion already")
        if not force:
            _require_passed(row)
        return row

    _change(settings, key, choose, "force" if force else "promote", check_reason(reason), as_json)


@click.command()
@click.argument("symbol")
@click.argument("regime")
@click.option("--to", "to_version", type=click.IntRange(1), help="[default: the champion before]")
@click.option("--reason", default="by hand", show_default=True, help="Kept in the audit log.")
@interval_option
@as_json_option
def rollback(
    *, symbol: str, regime: str, to_version: int | None, reason: str, interval: str | None, as_json: bool
) -> None:
    """Give SYMBOL REGIME back the champion that it had before, at once.

    A second rollback goes further back: a version that was rolled back from is returned to only by --to.
    A model whose bytes cannot be read is refused, and nothing is changed.

    \b
    alphaplus rollback BTCUSDT trending
    """
    settings = load_settings()
    key = ModelKey(symbol, settings.default_interval if interval is None else interval, regime)

    def choose(session: Session) -> ModelRow:
        from db import registry

        return registry.rollback_target(session, key, to_version)

    _change(settings, key, choose, "rollback", check_reason(reason), as_json)


def _change(
    settings: Settings,
    key: ModelKey,
    choose: Callable[[Session], ModelRow],
    action: Literal["promote", "force", "rollback"],
    reason: str,
    as_json: bool,
) -> None:
    """One transaction, then the workers are told, then it is shown."""
    from db.session import transaction
    from worker.database import command_engine

    with command_engine(settings) as engine, transaction(engine) as session:
        done = _write(session, settings, key, choose, action, reason)
    told = _tell(key)
    if as_json:
        click.echo(json.dumps(asdict(done) | {"announced": told}, indent=2))
        return
    before = "no champion" if done.from_version is None else f"version {done.from_version}"
    word = {"promote": "promoted", "force": "promoted by force", "rollback": "rolled back"}[action]
    click.echo(f"{key}: {before} -> version {done.to_version} ({word}); audit row {done.audit_id}.")
    if done.frozen is not None:
        click.echo(
            f"The key stays frozen ({done.frozen}): people may change its champion, the system may not."
        )
    for warning in done.warnings:
        click.echo(f"Warning: {warning}.", err=True)
    if not told:
        wait = f"{settings.champion_check_seconds:g} s"
        click.echo(
            f"The broker does not answer: the workers were not told, they look within {wait}.", err=True
        )


def _write(
    session: Session,
    settings: Settings,
    key: ModelKey,
    choose: Callable[[Session], ModelRow],
    action: Literal["promote", "force", "rollback"],
    reason: str,
) -> Change:
    """Raises ArtifactCorrupt, InputRejected; then nothing was changed."""
    from db import audit, keys, registry
    from tasks import stored_model

    row = choose(session)  # and from here on nobody else changes the key
    stored_model.load(session, row)  # before its new audit row names it: what nobody decided on is refused
    before = registry.champion(session, key)
    from_version = None if before is None else before.version
    actor, now = cli_actor(), make_clock(settings).now()
    registry.promote(
        session,
        row.id,
        now=now,
        actor=actor,
        why=reason,
        details={},
        hmac_key=settings.audit_key,
        action=action,
    )
    (entry,) = audit.recent(session, 1, subject=str(key))
    frozen = keys.frozen(session, key)
    return Change(
        key=str(key),
        action=action,
        from_version=from_version,
        to_version=row.version,
        model_id=row.id,
        audit_id=entry.id,
        actor=actor,
        reason=reason,
        frozen=None if frozen is None else f"by {frozen.frozen_by}: {frozen.frozen_why}",
        warnings=tuple(_warnings(session, settings, row, now)),
    )


def _warnings(session: Session, settings: Settings, row: ModelRow, now: datetime) -> Iterator[str]:
    from db import references

    days = (now - row.as_of) / timedelta(days=1)
    if days > settings.max_model_age_days:
        yield (
            f"version {row.version} is {days:.3g} days old, over the {settings.max_model_age_days:g} of "
            "ALPHAPLUS_MAX_MODEL_AGE_DAYS: it abstains (model_too_old) until the key is trained again"
        )
    if not references.calibrated(session, [row.id]):
        yield (
            f"the drift of version {row.version} cannot be checked: it was trained before drift was "
            "calibrated; train the key again"
        )


def _tell(key: ModelKey) -> bool:
    """Whether the broker took the message to the inference workers."""
    from tasks.champions import announce_champion
    from worker.celery import app, require_broker

    try:
        require_broker()
    except (BrokerUnavailable, ServersMissing):
        return False
    announce_champion(app, key)
    return True


def _require_passed(row: ModelRow) -> None:
    """Raises InputRejected."""
    limit = "a candidate, or a model in shadow, that passed every gate"
    gates = row.decision.get("gates") or []
    failed = [gate["name"] for gate in gates if not gate["passed"]]
    if row.state == "archived":
        hint = f"it was champion: `alphaplus rollback --to {row.version}` goes back to it; --force takes any"
    elif row.state == "rejected":
        why = f"by {', '.join(failed)}" if failed else "though its gates passed"
        hint = f"it was rejected {why}; --force promotes it all the same"
    elif failed or not gates:
        hint = f"it failed {', '.join(failed)}" if failed else "nothing says that it passed any"
        hint += "; --force promotes it all the same"
    else:
        return
    raise InputRejected("version", row.version, limit, hint)
