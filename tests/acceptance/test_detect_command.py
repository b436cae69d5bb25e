"""`alphaplus detect` and the detector of the maintenance queue, on real candles and a real worker."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from celery import Celery
from sqlalchemy.engine import Engine

from db import predictions
from db.models import Prediction
from db.session import transaction
from tests.newest_signals import HOUR, NOW, Json, directions, every_signal, first_hour, newest
from tests.processes import CommandResult, RunningProcess, script
from worker.replay import move_replay

pytestmark = pytest.mark.inference

WAIT_SECONDS = 60.0

Cli = Callable[..., CommandResult]


@pytest.fixture
def worker(trained_env: dict[str, str], worker_process: Callable[..., RunningProcess]) -> RunningProcess:
    return worker_process("inference", "--pool=solo", env=trained_env)


def test_detect_answers_each_symbols_newest_candle_once_and_ends(
    worker: RunningProcess, cli: Cli, trained_engine: Engine, redis_url: str
) -> None:
    moment = first_hour(trained_engine, lambda found: bool(found.signals))
    move_replay(redis_url, moment)
    result = cli("detect", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    for symbol in ("BTCUSDT", "ETHUSDT"):
        found = newest(trained_engine, moment, symbol)
        mine = [line for line in lines if line["symbol"] == symbol]
        if found.signals:
            assert [line["signal_id"] for line in mine] == [one["id"] for one in found.messages()]
        else:
            assert [line["reason"] for line in mine] == [found.reason]
    text = cli("detect", "--symbol", "BTCUSDT").stdout
    assert text.count("BTCUSDT 1h") == len(newest(trained_engine, moment).signals)
    wrong = cli("detect", "--symbol", "SOLUSDT")
    assert wrong.exit_code == 2
    assert "expected a symbol with 1h candles: BTCUSDT, ETHUSDT" in " ".join(wrong.stderr.split())


def test_detect_follows_candle_by_candle_and_outlives_its_worker(
    worker: RunningProcess,
    worker_process: Callable[..., RunningProcess],
    processes: Callable[..., RunningProcess],
    trained_env: dict[str, str],
    trained_engine: Engine,
    redis_url: str,
) -> None:
    command = [script("alphaplus"), "detect", "--symbol", "BTCUSDT", "--follow", "--json", "--timeout", "1"]
    follow = processes(command, trained_env)
    moments = [NOW + index * HOUR for index in range(4)]
    moments += [moment for moment, _ in every_signal(trained_engine, 24) if moment > moments[-1]][:2]

    def lines() -> list[Json]:
        text = follow.log.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def wait_for_candle(moment: datetime) -> None:
        close = moment - timedelta(minutes=30)
        follow.wait_for(
            lambda: any(datetime.fromisoformat(line["time"]) == close for line in lines()), str(close)
        )

    for moment in moments[:-1]:
        move_replay(redis_url, moment)
        wait_for_candle(moment)
    worker.kill()
    move_replay(redis_url, moments[-1])
    follow.wait_for_line("start one with `alphaplus worker inference`")
    worker_process("inference", "--pool=solo", env=trained_env)
    wait_for_candle(moments[-1])
    time.sleep(2.5)  # two more looks: nothing is answered twice

    follow.popen.send_signal(signal.SIGINT)
    assert follow.popen.wait(WAIT_SECONDS) == 0
    expected = [
        (moment - timedelta(minutes=30), direction)
        for moment in moments
        for direction in directions(newest(trained_engine, moment))
    ]
    told = [(datetime.fromisoformat(line["time"]), line.get("direction")) for line in lines()]
    assert told == expected
    assert follow.log.read_text().count("Trying on.") == 1


def test_candle_that_is_detected_twice_is_recorded_once(
    worker: RunningProcess,
    worker_process: Callable[..., RunningProcess],
    trained_env: dict[str, str],
    trained_engine: Engine,
    redis_url: str,
) -> None:
    moment = first_hour(trained_engine, lambda found: bool(found.signals))
    move_replay(redis_url, moment)
    worker_process("maintenance", "--pool=solo", env=trained_env)
    with Celery("sender", broker=redis_url, backend=redis_url, set_as_current=False) as sender:

        def rows() -> list[Prediction]:
            sender.send_task("tasks.drain_predictions", queue="maintenance", ignore_result=True)
            with transaction(trained_engine) as session:
                return list(predictions.recent(session, limit=100))

        def wait_for(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + WAIT_SECONDS
            while not condition():
                assert time.monotonic() < deadline
                time.sleep(0.1)

        expected = newest(trained_engine, moment)
        sender.send_task("tasks.detect_signals", args=["BTCUSDT"], queue="maintenance")
        wait_for(lambda: len(rows()) == len(expected.signals))
        sender.send_task("tasks.detect_signals", args=["BTCUSDT", "1h"], queue="maintenance")
        sender.send_task("tasks.detect_signals", args=["ETHUSDT", "1h"], queue="maintenance")
        other = newest(trained_engine, moment, "ETHUSDT")
        total = len(expected.signals) + len(other.signals)
        wait_for(lambda: len(rows()) >= total)
        found = rows()
    assert {row.signal_id for row in found if row.symbol == "BTCUSDT"} == {
        message["id"] for message in expected.messages()
    }
    assert len(found) == total
    assert {row.symbol: row.decision for row in found}.get("ETHUSDT", "abstain") == "abstain"
