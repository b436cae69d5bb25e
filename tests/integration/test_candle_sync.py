"""Candles from an exchange into a real PostgreSQL: pages, faults, kills, corrections."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import redis
from celery import Celery
from pydantic import SecretStr
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import candles as store
from db.session import transaction
from feeds import samples
from feeds.exchange import Exchange
from ml.candles import OHLCV, Candles, Gap, resample
from ml.errors import CandlesRejected, ExchangeUnavailable, InputRejected, KeyRejected
from runtime.queues import ROUTES
from runtime.settings import Settings, load_settings
from tasks.base import Resources
from tasks.candles import Synced, sync
from tests.binance_server import BinanceServer, Fault, binance_server
from tests.processes import CommandResult, RunningProcess, script
from worker.clock import make_clock

pytestmark = pytest.mark.candles

START = datetime(2018, 4, 1, tzinfo=UTC)
NOW = datetime(2018, 6, 10, 0, 10, tzinfo=UTC)
"""70 days: 3,360 half-hours, four pages; the exchange lacks one of them."""
GAP = Gap(datetime(2018, 6, 5, 14, 0, tzinfo=UTC), datetime(2018, 6, 5, 14, 30, tzinfo=UTC), 1)

REPLAY_SETTINGS = {"ALPHAPLUS_CLOCK", "ALPHAPLUS_REPLAY_START"}

Sync = Callable[..., Synced]


@pytest.fixture(scope="session")
def bitcoin() -> Candles:
    return samples.load("BTCUSDT", now=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def server(bitcoin: Candles) -> Iterator[BinanceServer]:
    with binance_server(NOW) as server:
        server.offer("BTCUSDT", bitcoin)
        yield server


@pytest.fixture
def run_sync(server: BinanceServer, engine: Engine) -> Iterator[Sync]:
    """``sync`` of BTCUSDT 30m from START on, unless told otherwise; waits between attempts are skipped."""

    def begin() -> AbstractContextManager[Session]:
        return transaction(engine)

    def run(**options: object) -> Synced:
        arguments = {"symbol": "BTCUSDT", "interval": "30m", "now": server.now, "since": START} | options
        return sync(exchange, begin, **arguments)  # type: ignore[arg-type]

    with closing(Exchange("binance", url=server.url, timeout_seconds=2.0, sleep=lambda _: None)) as exchange:
        yield run


def stored(engine: Engine, known_at: datetime = NOW) -> Candles:
    with transaction(engine) as session:
        return store.read(session, "BTCUSDT", "30m", known_at=known_at)


def span(candles: Candles, start: datetime, end: datetime) -> Candles:
    """Candles that opened at ``start`` or later and closed by ``end``."""
    return candles.until(end).take(candles.until(end).open_time >= np.datetime64(start.replace(tzinfo=None)))


def assert_same(first: Candles, second: Candles) -> None:
    for name in ("open_time", *OHLCV):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def starts(server: BinanceServer) -> list[datetime]:
    """``startTime`` of each klines request."""
    return [
        datetime.fromtimestamp(int(query["startTime"]) / 1000, UTC)
        for query in server.klines_asked()
        if "startTime" in query
    ]


def test_first_sync_pages_through_all_closed_candles_and_reports_the_gap(
    run_sync: Sync, server: BinanceServer, engine: Engine, bitcoin: Candles
) -> None:
    done = run_sync()
    assert done == Synced(
        symbol="BTCUSDT",
        interval="30m",
        source="binance",
        inserted=3_359,
        pages=4,
        newest=datetime(2018, 6, 9, 23, 30, tzinfo=UTC),
        gaps=(GAP,),
    )
    assert_same(stored(engine), span(bitcoin, START, NOW))
    page = timedelta(minutes=30 * 1000)
    assert starts(server) == [START, START + page, START + 2 * page, START + 3 * page]


def test_second_sync_reads_three_candles_again_and_changes_nothing(
    run_sync: Sync, server: BinanceServer
) -> None:
    run_sync()
    server.requests.clear()
    again = run_sync(since=None)
    assert (again.inserted, again.revised, again.unchanged, again.pages, again.gaps) == (0, 0, 3, 1, ())
    assert starts(server) == [datetime(2018, 6, 9, 22, 30, tzinfo=UTC)]


def test_candle_is_stored_once_it_has_closed_by_both_clocks(
    run_sync: Sync, server: BinanceServer, engine: Engine, bitcoin: Candles
) -> None:
    run_sync()
    later = datetime(2018, 6, 10, 1, 0, tzinfo=UTC)
    server.now = datetime(2018, 6, 10, 0, 59, 59, tzinfo=UTC)
    assert run_sync(now=later).inserted == 1
    server.now = datetime(2018, 6, 10, 1, 20, tzinfo=UTC)
    assert run_sync(now=later - timedelta(seconds=1)).inserted == 0
    assert run_sync(now=later).inserted == 1
    assert_same(stored(engine, later), span(bitcoin, START, later))


def test_corrected_candle_becomes_a_new_version(
    run_sync: Sync, server: BinanceServer, engine: Engine, bitcoin: Candles
) -> None:
    run_sync()
    before = stored(engine)
    volume = bitcoin.volume.copy()
    volume[bitcoin.open_time == before.open_time[-2]] += 1.0
    server.offer("BTCUSDT", replace(bitcoin, volume=volume))
    server.now = NOW + timedelta(minutes=5)
    done = run_sync()
    assert (done.inserted, done.revised, done.unchanged) == (0, 1, 2)
    assert_same(stored(engine, NOW), before)
    assert stored(engine, server.now).volume[-2] == before.volume[-2] + 1.0


def test_faults_of_every_kind_in_one_run_cost_no_candle(
    run_sync: Sync, server: BinanceServer, engine: Engine, bitcoin: Candles
) -> None:
    server.faults.extend(
        [
            Fault(status=429, headers={"Retry-After": "7"}, body="{}"),
            Fault(),
            Fault(status=500, body="oops"),
            Fault(drop=True),
            Fault(),
            Fault(wait_seconds=20.0),
            Fault(body="<html>"),
        ]
    )
    assert run_sync().inserted == 3_359
    assert_same(stored(engine), span(bitcoin, START, NOW))


def test_exchange_that_stays_away_leaves_whole_pages_and_the_next_run_goes_on_from_them(
    run_sync: Sync, server: BinanceServer, engine: Engine, bitcoin: Candles
) -> None:
    server.faults.extend([Fault(), Fault(), *[Fault(status=503, body="")] * 6])
    with pytest.raises(ExchangeUnavailable):
        run_sync()
    assert len(stored(engine)) == 2_000
    server.requests.clear()
    done = run_sync()
    assert (done.inserted, done.unchanged) == (1_359, 3)
    assert starts(server)[0] == START + timedelta(minutes=30 * 1997)
    assert_same(stored(engine), span(bitcoin, START, NOW))


def test_earlier_since_reads_backwards_page_by_page_so_that_a_broken_run_leaves_no_hole(
    run_sync: Sync, server: BinanceServer, engine: Engine, bitcoin: Candles
) -> None:
    since = START - timedelta(days=50)
    run_sync(since=datetime(2018, 6, 9, tzinfo=UTC))
    # One page goes forward; of those that go backward the third fails.
    server.faults.extend([Fault(), Fault(), Fault(), *[Fault(status=500, body="")] * 6])
    with pytest.raises(ExchangeUnavailable):
        run_sync(since=since)
    assert len(stored(engine)) == 48 + 2_000
    done = run_sync(since=since)
    # The half-hour of 2018-03-21 11:00 is missing, too.
    assert [gap.missing for gap in done.gaps] == [1, 1]
    assert done.inserted == 120 * 48 - 2 - 48 - 2_000
    assert_same(stored(engine), span(bitcoin, since, NOW))


def test_candles_of_another_source_are_continued_and_never_revised(
    run_sync: Sync, engine: Engine, bitcoin: Candles
) -> None:
    early = span(bitcoin, START, START + timedelta(days=60))
    doubled = replace(early, volume=early.volume * 2)
    with transaction(engine) as session:
        store.write(
            session, symbol="BTCUSDT", interval="30m", candles=doubled, source="another exchange", now=NOW
        )
    done = run_sync(since=None)
    assert (done.inserted, done.revised, done.unchanged) == (10 * 48 - 1, 0, 0)
    with transaction(engine) as session:
        assert [one.source for one in store.series(session)] == ["another exchange, binance"]


def test_first_sync_without_since_reaches_back_two_years(run_sync: Sync, server: BinanceServer) -> None:
    done = run_sync(since=None)
    assert starts(server)[0] == NOW - timedelta(days=730)
    # The exchange's own first candle is of 2017-10-01.
    assert done.inserted == 252 * 48 - 2


def test_bad_candles_stop_the_run_before_their_page_is_written(
    run_sync: Sync, server: BinanceServer, engine: Engine, bitcoin: Candles
) -> None:
    high = bitcoin.high.copy()
    wrong = int(np.flatnonzero(bitcoin.open_time == np.datetime64("2018-05-01T00:00"))[0])
    high[wrong] = 1.0
    server.offer("BTCUSDT", replace(bitcoin, high=high))
    with pytest.raises(CandlesRejected, match=r"candle 2018-05-01T00:00:00.*high: 1\.0 is not accepted"):
        run_sync()
    assert len(stored(engine)) == 1_000


def test_wrong_input_is_refused_by_name_and_asks_for_no_candle(
    run_sync: Sync, server: BinanceServer, engine: Engine
) -> None:
    wrong: list[tuple[dict[str, object], type[InputRejected], str]] = [
        ({"symbol": "../../etc"}, KeyRejected, "symbol"),
        ({"symbol": "NONEUSDT"}, KeyRejected, "symbol"),
        ({"interval": "2h"}, KeyRejected, "interval"),
        ({"since": NOW}, InputRejected, "since"),
    ]
    for options, error, field in wrong:
        with pytest.raises(error) as caught:
            run_sync(**options)
        assert caught.value.field == field
    assert server.klines_asked() == []
    assert len(stored(engine)) == 0


@pytest.fixture
def sync_env(server: BinanceServer) -> dict[str, str]:
    """Settings that make ``alphaplus`` ask the test's exchange, at the time where its candles end."""
    return {
        "ALPHAPLUS_EXCHANGE_URL": server.url,
        "ALPHAPLUS_SYMBOLS": "BTCUSDT",
        "ALPHAPLUS_DEFAULT_INTERVAL": "30m",
        "ALPHAPLUS_CLOCK": "replay",
        "ALPHAPLUS_REPLAY_START": NOW.isoformat(),
    }


