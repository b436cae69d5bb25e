"""tasks.predict on a real worker with real champions: what it answers, when it abstains, what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import redis
from celery import Celery
from sqlalchemy.engine import Engine

from db import registry
from db.session import transaction
from ml.candles import to_datetime64
from ml.config import LabelConfig
from ml.dataset import build_rows
from ml.features import FEATURE_NAMES, market_features
from ml.keys import REGIMES
from ml.noise import clean
from ml.patterns import pattern_names
from tasks.stored_model import load
from tests.predicting import SIGNAL, STREAM, Caller, at, check_answer, ohlcv_rows, recorded
from tests.processes import RunningProcess
from tests.real_candles import real_candles
from tests.trained import CUT
from worker.replay import move_replay

pytestmark = pytest.mark.inference


def test_answers_equal_what_training_says_of_the_same_signals(
    worker: RunningProcess, caller: Caller, trained_engine: Engine, redis_url: str
) -> None:
    """A fortnight of real signals: features, regime and odds as the batch has them, to the last bit."""
    end = CUT + timedelta(days=14)
    move_replay(redis_url, end)
    cleaned = clean(real_candles()).candles
    rows = build_rows(cleaned, symbol="BTCUSDT", config=LabelConfig())
    later = (rows.close_time > to_datetime64(CUT)) & (rows.close_time <= to_datetime64(end))
    rows = rows.take(np.flatnonzero(later))
    with transaction(trained_engine) as session:
        champions = {row.regime: load(session, row) for row in registry.models(session, state="champion")}
    signals = [
        {"symbol": "BTCUSDT", "direction": int(direction), "time": f"{moment}+00:00"}
        for moment, direction in zip(rows.close_time, rows.direction, strict=True)
    ]
    answers = [
        answer
        for start in range(0, len(signals), 200)
        for answer in caller.ask(signals[start : start + 200])["answers"]
    ]

    assert len(answers) == len(rows) > 300
    for index, answer in enumerate(answers):
        check_answer(answer)
        regime = REGIMES[rows.regime[index]]
        served = regime if regime in champions else "all"
        assert answer["regime"] == regime
        assert answer["patterns"] == list(pattern_names(int(rows.patterns[index])))
        if answer["abstain_reason"] == "fallback_unfit":
            continue
        assert answer["model"] == f"BTCUSDT 1h {served}"
        assert answer["fallback"] == (served == "all")
        predictor = champions[served]
        if answer["decision"] == "abstain":
            assert answer["abstain_reason"] == "out_of_distribution"
            continue
        expected = predictor.confidence(rows.features[index : index + 1])[0]
        assert answer["confidence"] == pytest.approx(expected, abs=1e-6)
        positive = expected >= predictor.model.threshold.value
        worth_it = predictor.model.return_bins.expected(np.array([expected]))[0] > 0
        assert answer["decision"] == ("accept" if positive and worth_it else "reject")
    exact = sum(
        record["confidence"] == answer["confidence"]
        for record, answer in zip(recorded(caller.redis), answers, strict=True)
    )
    assert exact == len(answers)


def test_stored_candles_inline_candles_and_features_give_the_same_answer(
    worker: RunningProcess, caller: Caller
) -> None:
    cleaned = clean(real_candles().until(CUT)).candles
    values = market_features(cleaned)[-1]
    features = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(FEATURE_NAMES, values, strict=True)
    }
    stored = caller.answer(SIGNAL)
    inline = caller.answer(SIGNAL | {"candles": ohlcv_rows()})
    brought = caller.answer(SIGNAL | {"features": features, "time": at(0)})

    assert stored["decision"] != "abstain"
    varying = {"prediction_id", "as_of"}
    same = {name: value for name, value in stored.items() if name not in varying}
    assert {name: value for name, value in inline.items() if name not in varying} == same
    assert {name: value for name, value in brought.items() if name not in varying} == same


def test_a_plain_celery_caller_gets_the_answer_as_the_tasks_result(
    worker: RunningProcess, caller: Caller, redis_url: str
) -> None:
    with Celery(broker=redis_url, backend=redis_url) as app:
        sent = app.send_task("tasks.predict", args=[[SIGNAL, SIGNAL | {"direction": -1}]], queue="inference")
        reply = sent.get(timeout=20)
        kept = app.backend.get_task_meta(sent.id)
    assert reply["id"] == sent.id
    assert [answer["direction"] for answer in reply["answers"]] == [1, -1]
    assert [record["id"] for record in recorded(caller.redis)] == [
        answer["prediction_id"] for answer in reply["answers"]
    ]
    assert not kept.get("args")  # the request's candles are not stored a second time


def test_the_same_request_twice_has_the_same_prediction_ids(worker: RunningProcess, caller: Caller) -> None:
    ids = []
    for _ in range(2):
        caller.app.send_task(
            "tasks.predict",
            args=[SIGNAL],
            kwargs={"reply_to": caller.reply_list},
            task_id="request-1",
            queue="inference",
            ignore_result=True,
        )
        (answer,) = caller.receive()["answers"]
        ids.append(answer["prediction_id"])
    assert ids[0] == ids[1]
    assert caller.answer(SIGNAL)["prediction_id"] != ids[0]


def untraded() -> list[list[float]]:
    """The newest candle has no volume."""
    rows = ohlcv_rows()
    rows[-1][5] = 0.0
    return rows


def unheard_of() -> list[list[float]]:
    """Half as much again in an hour, on ten thousand times the volume."""
    rows = ohlcv_rows()
    for row in rows[-30:]:
        row[5] *= 10_000.0
    rows[-1][2] *= 1.5
    rows[-1][4] = rows[-1][2]
    return rows


def test_it_abstains_and_says_why(worker: RunningProcess, caller: Caller) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"time": at(-401)}, "stale_signal"),
        ({"candles": ohlcv_rows(count=1023)}, "too_few_candles"),
        ({"symbol": "NEWUSDT", "candles": ohlcv_rows()}, "no_model"),
        ({"symbol": "ETHUSDT"}, "no_model"),
        ({"time": at(0), "candles": ohlcv_rows(until=CUT - timedelta(hours=1))}, "no_candle"),
        ({"candles": untraded()}, "noisy_candle"),
        ({"candles": unheard_of()}, "out_of_distribution"),
    ]
    answers = [caller.answer(SIGNAL | {"confidence": 0.61} | signal) for signal, _ in cases]
    for answer in answers:
        check_answer(answer)
    assert [answer["abstain_reason"] for answer in answers] == [reason for _, reason in cases]
    assert {answer["pattern_confidence"] for answer in answers} == {0.61}
    kept = ("decision", "abstain_reason", "pattern_confidence", "out_of_distribution")
    assert [[record[name] for name in kept] for record in recorded(caller.redis)] == [
        [answer[name] for name in kept] for answer in answers
    ]


def test_an_old_champion_is_not_heard(
    trained_env: dict[str, str], worker_process: Callable[..., RunningProcess], caller: Caller
) -> None:
    worker_process("inference", "--pool=solo", env=trained_env | {"ALPHAPLUS_MAX_MODEL_AGE_DAYS": "0.02"})
    answer = caller.answer(SIGNAL)
    assert (answer["abstain_reason"], answer["confidence"]) == ("model_too_old", None)
    assert answer["model_age_seconds"] == 1800


def test_bad_input_is_refused_by_name_and_nothing_is_written(worker: RunningProcess, caller: Caller) -> None:
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        (([SIGNAL | {"direction": 3}],), {}, "signals[0].direction"),
        ((SIGNAL | {"symbol": "NOSUCHUSDT"},), {}, "symbol"),
        (([SIGNAL, SIGNAL | {"symbol": "NOSUCHUSDT"}],), {}, "signals[1].symbol"),
        (([SIGNAL] * 100_000,), {}, "signals"),
        ((SIGNAL | {"candles": [[1.0] * 6] * 200_000},), {}, "candles"),  # 10 MB
        ((SIGNAL | {"time": at(1)},), {}, "time"),
        ((), {}, "signals"),
        ((SIGNAL, SIGNAL), {}, "signals"),
        ((SIGNAL,), {"priority": 1}, "priority"),
    ]
    errors = [caller.ask(*args, **options)["error"] for args, options, _ in cases]
    assert [error["field"] for error in errors] == [field for _, _, field in cases]
    assert {name for error in errors for name in error} == {"type", "field", "value", "limit"}
    assert caller.redis.xlen(STREAM) == 0
    check_answer(caller.answer(SIGNAL))


def test_a_reply_list_outside_its_prefix_is_never_written(
    worker: RunningProcess, caller: Caller, redis_url: str
) -> None:
    with Celery(broker=redis_url, backend=redis_url) as app:
        sent = app.send_task(
            "tasks.predict", args=[SIGNAL], kwargs={"reply_to": "inference"}, queue="inference"
        )
        reply = sent.get(timeout=20)
    assert reply["error"]["field"] == "reply_to"
    assert caller.redis.xlen(STREAM) == 0


def test_a_long_queue_is_answered_busy_and_nothing_is_recorded(
    trained_env: dict[str, str], worker_process: Callable[..., RunningProcess], caller: Caller
) -> None:
    count = 300
    ids = {caller.send(SIGNAL) for _ in range(count)}
    worker_process("inference", "--pool=solo", env=trained_env | {"ALPHAPLUS_PREDICT_QUEUE_LIMIT": "20"})
    replies = [caller.receive() for _ in range(count)]
    shed = [reply for reply in replies if "busy" in reply]
    answered = [reply for reply in replies if "answers" in reply]
    assert {reply["id"] for reply in replies} == ids
    assert len(shed) + len(answered) == count
    assert shed
    assert answered
    assert shed[0]["busy"]["reason"] == "queue"
    assert shed[0]["busy"]["value"] > shed[0]["busy"]["limit"] == 20
    assert len(recorded(caller.redis)) == len(answered)


def test_a_full_record_stream_is_answered_busy(
    trained_env: dict[str, str], worker_process: Callable[..., RunningProcess], caller: Caller
) -> None:
    worker_process("inference", "--pool=solo", env=trained_env | {"ALPHAPLUS_RECORD_LIMIT": "3"})
    replies = [caller.ask(SIGNAL) for _ in range(5)]
    assert ["answers" in reply for reply in replies] == [True, True, True, False, False]
    assert replies[4]["busy"] == {"reason": "records", "value": 3, "limit": 3}
    assert caller.redis.xlen(STREAM) == 3


def test_a_request_past_its_expiry_is_not_computed(
    trained_env: dict[str, str], worker_process: Callable[..., RunningProcess], caller: Caller
) -> None:
    caller.app.send_task(
        "tasks.predict",
        args=[SIGNAL],
        kwargs={"reply_to": caller.reply_list},
        queue="inference",
        ignore_result=True,
        expires=datetime.now(UTC) - timedelta(seconds=1),
    )
    worker_process("inference", "--pool=solo", env=trained_env)
    in_time = caller.ask(SIGNAL)  # would be the second reply if the first were answered
    assert "answers" in in_time
    assert len(recorded(caller.redis)) == 1


def test_two_workers_share_the_requests_and_no_reply_goes_astray(
    worker: RunningProcess,
    trained_env: dict[str, str],
    worker_process: Callable[..., RunningProcess],
    redis_url: str,
) -> None:
    second = worker_process("inference", "--pool=solo", env=trained_env)
    wrong: list[str] = []

    def call(number: int) -> None:
        caller = Caller(redis_url)
        try:
            for turn in range(20):
                name = f"{number}/{turn}"
                answer = caller.answer(SIGNAL | {"id": name})
                if answer["signal_id"] != name:
                    wrong.append(name)
        except AssertionError as error:
            wrong.append(str(error))
        finally:
            caller.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    with redis.Redis.from_url(redis_url) as client:
        assert len(recorded(client)) == 160
    assert worker.running
    assert second.running


def test_without_the_database_a_warm_worker_answers_and_a_cold_one_abstains(
    worker: RunningProcess,
    trained_env: dict[str, str],
    worker_process: Callable[..., RunningProcess],
    caller: Caller,
) -> None:
    away = trained_env | {"ALPHAPLUS_DATABASE_URL": "postgresql+psycopg2://nobody:x@127.0.0.1:9/nothing"}
    warm = caller.answer(SIGNAL)
    worker.kill()
    worker_process("inference", "--pool=solo", env=away)
    cold = caller.answer(SIGNAL)
    inline = caller.answer(SIGNAL | {"candles": ohlcv_rows()})
    assert warm["decision"] != "abstain"
    assert (cold["decision"], cold["abstain_reason"]) == ("abstain", "store_unavailable")
    assert (inline["decision"], inline["abstain_reason"]) == ("abstain", "store_unavailable")
