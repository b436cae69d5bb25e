"""The spellings of a time, one by one and many at once."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from feeds.times import TIME_LIMIT, ZONE_LIMIT, TimeRejected, epoch_times, has_zone, is_epoch, parse_time

pytestmark = pytest.mark.candles

NEW_YEAR_2020 = 1_577_836_800


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-01T00:00:00Z",
        "2020-01-01 00:00:00+00:00",
        "2020-01-01T01:00:00+01:00",
        "2019-12-31T19:00:00.000-0500",
        "2020-01-01T00:00Z",
        " 2020-01-01T00:00:00.000000Z ",
        "1577836800",
        "1577836800000",
        "1577836800000000",
    ],
)
def test_one_moment_in_every_spelling_is_the_same_number(text: str) -> None:
    assert parse_time(text, assume_utc=False) == NEW_YEAR_2020 * 1_000_000


@pytest.mark.parametrize("text", ["2020-01-01 00:00:00", "2020-01-01T00:00", "2020-01-01"])
def test_time_without_zone_is_rejected_unless_told_to_take_it_as_utc(text: str) -> None:
    with pytest.raises(TimeRejected) as caught:
        parse_time(text, assume_utc=False)
    assert str(caught.value) == ZONE_LIMIT
    assert parse_time(text, assume_utc=True) == NEW_YEAR_2020 * 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "", "yesterday", "2020-02-31T00:00:00Z", "2020-01-01T25:00:00Z", "01/02/2020", "20200101",
        "1577836800.5", "-1577836800", "2020-01-01T00:00:00 Z", "nan", "١٥٧٧٨٣٦٨٠٠",
        "99999999999999999999", "2020-01-01T00:00:00ZZ",
    ],
)  # fmt: skip
def test_what_is_no_time_is_rejected(text: str) -> None:
    with pytest.raises(TimeRejected) as caught:
        parse_time(text, assume_utc=True)
    assert str(caught.value) == TIME_LIMIT


@pytest.mark.parametrize(
    ("number", "year"),
    [
        (946_684_800, 2000),
        (99_999_999_999, 5138),
        (946_684_800_000, 2000),
        (99_999_999_999_999, 5138),
        (946_684_800_000_000, 2000),
        (99_999_999_999_999_999, 5138),
    ],
)
def test_first_and_last_number_of_each_unit_are_taken(number: int, year: int) -> None:
    moment = datetime.fromtimestamp(parse_time(str(number), assume_utc=False) / 1e6, UTC)
    assert moment.year == year
    assert epoch_times(np.array([number]))[0].astype("datetime64[Y]") == np.datetime64(str(year))


@pytest.mark.parametrize("number", [0, 946_684_799, 100_000_000_000, 946_684_799_999, 10**14, 10**17])
def test_number_between_the_units_is_no_time(number: int) -> None:
    with pytest.raises(TimeRejected):
        parse_time(str(number), assume_utc=False)
    assert np.isnat(epoch_times(np.array([number]))).all()


def test_many_numbers_of_mixed_units_are_read_each_by_its_size() -> None:
    numbers = np.array([NEW_YEAR_2020, NEW_YEAR_2020 * 1000, 5, NEW_YEAR_2020 * 1_000_000])
    moment = np.datetime64("2020-01-01", "us")
    expected = np.array([moment, moment, np.datetime64("NaT"), moment])
    np.testing.assert_array_equal(epoch_times(numbers), expected)


def test_spelling_tells_number_from_iso_and_zone_from_none() -> None:
    assert [is_epoch(text) for text in ("1577836800", " 1 ", "1.5", "2020-01-01T00:00Z")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert [has_zone(text) for text in ("2020-01-01T00:00Z", "2020-01-01T00:00+01", "2020-01-01", "5")] == [
        True, True, False, False,
    ]  # fmt: skip