def test_command_that_is_killed_between_pages_is_taken_up_by_the_next(
    run_cli: Callable[..., CommandResult],
    processes: Callable[..., RunningProcess],
    settings_env: dict[str, str],
    sync_env: dict[str, str],
    server: BinanceServer,
    engine: Engine,
    bitcoin: Candles,
) -> None:
    server.faults.extend([Fault(), Fault(), Fault(wait_seconds=60.0)])
    command = [script("alphaplus"), "candles", "sync", "--since", "2018-04-01"]
    process = processes(command, settings_env | sync_env)
    deadline = time.monotonic() + 60
    while len(server.klines_asked()) < 3:
        assert process.running
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.popen.kill()
    assert process.popen.wait(10) == -signal.SIGKILL
    assert_same(stored(engine), span(bitcoin, START, START + timedelta(minutes=30 * 2000)))
    result = run_cli("candles", "sync", "--since", "2018-04-01", "--json", env=sync_env)
    assert (result.exit_code, result.stderr) == (0, "")
    [done] = json.loads(result.stdout)
    assert (done["inserted"], done["unchanged"], done["newest"]) == (1_359, 3, "2018-06-09T23:30:00+00:00")
    assert done["gaps"] == [
        {"start": "2018-06-05T14:00:00+00:00", "end": "2018-06-05T14:30:00+00:00", "missing": 1}
    ]
    assert_same(stored(engine), span(bitcoin, START, NOW))


