"""The pattern detector on real candles, a real PostgreSQL and a real broker."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import numpy as np
import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from pydantic import SecretStr
from sqlalchemy.engine import Engine

import tasks.candles
import tasks.detect  # noqa: F401 - its task becomes known
from db import candles as store
from db.session import transaction
from ml.candles import Candles, to_datetime
from ml.errors import KeyRejected
from ml.keys import ModelKey
from ml.noise import clean
from ml.patterns import detect, pattern_names
from runtime.queues import QUEUES, ROUTES
from runtime.settings import Settings
from tasks.base import Resources
from tasks.detect import Detection, find_signals, read_signals
from tests.binance_server import binance_server
from tests.real_candles import real_candles
from tests.trained import train

pytestmark = pytest.mark.inference

HOUR = timedelta(hours=1)
NOW = datetime(2019, 9, 1, 2, 1, tzinfo=UTC)
"""A minute after a close. The stored candles go on for another month, as in a replay."""


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> datetime:
        return self.moment


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def resources(database_url: str, redis_url: str, clock: Clock) -> Iterator[Resources]:
    settings = Settings(database_url=SecretStr(database_url), redis_url=SecretStr(redis_url))
    made = Resources(lambda: settings, lambda _: clock)
    yield made
    made.engine.dispose()


@pytest.fixture
def app(resources: Resources, redis_url: str) -> Iterator[Celery]:
    """The tasks on a real broker that no worker consumes: what is sent stays to be looked at."""
    with Celery("detector", broker=redis_url, set_as_current=False) as app:
        app.conf.update(task_routes=ROUTES, task_default_queue="maintenance")
        app.resources = resources
        yield app


@pytest.fixture
def bitcoin(engine: Engine) -> Candles:
    """About 17,500 real hours, stored."""
    series = real_candles()
    with transaction(engine) as session:
        store.write(session, symbol="BTCUSDT", interval="1h", candles=series, source="test", now=NOW)
    return series


def read(engine: Engine, now: datetime, *, max_age_bars: float = 1.0) -> Detection:
    with transaction(engine) as session:
        return read_signals(session, symbol="BTCUSDT", interval="1h", now=now, max_age_bars=max_age_bars)


def run(app: Celery, task: str, *args: str, **options: Any) -> Any:
    return app.tasks[task].apply(args=args, throw=True, **options).get()


def sent(redis_url: str, queue: str) -> list[dict[str, Any]]:
    """The messages that wait in a queue, oldest first, with their decoded body."""
    with redis.Redis.from_url(redis_url) as client:
        raw = [json.loads(text) for text in cast("list[bytes]", client.lrange(queue, 0, -1))]
    for message in raw:
        message["body"] = json.loads(base64.b64decode(message["body"]))
    return raw[::-1]


def until(series: Candles, moment: datetime) -> Candles:
    return series.until(moment)


def test_signals_of_any_moment_are_those_of_the_whole_history(engine: Engine, bitcoin: Candles) -> None:
    whole = clean(bitcoin).candles
    found = detect(whole)
    rows = np.random.default_rng(3).integers(2_000, len(whole), 60)
    seen = 0
    for row in rows.tolist():
        close = to_datetime(whole.close_time[row])
        here = np.flatnonzero(found.at == row)
        expected = [(int(found.direction[i]), pattern_names(int(found.patterns[i]))) for i in here]
        detection = read(engine, close + timedelta(minutes=1))
        assert [(one.direction, one.patterns) for one in detection.signals] == expected
        assert detection.close_time == close
        assert detection.reason == (None if expected else "no_pattern")
        seen += len(expected)
    assert seen > 30


def test_candle_gives_signals_until_the_age_limit_and_not_after(engine: Engine, bitcoin: Candles) -> None:
    close = NOW.replace(minute=0)
    with transaction(engine) as session:  # the next two candles never came
        session.execute(
            sa.text("DELETE FROM candles WHERE open_time >= :close AND open_time < :later"),
            {"close": close, "later": close + 2 * HOUR},
        )
    assert len(read(engine, close + HOUR).signals) == 1
    late = read(engine, close + HOUR + timedelta(seconds=1))
    assert (late.reason, late.signals, late.close_time) == ("stale_signal", (), close)
    assert read(engine, close + 2 * HOUR, max_age_bars=2.0).signals != ()


def test_noisy_newest_candle_gives_no_signal_and_neither_does_the_one_before(
    engine: Engine, bitcoin: Candles
) -> None:
    known = until(bitcoin, NOW)
    assert find_signals(known, symbol="BTCUSDT", now=NOW, max_age_bars=1.0).signals != ()
    flat = {name: getattr(known, name).copy() for name in ("open", "high", "low", "close")}
    for prices in flat.values():
        prices[-1] = known.close[-1]
    before = find_signals(known.slice(0, len(known) - 1), symbol="BTCUSDT", now=NOW, max_age_bars=2.0)
    assert before.signals != ()

    noisy = find_signals(replace(known, **flat), symbol="BTCUSDT", now=NOW, max_age_bars=2.0)

    assert (noisy.reason, noisy.noise, noisy.signals) == ("noisy_candle", "flat", ())
    assert noisy.close_time == NOW.replace(minute=0)


def test_series_without_a_candle_says_so(engine: Engine, bitcoin: Candles) -> None:
    with transaction(engine) as session:
        other = read_signals(session, symbol="ETHUSDT", interval="1h", now=NOW, max_age_bars=1.0)
    assert (other.reason, other.close_time) == ("no_candle", None)
    # Nothing is known before the first candle closed, though it is stored already.
    assert read(engine, datetime(2017, 9, 1, tzinfo=UTC)).reason == "no_candle"
    with transaction(engine) as session, pytest.raises(KeyRejected, match="symbol"):
        read_signals(session, symbol="../../etc", interval="1h", now=NOW, max_age_bars=1.0)


def test_request_holds_the_wire_contract_and_a_second_run_sends_the_same(
    app: Celery, redis_url: str, bitcoin: Candles
) -> None:
    request_id = run(app, "tasks.detect_signals", "BTCUSDT")
    assert run(app, "tasks.detect_signals", "BTCUSDT", "1h") == request_id

    first, second = sent(redis_url, "inference")
    assert [message["body"][1] for message in (first, second)] == [{"request_id": request_id}] * 2
    # A worker that met an expired task takes no other of its id.
    assert first["headers"]["id"] != second["headers"]["id"]
    assert first["body"] == second["body"]
    whole = detect(bitcoin)
    [at] = np.flatnonzero(whole.at == len(until(bitcoin, NOW)) - 1)
    [[signals], kwargs, _embed] = first["body"]
    assert signals == [
        {
            "id": "BTCUSDT/1h/2019-09-01T02:00Z/short",
            "symbol": "BTCUSDT",
            "interval": "1h",
            "time": "2019-09-01T02:00:00+00:00",
            "direction": -1,
            "patterns": list(pattern_names(int(whole.patterns[at]))),
        }
    ]
    assert kwargs == {"request_id": request_id}
    headers = first["headers"]
    assert (headers["task"], headers["ignore_result"]) == ("tasks.predict", True)
    left = datetime.fromisoformat(headers["expires"]) - datetime.now(UTC)
    assert timedelta(minutes=55) < left <= HOUR


def test_another_candle_is_another_request(app: Celery, clock: Clock, bitcoin: Candles) -> None:
    ids = set()
    for _ in range(8):
        ids.add(run(app, "tasks.detect_signals", "BTCUSDT"))
        clock.moment += HOUR
    assert len(ids - {None}) >= 5


def test_nothing_is_sent_where_no_pattern_fired_or_the_candle_is_old(
    app: Celery, redis_url: str, clock: Clock, bitcoin: Candles, engine: Engine
) -> None:
    while read(engine, clock.moment).reason != "no_pattern":
        clock.moment += HOUR
    assert run(app, "tasks.detect_signals", "BTCUSDT") is None
    clock.moment = datetime(2019, 12, 1, tzinfo=UTC)
    assert run(app, "tasks.detect_signals", "BTCUSDT") is None
    assert sent(redis_url, "inference") == []


def test_promotion_between_two_runs_changes_nothing_of_the_request(
    app: Celery, redis_url: str, resources: Resources, bitcoin: Candles
) -> None:
    run(app, "tasks.detect_signals", "BTCUSDT")
    for index, regime in enumerate(("trending", "all")):
        train(resources, ModelKey("BTCUSDT", "1h", regime), NOW.replace(hour=0) - index * 5_000 * HOUR)
        run(app, "tasks.detect_signals", "BTCUSDT")
    # A prediction's id is made of its request's id and all that its signal holds.
    first, *others = [message["body"] for message in sent(redis_url, "inference")]
    assert others == [first, first]


@pytest.fixture
def exchange_app(app: Celery, resources: Resources, clock: Clock) -> Iterator[Celery]:
    """The app of a system whose exchange has BTCUSDT, 10 days of it."""
    clock.moment = NOW
    with binance_server(NOW) as server:
        server.offer("BTCUSDT", real_candles().slice(len(real_candles()) - 1_000, len(real_candles())))
        settings = resources.settings.model_copy(update={"exchange_url": server.url})
        app.resources = Resources(lambda: settings, lambda _: clock)
        yield app
        app.resources.engine.dispose()


def test_sync_that_brought_candles_sends_the_series_to_the_detector(
    exchange_app: Celery, redis_url: str
) -> None:
    assert run(exchange_app, "tasks.sync_candles", "BTCUSDT")["inserted"] > 200
    [message] = sent(redis_url, "maintenance")
    assert message["headers"]["task"] == "tasks.detect_signals"
    assert message["body"][0] == ["BTCUSDT", "1h"]
    assert message["headers"]["expires"] is not None


def test_sync_that_brought_none_sends_nothing_unless_its_first_run_was_cut_off(
    exchange_app: Celery, redis_url: str
) -> None:
    run(exchange_app, "tasks.sync_candles", "BTCUSDT")
    assert run(exchange_app, "tasks.sync_candles", "BTCUSDT", "1h")["inserted"] == 0
    assert len(sent(redis_url, "maintenance")) == 1
    # It is run again because the broker was away, or its worker was killed, after the candles were written.
    run(exchange_app, "tasks.sync_candles", "BTCUSDT", retries=1)
    assert len(sent(redis_url, "maintenance")) == 2


def test_detector_is_routed_to_a_queue_that_workers_consume() -> None:
    assert ROUTES["tasks.detect_signals"]["queue"] in QUEUES
