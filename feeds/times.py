"""The times that candle files are written in, read into microseconds since the Unix epoch, UTC.

Two spellings are taken:

- ISO 8601 with a zone: ``2024-04-20T23:00:00Z``, ``2024-04-20 23:00+02:00``. Without a zone only where
  the caller says that naive times are UTC.
- A whole number of seconds, milliseconds or microseconds since 1970-01-01T00:00Z. Its size tells the
  unit: read with the right one it lies in 2000 to 5138, and the three ranges do not touch.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["TIME_LIMIT", "ZONE_LIMIT", "TimeRejected", "epoch_times", "has_zone", "is_epoch", "parse_time"]

TIME_LIMIT: Final = "ISO 8601 with a zone, or seconds, ms or µs since 1970 (of the years 2000 to 5138)"
ZONE_LIMIT: Final = "a time with its zone, such as 2024-04-20T23:00:00Z (--assume-utc takes it as UTC)"

_FROM_YEAR_2000: Final = 946_684_800
_TO_YEAR_5138: Final = 100_000_000_000
_UNITS: Final = (1, 1_000, 1_000_000)
"""Parts of a second: of s, ms and µs."""

_DAY = r"\d{4}-\d\d-\d\d"
_CLOCK = r"[T ]\d\d(?::\d\d(?::\d\d(?:\.\d{1,6})?)?)?"
_ISO = re.compile(rf"{_DAY}(?:{_CLOCK}(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII)
_EPOCH = re.compile(r"\d{1,17}", re.ASCII)
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


class TimeRejected(ValueError):
    """Text that is no time; its message is what would be accepted."""


def is_epoch(text: str) -> bool:
    """Whether ``text`` is spelt as a number, whatever its size."""
    return _EPOCH.fullmatch(text.strip()) is not None


def has_zone(text: str) -> bool:
    """Whether ``text`` is ISO 8601 with a zone."""
    match = _ISO.fullmatch(text.strip())
    return match is not None and match["zone"] is not None


def parse_time(text: str, *, assume_utc: bool) -> int:
    """Microseconds since the epoch of one cell.

    Raises:
        TimeRejected: no time, or one without a zone while ``assume_utc`` is off.
    """
    text = text.strip()
    if is_epoch(text):
        return _epoch_of_one(int(text))
    match = _ISO.fullmatch(text)
    if match is None:
        raise TimeRejected(TIME_LIMIT)
    if match["zone"] is None and not assume_utc:
        raise TimeRejected(ZONE_LIMIT)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:  # 31 February, 25 o'clock
        raise TimeRejected(TIME_LIMIT) from error
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _START) // timedelta(microseconds=1)


def epoch_times(numbers: NDArray[np.int64]) -> NDArray[np.datetime64]:
    """(n,) ``datetime64[us]`` of numbers of any mixture of the three units; NaT where it is none of them."""
    times = np.full(len(numbers), np.datetime64("NaT"), dtype="datetime64[us]")
    for unit in _UNITS:
        of_unit = (numbers >= _FROM_YEAR_2000 * unit) & (numbers < _TO_YEAR_5138 * unit)
        times[of_unit] = (numbers[of_unit] * (1_000_000 // unit)).astype("datetime64[us]")
    return times


def _epoch_of_one(number: int) -> int:
    for unit in _UNITS:
        if _FROM_YEAR_2000 * unit <= number < _TO_YEAR_5138 * unit:
            return number * (1_000_000 // unit)
    raise TimeRejected(TIME_LIMIT)
