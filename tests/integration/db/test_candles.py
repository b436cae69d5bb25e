from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import candles
from db.models import CandleRow
from db.session import transaction
from ml.candles import OHLCV, Candles
from ml.errors import CandlesRejected, KeyRejected
from tests.integration.db.rows import hourly, race, real_candles

pytestmark = pytest.mark.database

NOW = datetime(2020, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def write(
    engine: Engine, given: Candles, *, symbol: str = "BTCUSDT", now: datetime = NOW, source: str = "a"
) -> candles.Written:
    with transaction(engine) as session:
        return candles.write(
            session, symbol=symbol, interval=given.interval, candles=given, source=source, now=now
        )


def read(
    engine: Engine,
    *,
    known_at: datetime = NOW,
    symbol: str = "BTCUSDT",
    interval: str = "1h",
    start: datetime | None = None,
    end: datetime | None = None,
) -> Candles:
    with transaction(engine) as session:
        return candles.read(session, symbol, interval, known_at=known_at, start=start, end=end)


def fingerprint(engine: Engine, *, known_at: datetime = NOW) -> dict[str, str]:
    with transaction(engine) as session:
        return candles.fingerprint(session, "1h", known_at=known_at)


def assert_equal(found: Candles, expected: Candles) -> None:
    assert found.interval == expected.interval
    for name in ("open_time", *OHLCV):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


def changed(given: Candles, row: int, close: float) -> Candles:
    values = given.close.copy()
    values[row] = close
    return dataclasses.replace(given, close=values)


def test_real_candles_come_back_bit_for_bit(engine: Engine) -> None:
    given = real_candles()
    assert write(engine, given) == candles.Written(inserted=len(given), revised=0, unchanged=0)
    assert len(given) > 30_000
    assert_equal(read(engine, interval="30m"), given)


def test_writing_again_changes_nothing(engine: Engine) -> None:
    given = hourly(50)
    write(engine, given)
    before = fingerprint(engine)
    assert write(engine, given) == candles.Written(inserted=0, revised=0, unchanged=50)
    assert fingerprint(engine) == before
    with transaction(engine) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(CandleRow)) == 50


def test_overlapping_import_adds_only_what_is_new(engine: Engine) -> None:
    whole = hourly(50)
    write(engine, whole.slice(0, 30))
    assert write(engine, whole.slice(20, 50)) == candles.Written(inserted=20, revised=0, unchanged=10)
    assert_equal(read(engine), whole)


def test_revision_is_seen_from_the_moment_it_was_known_and_not_before(engine: Engine) -> None:
    first = hourly(10)
    corrected = changed(first, 4, 104.5)
    write(engine, first, now=NOW)
    assert write(engine, corrected, now=NOW + HOUR) == candles.Written(inserted=0, revised=1, unchanged=9)
    assert_equal(read(engine, known_at=NOW + HOUR - timedelta(microseconds=1)), first)
    assert_equal(read(engine, known_at=NOW + HOUR), corrected)


def test_revision_written_while_the_clock_stands_still_is_later_than_the_one_before(engine: Engine) -> None:
    first = hourly(3)
    for close in (100.5, 100.25, 100.75):
        write(engine, changed(first, 0, close), now=NOW)
    microsecond = timedelta(microseconds=1)
    # 100.5 is the first version, known at its close; the others at NOW and one microsecond after it.
    assert [read(engine, known_at=t).close[0] for t in (NOW - microsecond, NOW, NOW + microsecond)] == [
        100.5,
        100.25,
        100.75,
    ]


def test_revision_back_to_the_first_values_is_a_third_version(engine: Engine) -> None:
    first = hourly(3)
    write(engine, first, now=NOW)
    write(engine, changed(first, 1, 101.5), now=NOW + HOUR)
    assert write(engine, first, now=NOW + 2 * HOUR).revised == 1
    assert read(engine, known_at=NOW + HOUR).close[1] == 101.5
    assert_equal(read(engine, known_at=NOW + 2 * HOUR), first)


def test_candle_is_known_at_its_close_however_late_it_is_imported(engine: Engine) -> None:
    given = hourly(5, start="2019-01-01")
    write(engine, given, now=NOW)
    close_of_third = datetime(2019, 1, 1, 3, tzinfo=UTC)
    assert_equal(read(engine, known_at=close_of_third), given.slice(0, 3))
    assert_equal(read(engine, known_at=close_of_third - timedelta(microseconds=1)), given.slice(0, 2))


def test_start_is_included_and_end_is_not(engine: Engine) -> None:
    given = hourly(10, start="2019-01-01")
    write(engine, given)
    found = read(engine, start=datetime(2019, 1, 1, 2, tzinfo=UTC), end=datetime(2019, 1, 1, 5, tzinfo=UTC))
    assert_equal(found, given.slice(2, 5))


