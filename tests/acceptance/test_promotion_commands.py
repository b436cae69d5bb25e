"""`alphaplus promote` and `rollback`: what they refuse, and that workers answer with what they did."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import artifacts, audit, keys, references, registry
from db.drift_models import DriftNull
from db.models import Artifact
from db.session import transaction
from ml.artifact import sha256_hex, to_bytes
from ml.keys import ModelKey
from tasks.stored_model import load
from tests.predicting import NOW, SIGNAL, Caller, wait_until
from tests.processes import CommandResult, RunningProcess
from tests.trained import CHAMPIONS

pytestmark = pytest.mark.drift

Cli = Callable[..., CommandResult]
KEY = ModelKey("BTCUSDT", "1h", "trending")
PASSED = {"promote": True, "gates": [{"name": "min_f1", "passed": True, "detail": "F1 is 0.7"}]}
FAILED = {"promote": False, "gates": [{"name": "min_f1", "passed": False, "detail": "F1 is 0.2"}]}


def add(
    session: Session, key: ModelKey = KEY, *, decision: dict[str, Any] = PASSED, to: str = "shadow"
) -> int:
    """A further version that answers as the champion does; its version."""
    champion = registry.champion(session, key)
    assert champion is not None
    model = load(session, champion).model
    newest = registry.models(session, key=key, limit=1)[0].version
    body = to_bytes(replace(model, rows={**model.rows, "copy": newest}))
    sha256 = sha256_hex(body)
    artifacts.put(session, sha256=sha256, body=body, kind="model", address=None, metadata={})
    row = registry.add(
        session, key=key, artifact_sha256=sha256, booster_sha256=champion.booster_sha256, job_id=None,
        as_of=champion.as_of, data_cut=champion.data_cut, config=champion.config,
        config_digest=champion.config_digest, metrics=champion.metrics, decision=decision, state="candidate",
        metadata={},
    )  # fmt: skip
    reference = references.load(session, champion.id)
    calibration = references.load_calibration(session, champion.id)
    assert reference is not None and calibration is not None
    references.save(session, row.id, reference)
    references.save_calibration(session, row.id, calibration)
    if to != "candidate":
        registry.move(session, row.id, to, now=NOW, actor="test", why="because", details={})  # type: ignore[arg-type]
    return row.version


def states(engine: Engine, key: ModelKey = KEY) -> dict[int, str]:
    with transaction(engine) as session:
        return {row.version: row.state for row in registry.models(session, key=key)}


def spoil(engine: Engine, version: int) -> None:
    with transaction(engine) as session:
        row = registry.get(session, KEY, version)
        assert row is not None
        session.execute(
            sa.update(Artifact).where(Artifact.sha256 == row.artifact_sha256).values(body=b"x", size=1)
        )


def rows(engine: Engine) -> int:
    with transaction(engine) as session:
        return audit.verify(session).rows


def test_workers_answer_with_what_was_promoted_and_with_what_was_rolled_back_to(
    worker: RunningProcess, cli: Cli, caller: Caller, trained_engine: Engine
) -> None:
    """The worker would look again in an hour: it is told."""
    first = caller.answer(SIGNAL)
    key = ModelKey("BTCUSDT", "1h", first["regime"])
    assert key in CHAMPIONS
    with transaction(trained_engine) as session:
        add(session, key)
    done = cli("promote", key.symbol, key.regime, "--version", "2", "--reason", "two good weeks", "--json")
    assert done.exit_code == 0, done.stderr
    with transaction(trained_engine) as session:
        row = audit.recent(session, 1)[0]
        champion = registry.champion(session, key)
    assert champion is not None
    actor = f"cli:{getpass.getuser()}"
    assert json.loads(done.stdout) == {
        "key": str(key),
        "action": "promote",
        "from_version": 1,
        "to_version": 2,
        "model_id": champion.id,
        "audit_id": row.id,
        "actor": actor,
        "reason": "two good weeks",
        "frozen": None,
        "warnings": [],
        "announced": True,
    }
    assert (row.action, row.actor, row.why, row.subject) == ("promote", actor, "two good weeks", str(key))
    assert champion.promoted_at is not None
    assert champion.promoted_at.year == NOW.year  # the replay's clock, not the wall's
    wait_until(lambda: caller.answer(SIGNAL)["model_version"] == 2, "the answer of the second version", 10)

    done = cli("rollback", key.symbol, key.regime)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{key}: version 2 -> version 1 (rolled back); audit row {row.id + 1}.\n"
    wait_until(lambda: caller.answer(SIGNAL)["model_version"] == 1, "the answer of the first version", 10)
    again = caller.answer(SIGNAL)
    assert [again[name] for name in ("confidence", "model")] == [
        first[name] for name in ("confidence", "model")
    ]


def test_model_that_cannot_be_read_is_refused_and_nothing_is_changed(
    run_main: Cli, trained_engine: Engine
) -> None:
    with transaction(trained_engine) as session:
        for _ in range(2):
            add(session)
    assert run_main("promote", "BTCUSDT", "trending", "--version", "2", "--reason", "test").exit_code == 0
    for version in (1, 3):
        spoil(trained_engine, version)
    before, known = rows(trained_engine), states(trained_engine)
    for command in (
        ["rollback", "BTCUSDT", "trending"],
        ["rollback", "BTCUSDT", "trending", "--to", "1"],
        ["promote", "BTCUSDT", "trending", "--version", "3", "--reason", "test"],
        ["promote", "BTCUSDT", "trending", "--version", "1", "--reason", "test", "--force"],
    ):
        result = run_main(*command)
        assert result.exit_code == 3
        assert "sha256" in result.stderr
        assert (rows(trained_engine), states(trained_engine)) == (before, known)


def test_what_was_put_into_the_registry_by_hand_is_refused(run_main: Cli, trained_engine: Engine) -> None:
    """Bytes that load, of which no audit row tells: nobody decided on them."""
    with transaction(trained_engine) as session:
        add(session, to="candidate")
    result = run_main("promote", "BTCUSDT", "trending", "--version", "2", "--reason", "test", "--force")
    assert result.exit_code == 3
    assert "the audit log names no artifact" in " ".join(result.stderr.split())
    assert states(trained_engine) == {1: "champion", 2: "candidate"}


def test_promotion_asks_for_passed_gates_unless_forced(run_main: Cli, trained_engine: Engine) -> None:
    with transaction(trained_engine) as session:
        add(session, decision=FAILED, to="rejected")
        add(session, decision=FAILED)
        add(session, decision={})
        keys.freeze(session, KEY, now=NOW, actor="tasks.review_champions", why="flapping")

    def promote(version: int, *options: str) -> CommandResult:
        return run_main(
            "promote", "BTCUSDT", "trending", "--version", str(version), "--reason", "demo", *options
        )

    for version, told in (
        (2, "it was rejected by min_f1; --force promotes it all the same"),
        (3, "it failed min_f1; --force"),
        (4, "nothing says that it passed any; --force"),
        (1, "a version that is not the champion already"),
        (5, "a version of BTCUSDT 1h trending"),
    ):
        refused = promote(version)
        assert refused.exit_code == 2
        assert told in " ".join(refused.stderr.split())
    before = rows(trained_engine)
    forced = promote(2, "--force")
    assert forced.exit_code == 0, forced.stderr
    assert f"version 1 -> version 2 (promoted by force); audit row {before + 1}." in forced.stdout
    assert "The key stays frozen (by tasks.review_champions: flapping)" in forced.stdout
    assert states(trained_engine) == {1: "archived", 2: "champion", 3: "shadow", 4: "shadow"}
    assert "`alphaplus rollback --to 1` goes back to it" in " ".join(promote(1).stderr.split())
    with transaction(trained_engine) as session:
        assert [(row.action, row.why) for row in audit.recent(session, 1)] == [("force", "demo")]


def test_model_too_old_to_answer_or_without_calibration_is_taken_with_a_warning(
    cli: Cli, trained_engine: Engine
) -> None:
    with transaction(trained_engine) as session:
        add(session)
        bare = registry.get(session, KEY, 2)
        assert bare is not None
        session.execute(sa.delete(DriftNull).where(DriftNull.model_id == bare.id))
    command = ("promote", "BTCUSDT", "trending", "--version", "2", "--reason", "test")
    refused = cli(*command)
    assert refused.exit_code == 2
    assert "train the key again" in " ".join(refused.stderr.split())
    forced = cli(*command, "--force", "--json")
    assert forced.exit_code == 0, forced.stderr
    (warning,) = json.loads(forced.stdout)["warnings"]
    assert warning.startswith("the drift of version 2 cannot be checked")
    back = cli("rollback", "BTCUSDT", "trending", ALPHAPLUS_MAX_MODEL_AGE_DAYS="0.01")
    assert back.exit_code == 0
    told = " ".join(back.stderr.split())
    assert "Warning: version 1 is" in told
    assert "over the 0.01 of ALPHAPLUS_MAX_MODEL_AGE_DAYS: it abstains (model_too_old) until" in told
    assert "drift" not in told


NONSENSE = (
    ("rollback BTCUSDT trending", "a key that had a champion before version 1"),
    ("rollback BTCUSDT trending --to 7", "BTCUSDT 1h trending has no version 7"),
    ("rollback BTCUSDT trending --to 1", "it is the champion"),
    ("rollback BTCUSDT trending --reason=", "reason: '' is not accepted"),
    ("rollback ETHUSDT trending", "a key with a champion"),
    ("rollback BTCUSDT trending --interval 2h", "interval: '2h' is not accepted"),
    ("rollback BTCUSDT bogus", "regime: 'bogus' is not accepted"),
    ("promote BTCUSDT trending --version 1", "Missing option '--reason'"),
    ("promote BTCUSDT trending --version 0 --reason x", "0 is not in the range"),
    ("promote ../etc trending --version 1 --reason x", "symbol: '../etc'"),
)


def test_nonsense_is_refused_by_name_and_nothing_is_written(
    run_main: Cli, trained_engine: Engine, subtests: pytest.Subtests
) -> None:
    before = rows(trained_engine)
    for command, told in NONSENSE:
        with subtests.test(command):
            result = run_main(*command.split())
            assert result.exit_code == 2
            assert told in " ".join(result.stderr.split())
            assert "Traceback" not in result.stderr
    assert rows(trained_engine) == before


def test_rollback_goes_through_while_the_broker_is_away(cli: Cli, trained_engine: Engine) -> None:
    with transaction(trained_engine) as session:
        version = add(session)
        row = registry.get(session, KEY, version)
        assert row is not None
        registry.promote(session, row.id, now=NOW, actor="test", why="test", details={})
    away = {"ALPHAPLUS_REDIS_URL": "redis://127.0.0.1:1/0", "ALPHAPLUS_CLOCK": "wall"}
    result = cli("rollback", "BTCUSDT", "trending", **away)
    assert result.exit_code == 0, result.stderr
    assert "version 2 -> version 1 (rolled back)" in result.stdout
    assert "The broker does not answer: the workers were not told, they look within 10 s." in result.stderr
    assert states(trained_engine) == {1: "champion", 2: "archived"}