def test_fan_out_sends_a_task_for_each_symbol_and_a_second_run_changes_nothing(
    worker_process: Callable[..., RunningProcess],
    redis_url: str,
    run_sync: Sync,
    server: BinanceServer,
    sync_env: dict[str, str],
    engine: Engine,
    bitcoin: Candles,
) -> None:
    run_sync(since=START + timedelta(days=60))
    server.now = NOW + timedelta(hours=5)
    # By the wall's clock: the exchange's own, which stands in 2018, says which candles have closed.
    wall = {name: value for name, value in sync_env.items() if name not in REPLAY_SETTINGS}
    worker_process("maintenance", "--pool=solo", env=wall)
    with Celery("sender", broker=redis_url, backend=redis_url, set_as_current=False) as sender:
        sent = sender.send_task("tasks.sync_all_candles", queue="maintenance")
        assert sent.get(timeout=60) == ["BTCUSDT"]
        # One worker takes them in order, so the fan-out's message is done before this one.
        again = sender.send_task("tasks.sync_candles", args=["BTCUSDT"], queue="maintenance").get(timeout=60)
    assert (again["inserted"], again["revised"], again["unchanged"]) == (0, 0, 3)
    assert_same(stored(engine, server.now), span(bitcoin, START + timedelta(days=60), server.now))


