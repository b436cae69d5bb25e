"""The OHLCV contract: what is refused and how it is named, gaps, exact resampling."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.candles import OHLCV, PRICES, Candles, Gap, find_gaps, resample, to_datetime, to_datetime64
from ml.errors import CandlesRejected, KeyRejected
from tests.real_candles import real_candles

pytestmark = pytest.mark.candles

START = np.datetime64("2019-01-01T00:00", "us")
HOUR = np.timedelta64(1, "h")


def hourly(n: int) -> Candles:
    """n flat candles of price 100, volume 1, each with a range of 98 to 102."""
    price = np.full(n, 100.0)
    return Candles("1h", START + np.arange(n) * HOUR, price, price + 2, price - 2, price, np.ones(n))


def changed(candles: Candles, field: str, row: int, value: object) -> Candles:
    column = getattr(candles, field).copy()
    column[row] = value
    return replace(candles, **{field: column})


def rejection(candles: Candles, now: datetime | None = None) -> CandlesRejected:
    with pytest.raises(CandlesRejected) as caught:
        candles.validate(now=now)
    return caught.value


@pytest.mark.parametrize("field", OHLCV)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_by_row_and_column(field: str, value: float) -> None:
    error = rejection(changed(hourly(9), field, 4, value))
    assert (error.field, error.limit) == (f"row 4, {field}", "a finite number")
    assert str(error.value) == str(value)


@pytest.mark.parametrize("field", PRICES)
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_price_not_over_zero_is_rejected(field: str, value: float) -> None:
    error = rejection(changed(hourly(9), field, 8, value))
    assert (error.field, error.value, error.limit) == (f"row 8, {field}", value, "a price over 0")


def test_a_negative_volume_is_rejected_and_a_zero_one_is_not() -> None:
    changed(hourly(3), "volume", 1, 0.0).validate()
    assert rejection(changed(hourly(3), "volume", 1, -0.5)).field == "row 1, volume"


def test_a_high_below_its_low_is_rejected() -> None:
    error = rejection(changed(hourly(3), "high", 2, 97.0))
    assert (error.field, error.value, error.limit) == ("row 2, high", 97.0, "at least the row's low")


def test_unsorted_and_duplicate_times_are_rejected() -> None:
    duplicate = changed(hourly(5), "open_time", 3, START + 2 * HOUR)
    backwards = changed(hourly(5), "open_time", 3, START)
    for candles in (duplicate, backwards):
        error = rejection(candles)
        assert error.field == "row 3, open_time"
        assert "sorted, without duplicates" in error.limit


def test_a_time_off_the_grid_is_rejected() -> None:
    error = rejection(changed(hourly(5), "open_time", 2, START + 2 * HOUR + np.timedelta64(1, "s")))
    assert (error.field, error.value) == ("row 2, open_time", "2019-01-01T02:00:01.000000")


def test_a_missing_time_is_rejected() -> None:
    assert rejection(changed(hourly(5), "open_time", 0, np.datetime64("NaT"))).field == "row 0, open_time"


def test_a_candle_still_open_at_now_is_rejected_and_one_just_closed_is_not() -> None:
    closed = datetime(2019, 1, 1, 3, tzinfo=UTC)
    hourly(3).validate(now=closed)
    error = rejection(hourly(3), now=closed - timedelta(seconds=1))
    assert error.field == "row 2, open_time"


def test_of_several_bad_rows_the_first_is_named() -> None:
    candles = changed(changed(hourly(9), "open", 6, -1.0), "volume", 5, np.nan)
    assert rejection(candles).field == "row 5, volume"


@given(
    row=st.integers(0, 19),
    field=st.sampled_from(OHLCV),
    value=st.sampled_from([np.nan, np.inf, -np.inf, -1.0]),
    later=st.integers(0, 19),
)
def test_whatever_follows_the_first_bad_row_it_is_the_one_named(
    row: int, field: str, value: float, later: int
) -> None:
    candles = changed(hourly(20), field, row, value)
    if later > row:
        candles = changed(candles, "open_time", later, np.datetime64("NaT"))
    assert rejection(candles).field == f"row {row}, {field}"


def test_the_real_candles_keep_the_contract() -> None:
    real_candles().validate(now=datetime(2019, 10, 2, tzinfo=UTC))


def test_arrays_of_different_lengths_are_rejected() -> None:
    with pytest.raises(CandlesRejected, match="close"):
        Candles("1h", START + np.arange(3) * HOUR, *(np.ones(3),) * 3, np.ones(2), np.ones(3))


def test_an_unknown_interval_is_rejected() -> None:
    with pytest.raises(KeyRejected, match="interval"):
        Candles.empty("7m")


def test_a_frame_goes_in_and_comes_out_the_same() -> None:
    frame = real_candles().slice(0, 50).to_frame()
    pd.testing.assert_frame_equal(Candles.from_frame(frame, "1h").to_frame(), frame)
    assert str(frame.dtypes["open_time"]) == "datetime64[us, UTC]"


def test_naive_and_local_times_of_a_frame_become_utc() -> None:
    frame = hourly(2).to_frame()
    local = frame.assign(open_time=frame["open_time"].dt.tz_convert("Asia/Tokyo"))
    naive = frame.assign(open_time=frame["open_time"].dt.tz_localize(None))
    for given_frame in (local, naive):
        assert Candles.from_frame(given_frame, "1h").open_time.tolist() == hourly(2).open_time.tolist()


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [("close", ["x", "y"], "close"), ("open_time", [1.0, 2.0], "open_time"), ("volume", None, "volume")],
)
def test_a_frame_with_an_unusable_column_is_rejected_by_name(column: str, value: Any, named: str) -> None:
    frame = hourly(2).to_frame()
    broken = frame.drop(columns=column) if value is None else frame.assign(**{column: value})
    with pytest.raises(CandlesRejected) as caught:
        Candles.from_frame(broken, "1h")
    assert caught.value.field == named


def test_until_keeps_the_candles_closed_by_a_moment() -> None:
    moment = datetime(2019, 1, 1, 3, tzinfo=UTC)
    assert len(hourly(9).until(moment)) == 3
    assert len(hourly(9).until(moment - timedelta(microseconds=1))) == 2
    assert len(hourly(9).until(to_datetime64(moment))) == 3


def test_moments_keep_their_microseconds_and_need_a_zone() -> None:
    moment = datetime(2019, 1, 1, 3, 4, 5, 678901, tzinfo=UTC)
    assert to_datetime(to_datetime64(moment)) == moment
    with pytest.raises(ValueError, match="time zone"):
        to_datetime64(moment.replace(tzinfo=None))
    with pytest.raises(ValueError, match="NaT"):
        to_datetime(np.datetime64("NaT"))


def test_gaps_are_found_with_their_bounds_and_counts() -> None:
    candles = hourly(10).take(np.array([0, 1, 4, 5, 7, 8, 9]))
    assert find_gaps(candles) == (
        Gap(datetime(2019, 1, 1, 2, tzinfo=UTC), datetime(2019, 1, 1, 4, tzinfo=UTC), 2),
        Gap(datetime(2019, 1, 1, 6, tzinfo=UTC), datetime(2019, 1, 1, 7, tzinfo=UTC), 1),
    )
    assert find_gaps(hourly(10)) == find_gaps(Candles.empty("1h")) == ()


def test_a_resampled_candle_with_a_missing_part_is_dropped_and_the_others_are_exact() -> None:
    candles = Candles(
        "1h",
        START + np.array([1, 2, 3, 4, 5, 6, 7]) * HOUR,  # 00:00 is missing, so that 00:00 of 2h is not told
        open=np.array([1.0, 2, 3, 4, 5, 6, 7]),
        high=np.array([9.0, 4, 8, 6, 7, 8, 9]),
        low=np.array([1.0, 2, 1, 3, 5, 4, 6]),
        close=np.array([2.0, 3, 4, 5, 6, 7, 8]),
        volume=np.array([1.0, 0.5, 0.25, 2, 4, 8, 16]),
    )
    two = resample(candles, "4h")
    assert two.interval == "4h"
    assert two.open_time.tolist() == [datetime(2019, 1, 1, 4)]  # noqa: DTZ001 - numpy gives naive UTC
    found = [getattr(two, name).tolist() for name in OHLCV]
    assert found == [[4.0], [9.0], [3.0], [8.0], [30.0]]


def test_resampling_real_candles_agrees_with_pandas() -> None:
    candles = real_candles()
    frame = candles.to_frame().set_index("open_time")
    rules = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    groups = frame.resample("4h")
    expected = groups.agg(rules)[groups["close"].count() == 4]
    found = resample(candles, "4h").to_frame().set_index("open_time")
    pd.testing.assert_frame_equal(found, expected, check_freq=False, rtol=1e-12)
    assert len(found) < len(candles) / 4


@pytest.mark.parametrize("interval", ["30m", "1m", "2h", "x"])
def test_resampling_to_what_is_no_multiple_is_rejected(interval: str) -> None:
    with pytest.raises(KeyRejected, match="interval"):
        resample(hourly(9), interval)


def test_no_candles_are_fine_everywhere() -> None:
    empty = Candles.empty("1h")
    empty.validate()
    assert len(resample(empty, "1d")) == len(empty.until(datetime.now(UTC))) == 0
