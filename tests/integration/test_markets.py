"""Candles in a worker's memory: when the database is asked, and when it is read."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy.engine import Engine

from db import candles
from db.session import transaction
from ml.candles import Candles
from ml.sightings import Window
from tasks.markets import MarketCache
from tests.real_candles import real_candles
from tests.trained import CUT

pytestmark = pytest.mark.inference

HOUR = timedelta(hours=1)


def store(engine: Engine, stored: Candles) -> None:
    with transaction(engine) as session:
        candles.write(session, symbol="BTCUSDT", interval="1h", candles=stored, source="test", now=CUT)


def newest(cache: MarketCache, now: datetime) -> datetime | None:
    """Close of the newest candle in the window of who asks at ``now`` for the newest one."""
    window = cache.window("BTCUSDT", "1h", [now], now=now)
    assert isinstance(window, Window)
    return window.newest_close()


@pytest.fixture
def cache(engine: Engine) -> MarketCache:
    return MarketCache(lambda: transaction(engine), check_seconds=3600, max_signal_age_bars=1)


def test_a_candle_that_is_not_stored_yet_is_looked_for_each_time_and_read_once_it_is(
    engine: Engine, cache: MarketCache
) -> None:
    store(engine, real_candles().until(CUT))
    seen = [newest(cache, now) for now in (CUT, CUT, CUT + HOUR, CUT + HOUR, CUT + HOUR)]
    assert seen == [CUT] * 5
    assert cache.reads == 2  # once, and once more because an hour had passed
    store(engine, real_candles().until(CUT + HOUR))
    assert [newest(cache, CUT + HOUR) for _ in range(3)] == [CUT + HOUR] * 3
    assert cache.reads == 3


def test_a_replay_finds_each_candle_as_its_hour_comes(engine: Engine, cache: MarketCache) -> None:
    store(engine, real_candles())
    hours = [CUT + hour * HOUR for hour in range(4)]
    assert [newest(cache, now) for now in hours] == hours
    assert cache.reads == 4


def test_signals_too_old_for_any_window_cost_no_reading(engine: Engine, cache: MarketCache) -> None:
    store(engine, real_candles().until(CUT))
    for _ in range(3):
        window = cache.window("BTCUSDT", "1h", [CUT - 5000 * HOUR, CUT], now=CUT)
        assert isinstance(window, Window)
        assert not window.covers(CUT - 5000 * HOUR)
    assert cache.reads == 1