def test_fan_out_sends_only_for_series_whose_next_candle_has_closed(
    database_url: str, redis_url: str, engine: Engine, bitcoin: Candles
) -> None:
    class Clock:
        moment = NOW

        def now(self) -> datetime:
            return self.moment

    clock = Clock()
    settings = Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        symbols=("BTCUSDT", "ETHUSDT", "SOLUSDT"),
        default_interval="30m",
    )
    closed = NOW.replace(minute=0)
    # Of SOLUSDT another interval is stored, its own candle of two days ago was the last of ETHUSDT.
    for symbol, interval, end in [
        ("BTCUSDT", "30m", closed),
        ("ETHUSDT", "30m", closed - timedelta(days=2)),
        ("SOLUSDT", "1h", closed),
    ]:
        series = span(bitcoin, end - timedelta(days=1), end)
        with transaction(engine) as session:
            store.write(
                session,
                symbol=symbol,
                interval=interval,
                candles=series if interval == "30m" else resample(series, interval),
                source="binance",
                now=NOW,
            )
    with Celery("minute", broker=redis_url, set_as_current=False) as app:
        app.conf.update(task_routes=ROUTES, task_default_queue="maintenance")
        app.resources = Resources(lambda: settings, lambda _: clock)

        def sent_at(moment: datetime) -> list[str]:
            clock.moment = moment
            return list(app.tasks["tasks.sync_all_candles"].apply(throw=True).get())

        assert sent_at(closed) == ["ETHUSDT", "SOLUSDT"]
        assert sent_at(closed + timedelta(minutes=30, microseconds=-1)) == ["ETHUSDT", "SOLUSDT"]
        assert sent_at(closed + timedelta(minutes=30)) == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
        # The exchange is late: once more, a minute later.
        assert sent_at(closed + timedelta(minutes=31)) == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
        app.resources.engine.dispose()
    with redis.Redis.from_url(redis_url) as client:
        raw: Any = client.lrange("maintenance", 0, -1)
    messages = [json.loads(text) for text in raw]
    assert len(messages) == 10
    for message in messages:
        left = datetime.fromisoformat(message["headers"]["expires"]) - datetime.now(UTC)
        assert left <= timedelta(seconds=60)


def test_fan_out_in_a_replay_asks_no_exchange(
    sync_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sync_env.items():
        monkeypatch.setenv(name, value)
    with Celery("replay", set_as_current=False) as app:
        app.resources = Resources(load_settings, make_clock)
        assert app.tasks["tasks.sync_all_candles"].apply(throw=True).get() == []
