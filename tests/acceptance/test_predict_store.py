"""Inference workers while PostgreSQL hangs: what is in memory goes on answering."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from tests.predicting import SIGNAL, Caller, at, recorded
from tests.processes import RunningProcess

pytestmark = pytest.mark.inference

LOCK = sa.text("LOCK TABLE ml_models, candle_series IN ACCESS EXCLUSIVE MODE")
CHECK_SECONDS = 0.2


@pytest.fixture
def worker(trained_env: dict[str, str], worker_process: Callable[..., RunningProcess]) -> RunningProcess:
    env = {
        "ALPHAPLUS_CHAMPION_CHECK_SECONDS": str(CHECK_SECONDS),
        "ALPHAPLUS_MAX_SIGNAL_AGE_BARS": "400",
    }
    return worker_process("inference", "--pool=solo", env=trained_env | env)


def test_a_locked_registry_takes_no_answer_away_also_not_the_fallbacks(
    worker: RunningProcess, caller: Caller, trained_engine: Engine
) -> None:
    own, through_fallback = SIGNAL, SIGNAL | {"time": at(-48)}
    before = [caller.answer(signal) for signal in (own, through_fallback)]
    assert [answer["fallback"] for answer in before] == [False, True]
    with trained_engine.begin() as connection:
        connection.execute(LOCK)
        time.sleep(2 * CHECK_SECONDS)
        during = [caller.answer(signal) for signal in (own, through_fallback) for _ in range(2)]
        # Of a series that nobody has asked for yet there is nothing in memory.
        unknown = caller.answer(SIGNAL | {"symbol": "ETHUSDT"})
    assert [answer["confidence"] for answer in during] == [
        before[0]["confidence"], before[0]["confidence"], before[1]["confidence"], before[1]["confidence"]
    ]  # fmt: skip
    assert None not in {answer["confidence"] for answer in before}
    assert unknown["abstain_reason"] == "store_unavailable"


def test_a_request_that_is_answered_differently_the_second_time_has_two_records(
    worker: RunningProcess, caller: Caller, trained_engine: Engine
) -> None:
    signal = SIGNAL | {"time": at(0)}
    answers = []
    with trained_engine.begin() as connection:
        connection.execute(LOCK)
        caller.send(signal, request_id="mine")
        answers += caller.receive()["answers"]
    time.sleep(2 * CHECK_SECONDS)
    for _ in range(2):
        caller.send(signal, request_id="mine")
        answers += caller.receive()["answers"]

    assert [answer["abstain_reason"] for answer in answers] == ["store_unavailable", None, None]
    away, first, second = (answer["prediction_id"] for answer in answers)
    assert away != first == second
    assert [(record["id"], record["confidence"]) for record in recorded(caller.redis)] == [
        (answer["prediction_id"], answer["confidence"]) for answer in answers
    ]