def test_reading_what_is_not_there_gives_no_candles(engine: Engine) -> None:
    assert len(read(engine)) == 0
    with transaction(engine) as session:
        assert candles.latest_open_time(session, "BTCUSDT", "1h") is None
        assert candles.series(session) == []


def test_series_counts_each_candle_once_and_names_every_source(engine: Engine) -> None:
    given = hourly(10, start="2019-01-01")
    write(engine, given, source="file")
    write(engine, changed(given, 2, 102.5), source="binance")
    write(engine, hourly(4, start="2018-12-31"), symbol="ETHUSDT", source="file")
    with transaction(engine) as session:
        assert candles.series(session) == [
            candles.Series(
                symbol="BTCUSDT",
                interval="1h",
                source="file, binance",
                rows=10,
                revisions=1,
                first_open=datetime(2019, 1, 1, tzinfo=UTC),
                last_open=datetime(2019, 1, 1, 9, tzinfo=UTC),
            ),
            candles.Series(
                symbol="ETHUSDT",
                interval="1h",
                source="file",
                rows=4,
                revisions=0,
                first_open=datetime(2018, 12, 31, tzinfo=UTC),
                last_open=datetime(2018, 12, 31, 3, tzinfo=UTC),
            ),
        ]
        assert candles.latest_open_time(session, "BTCUSDT", "1h") == datetime(2019, 1, 1, 9, tzinfo=UTC)


def test_fingerprint_changes_with_a_candle_a_revision_and_a_late_import_and_with_nothing_else(
    engine: Engine,
) -> None:
    cut = datetime(2019, 1, 1, 8, tzinfo=UTC)
    whole = hourly(12, start="2019-01-01")
    write(engine, whole.slice(2, 6))
    seen = [fingerprint(engine, known_at=cut)]
    write(engine, whole.slice(8, 12))  # closes after the cut
    write(engine, changed(whole, 3, 103.5).slice(3, 4), now=cut + HOUR)  # known after the cut
    assert fingerprint(engine, known_at=cut) == seen[0]
    write(engine, whole.slice(6, 8))  # closes by the cut
    seen.append(fingerprint(engine, known_at=cut))
    write(engine, whole.slice(0, 2))  # late import of what was known by the cut
    seen.append(fingerprint(engine, known_at=cut))
    seen.append(fingerprint(engine, known_at=cut + HOUR))
    assert len({value["BTCUSDT"] for value in seen}) == 4
    # Every candle of the cut in one import, in another order of writing, has the same fingerprint.
    write(engine, whole.slice(0, 8), symbol="ETHUSDT")
    both = fingerprint(engine, known_at=cut)
    assert both["ETHUSDT"] == both["BTCUSDT"]


def test_fingerprint_leaves_out_a_symbol_without_a_known_candle(engine: Engine) -> None:
    write(engine, hourly(2, start="2019-01-01"))
    assert fingerprint(engine, known_at=datetime(2019, 1, 1, tzinfo=UTC)) == {}


def test_concurrent_writers_of_one_series_write_each_candle_once(engine: Engine) -> None:
    whole = hourly(2000)
    results = race(
        *(partial(write, engine, whole.slice(first, first + 1250)) for first in (0, 250, 500, 750))
    )
    assert sum(result.inserted for result in results) == 2000
    assert sum(result.revised for result in results) == 0
    assert_equal(read(engine), whole)
    with transaction(engine) as session:
        assert [one.rows for one in candles.series(session)] == [2000]


def test_candles_of_another_interval_are_rejected(engine: Engine) -> None:
    with transaction(engine) as session, pytest.raises(CandlesRejected, match="interval"):
        candles.write(session, symbol="BTCUSDT", interval="30m", candles=hourly(2), source="a", now=NOW)


@pytest.mark.parametrize("symbol", ["'; drop table candles; --", "../../etc", "btcusdt", ""])
def test_nonsense_symbol_is_rejected_before_it_reaches_the_server(engine: Engine, symbol: str) -> None:
    with pytest.raises(KeyRejected):
        write(engine, hourly(2), symbol=symbol)
    with pytest.raises(KeyRejected):
        read(engine, symbol=symbol)


@pytest.mark.parametrize("close", [np.nan, np.inf, 0.0, -1.0])
def test_table_itself_refuses_a_price_that_is_none(engine: Engine, close: float) -> None:
    with pytest.raises(sa.exc.IntegrityError, match="ck_candles_close"):
        write(engine, changed(hourly(3), 1, close))
    assert len(read(engine)) == 0
