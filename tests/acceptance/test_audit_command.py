"""`alphaplus audit list | verify | head`, with what an operator finds when someone has been at the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import keys
from db.session import transaction
from ml.keys import ModelKey
from tests.predicting import NOW
from tests.processes import CommandResult
from tests.trained import CHAMPIONS

pytestmark = pytest.mark.drift

Cli = Callable[..., CommandResult]


def by_hand(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE ml_audit_log DISABLE TRIGGER USER"))
        connection.execute(sa.text(statement))
        connection.execute(sa.text("ALTER TABLE ml_audit_log ENABLE TRIGGER USER"))


def sign_one(engine: Engine, key: bytes) -> None:
    with transaction(engine) as session:
        of = ModelKey("BTCUSDT", "1h", "all")
        keys.freeze(session, of, now=NOW, actor="cli:ada", why="to look at it", hmac_key=key)


def test_listing_says_who_what_and_why_newest_first(run_main: Cli, trained_engine: Engine) -> None:
    sign_one(trained_engine, b"0123456789abcdef")
    listed = run_main("audit")
    assert listed.exit_code == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line.split() for line in lines if line[:4].strip().isdigit()]
    assert [row[0] for row in rows] == ["5", "4", "3", "2", "1"]
    assert " ".join(rows[0]) == "5 2019-09-03 00:30 freeze BTCUSDT 1h all to look at it (cli:ada)"
    assert "v1: every gate passed (tasks.train)" in " ".join(listed.stdout.split())
    assert run_main("audit", "list").stdout == listed.stdout

    found = json.loads(run_main("audit", "list", "--action", "promote", "--json").stdout)
    assert [row["subject"] for row in found] == [str(key) for key in reversed(CHAMPIONS)]
    assert found[0]["details"]["version"] == 1
    assert len(json.loads(run_main("audit", "--subject", "BTCUSDT 1h", "--limit", "2", "--json").stdout)) == 2
    assert json.loads(run_main("audit", "--subject", "BTCUSDT 1h all", "--json").stdout)[0]["id"] == 5
    assert run_main("audit", "--subject", "XRPUSDT").stdout == "No such rows.\n"


def test_log_in_order_is_verified_against_an_exported_head(
    run_main: Cli, trained_engine: Engine, tmp_path: Path
) -> None:
    kept = {"head": run_main("audit", "head").stdout, "head.json": run_main("audit", "head", "--json").stdout}
    for name, text in kept.items():
        (tmp_path / name).write_text(text)
        done = run_main("audit", "verify", "--head", str(tmp_path / name))
        assert done.exit_code == 0, done.stderr
        assert done.stdout.splitlines() == [
            "4 rows are in order; every champion and every frozen key is as they say.",
            "The head exported at row 4 is in it.",
            f"Head: {kept['head'].strip()}",
        ]
    done = run_main("audit", "verify", "--head", kept["head"].strip(), "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["ok"], report["rows"], report["broken"]) == (0, True, 4, None)
    assert report["head"] == json.loads(kept["head.json"])


def test_signatures_are_checked_where_a_key_is_set(cli: Cli, trained_engine: Engine) -> None:
    sign_one(trained_engine, b"0123456789abcdef")
    without = cli("audit", "verify")
    assert "Signed rows not checked: 1; ALPHAPLUS_AUDIT_HMAC_KEY is not set." in without.stdout
    right = cli("audit", "verify", ALPHAPLUS_AUDIT_HMAC_KEY="0123456789abcdef")
    assert (right.exit_code, "Signatures checked: 1, from row 5 on." in right.stdout) == (0, True)
    wrong = cli("audit", "verify", ALPHAPLUS_AUDIT_HMAC_KEY="another key of 16")
    assert wrong.exit_code == 3
    assert "row 5 of the audit log (freeze BTCUSDT 1h all) is not signed with this key" in " ".join(
        wrong.stderr.split()
    )


def test_log_without_a_signature_does_not_pass_with_a_key_and_says_how_to_go_on(
    cli: Cli, trained_engine: Engine
) -> None:
    found = cli("audit", "verify", ALPHAPLUS_AUDIT_HMAC_KEY="0123456789abcdef")
    assert found.exit_code == 3
    told = " ".join(found.stderr.split())
    assert "is the newest, and no row is signed with this key" in told
    assert "verify without the key" in told


def test_changed_row_is_named_and_shown_with_exit_code_3(run_main: Cli, trained_engine: Engine) -> None:
    by_hand(trained_engine, "UPDATE ml_audit_log SET why = 'never you mind' WHERE id = 3")
    found = run_main("audit", "verify")
    assert found.exit_code == 3
    assert "row 3 of the audit log (promote BTCUSDT 1h sideways) was changed by hand" in " ".join(
        found.stderr.split()
    )
    assert "never you mind" in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 100
    asked = run_main("audit", "verify", "--json")
    report = json.loads(asked.stdout)
    assert (asked.exit_code, report["ok"], report["broken"]["row"]) == (3, False, 3)
    assert report["broken"]["holds"]["why"] == "never you mind"


def test_emptied_log_is_found_by_the_champions_and_by_an_exported_head(
    run_main: Cli, trained_engine: Engine
) -> None:
    head = run_main("audit", "head").stdout.strip()
    by_hand(trained_engine, "TRUNCATE ml_audit_log")
    found = run_main("audit", "verify", "--head", head)
    assert found.exit_code == 3
    told = " ".join(found.stderr.split())
    assert "row 1 of the audit log is missing, with all up to row 4: it once reached 4" in told
    assert "BTCUSDT 1h trending: the registry has version 1 as champion, the audit log knows of none" in told
    assert run_main("audit", "verify").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--json", "list"), "give --json after list: `alphaplus audit list --json …`"),
        (("--subject", "ETHUSDT", "--limit", "2", "list"), "give --subject, --limit after list"),
        (("--action", "freeze", "verify"), "give --action after verify"),
    ],
)
def test_option_of_the_group_is_not_dropped_before_a_subcommand(
    run_main: Cli, arguments: tuple[str, ...], told: str
) -> None:
    result = run_main("audit", *arguments)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


@pytest.mark.parametrize("head", ["17", "17:abc", "/nowhere/head", ".", "x:" + "a" * 64])
def test_head_that_is_none_is_refused(run_main: Cli, head: str) -> None:
    result = run_main("audit", "verify", "--head", head)
    assert result.exit_code == 2
    assert "expected ID:HASH, or a file" in " ".join(result.stderr.split())
