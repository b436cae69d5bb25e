"""An inference worker and its champions: promoted while it answers, told or not, and unreadable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import registry
from db.models import Artifact
from db.session import transaction
from ml.keys import ModelKey
from tests.predicting import NOW, SIGNAL, Caller, wait_until
from tests.processes import RunningProcess
from tests.trained import CHAMPIONS, resources_of, train

pytestmark = pytest.mark.inference


def test_a_promotion_reaches_the_worker_without_a_wait(
    worker: RunningProcess,
    trained_env: dict[str, str],
    worker_process: Callable[..., RunningProcess],
    caller: Caller,
    trained_engine: Engine,
) -> None:
    """A training worker promotes; this worker, which would look again in an hour, answers with it."""
    key = regime_now(caller)
    assert caller.answer(SIGNAL)["model_version"] == 1
    options = {
        "ALPHAPLUS_TRAINING__POOL": "symbol",
        "ALPHAPLUS_TRAINING__BOOTSTRAP_SAMPLES": "100",
        "ALPHAPLUS_TRAINING__FIT__N_ESTIMATORS": "20",
        "ALPHAPLUS_TRAINING__FIT__THREADS": "1",
        "ALPHAPLUS_TRAINING__DRIFT__NULL_MONTHS": "15",
        "ALPHAPLUS_TRAINING__GATES__MIN_F1": "0",
        "ALPHAPLUS_TRAINING__GATES__MIN_PRECISION": "0",
        "ALPHAPLUS_TRAINING__GATES__MIN_RECALL": "0",
        "ALPHAPLUS_TRAINING__GATES__REL_IMPROVEMENT_F1": "0",
        "ALPHAPLUS_TRAINING__GATES__MAX_FEATURE_DRIFT_KS": "1",
        "ALPHAPLUS_TRAINING__GATES__MIN_AUC_LOWER": "0",
        "ALPHAPLUS_TRAINING__GATES__MIN_BRIER_SKILL_LOWER": "-1",
    }
    worker_process("training", "--concurrency=1", env=trained_env | options)
    with transaction(trained_engine) as session:
        make_room_for_promotion(session, key)
    caller.app.send_task("tasks.train", args=[key.symbol, key.regime], queue="training")
    wait_until(lambda: champion_version(trained_engine, key) == 2, "the second champion", 60)
    wait_until(lambda: caller.answer(SIGNAL)["model_version"] == 2, "the answer of the second champion", 10)


def test_a_lost_broadcast_is_made_good_at_the_next_check(
    trained_env: dict[str, str],
    worker_process: Callable[..., RunningProcess],
    caller: Caller,
    trained_engine: Engine,
    trained_database_url: str,
) -> None:
    worker_process("inference", "--pool=solo", env=trained_env | {"ALPHAPLUS_CHAMPION_CHECK_SECONDS": "0.5"})
    key = regime_now(caller)
    promote_another(trained_database_url, key)
    wait_until(lambda: caller.answer(SIGNAL)["model_version"] == 2, "the answer of the second champion", 10)


def test_a_corrupt_artifact_leaves_the_last_good_model_answering(
    trained_env: dict[str, str],
    worker_process: Callable[..., RunningProcess],
    caller: Caller,
    trained_engine: Engine,
    trained_database_url: str,
) -> None:
    env = trained_env | {"ALPHAPLUS_CHAMPION_CHECK_SECONDS": "0.2"}
    first = worker_process("inference", "--pool=solo", env=env)
    key = regime_now(caller)
    promote_another(trained_database_url, key, corrupt=True)
    answers = []

    def looked() -> bool:
        answers.append(caller.answer(SIGNAL))
        return "artifact_corrupt" in first.log.read_text()

    wait_until(looked, "a look at the second champion")
    assert {(one["model_version"], one["abstain_reason"]) for one in answers} == {(1, None)}

    # A worker that never had a good one abstains, and does not fall back in silence.
    first.kill()
    worker_process("inference", "--pool=solo", env=env)
    answer = caller.answer(SIGNAL)
    assert (answer["decision"], answer["abstain_reason"]) == ("abstain", "artifact_corrupt")


def regime_now(caller: Caller) -> ModelKey:
    """The key that answers at ``NOW``: one of the champions."""
    key = ModelKey("BTCUSDT", "1h", caller.answer(SIGNAL)["regime"])
    assert key in CHAMPIONS
    return key


def champion_version(engine: Engine, key: ModelKey) -> int:
    with transaction(engine) as session:
        row = registry.champion(session, key)
        assert row is not None
        return row.version


def make_room_for_promotion(session: Any, key: ModelKey) -> None:
    """A champion whose bytes cannot be read is no incumbent, so that any challenger is promoted."""
    row = registry.champion(session, key)
    assert row is not None
    session.execute(
        sa.update(Artifact).where(Artifact.sha256 == row.artifact_sha256).values(body=b"x", size=1)
    )


def promote_another(database_url: str, key: ModelKey, *, corrupt: bool = False) -> None:
    """A second champion, of which no worker is told."""
    resources = resources_of(database_url, NOW)
    with resources.transaction() as session:
        make_room_for_promotion(session, key)
    outcome = train(resources, key, fit={"n_estimators": 20, "threads": 1})
    assert outcome["result"] == "promoted", outcome
    if corrupt:
        with resources.transaction() as session:
            make_room_for_promotion(session, key)
    resources.engine.dispose()
