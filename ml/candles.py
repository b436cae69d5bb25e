"""The OHLCV contract: dtypes, order, gaps, resampling. Nothing is ever filled in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ml.errors import CandlesRejected, KeyRejected
from ml.keys import interval_duration

if TYPE_CHECKING:
    import pandas as pd  # 0.5 s to import: a command that only writes candles does without

__all__ = [
    "OHLCV",
    "PRICES",
    "Candles",
    "Fault",
    "Gap",
    "find_gaps",
    "resample",
    "to_datetime",
    "to_datetime64",
]

PRICES = ("open", "high", "low", "close")
OHLCV = (*PRICES, "volume")


def to_datetime64(moment: datetime) -> np.datetime64:
    """An aware datetime as ``datetime64[us]``, UTC.

    Raises:
        ValueError: ``moment`` has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; expected an aware datetime")
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def to_datetime(moment: np.datetime64) -> datetime:
    """A ``datetime64`` (UTC by contract) as an aware datetime.

    Raises:
        ValueError: ``moment`` is NaT.
    """
    if np.isnat(moment):
        raise ValueError("NaT is no moment")
    plain: datetime = moment.astype("datetime64[us]").item()
    return plain.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which candles break their contract."""

    row: int
    """Counted from 0."""
    field: str
    value: str | float
    limit: str
    """What would be accepted."""


@dataclass(frozen=True, slots=True, eq=False)
class Candles:
    """Candles of one symbol and interval. Every array has shape (n,).

    By contract (``validate`` checks it): sorted by ``open_time``, unique, on the interval's grid from
    the Unix epoch, prices finite and over 0, volume finite and 0 or more. Missing candles are missing rows.

    Raises:
        KeyRejected: ``interval`` is not of ``INTERVALS``.
        CandlesRejected: arrays of different lengths or with more than one dimension.
    """

    interval: str
    open_time: NDArray[np.datetime64]
    """``datetime64[us]``, UTC."""
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]

    def __post_init__(self) -> None:
        interval_duration(self.interval)
        object.__setattr__(self, "open_time", np.asarray(self.open_time, dtype="datetime64[us]"))
        for name in OHLCV:
            # Contiguous float64 is what TA-Lib's C reads; a no-op for arrays that are so already.
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float64))
        if self.open_time.ndim != 1:
            raise CandlesRejected("open_time", self.open_time.ndim, "an array of one dimension")
        for name in OHLCV:
            shape = getattr(self, name).shape
            if shape != self.open_time.shape:
                raise CandlesRejected(name, shape, f"the shape of open_time, {self.open_time.shape}")

    def __len__(self) -> int:
        return len(self.open_time)

    @property
    def step(self) -> np.timedelta64:
        """Length of one candle, ``timedelta64[us]``."""
        return np.timedelta64(interval_duration(self.interval), "us")

    @property
    def close_time(self) -> NDArray[np.datetime64]:
        """(n,) when each candle was complete: its open time plus the interval."""
        return self.open_time + self.step

    def take(self, where: NDArray[Any] | slice) -> Self:
        """Candles selected by a slice, a boolean mask or an index array."""
        return type(self)(
            self.interval, self.open_time[where], *(getattr(self, name)[where] for name in OHLCV)
        )

    def slice(self, start: int | None, stop: int | None = None) -> Self:
        """Rows ``start:stop``, as Python slices count."""
        return self.take(slice(start, stop))

    def until(self, close_time_at_most: datetime | np.datetime64) -> Self:
        """Candles that were complete at a moment (``close_time <= close_time_at_most``)."""
        moment = close_time_at_most
        limit = moment if isinstance(moment, np.datetime64) else to_datetime64(moment)
        return self.slice(0, int(np.searchsorted(self.close_time, limit, side="right")))

    @classmethod
    def empty(cls, interval: str) -> Self:
        """No candles."""
        return cls(interval, np.empty(0, "datetime64[us]"), *(np.empty(0) for _ in OHLCV))

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, interval: str) -> Self:
        """From columns ``open_time, open, high, low, close, volume``; others are ignored, the order is kept.

        ``open_time`` is datetime64 of any unit, aware or naive; naive times are taken as UTC. Values are not
        checked: call ``validate``.

        Raises:
            CandlesRejected: a column is missing, or cannot be read as time or number.
        """
        import pandas as pd

        missing = [name for name in ("open_time", *OHLCV) if name not in frame.columns]
        if missing:
            raise CandlesRejected(missing[0], list(frame.columns), "columns open_time, " + ", ".join(OHLCV))
        open_time = frame["open_time"]
        if not pd.api.types.is_datetime64_any_dtype(open_time):
            raise CandlesRejected("open_time", str(open_time.dtype), "a datetime column")
        if isinstance(open_time.dtype, pd.DatetimeTZDtype):
            open_time = open_time.dt.tz_convert("UTC").dt.tz_localize(None)
        columns = []
        for name in OHLCV:
            try:
                columns.append(frame[name].to_numpy(dtype=np.float64))
            except (TypeError, ValueError) as error:
                raise CandlesRejected(name, str(frame[name].dtype), "a column of numbers") from error
        return cls(interval, open_time.to_numpy(dtype="datetime64[us]"), *columns)

    def to_frame(self) -> pd.DataFrame:
        """Columns ``open_time`` (aware, UTC), ``open, high, low, close, volume``; a fresh 0..n-1 index."""
        import pandas as pd

        times = pd.Series(self.open_time).dt.tz_localize("UTC")
        return pd.DataFrame({"open_time": times, **{name: getattr(self, name) for name in OHLCV}})

    def validate(self, *, now: datetime | None = None) -> None:
        """Check the contract of this class.

        Args:
            now: where given, no candle may close after it.

        Raises:
            CandlesRejected: names the first bad row, counted from 0, as ``row 17, close``.
        """
        fault = self.first_fault(now=now)
        if fault is not None:
            raise CandlesRejected(f"row {fault.row}, {fault.field}", fault.value, fault.limit)

    def first_fault(self, *, now: datetime | None = None) -> Fault | None:
        """What ``validate`` refuses first, or None.

        Of one row's faults the first of: open_time missing, off the grid, not after the row before it,
        closing in the future; a price or volume not finite; a price not over 0; volume below 0;
        high below low.
        """
        faults = [(field, bad, limit) for field, bad, limit in self._faults(now) if bad.any()]
        if not faults:
            return None
        # min keeps the first of equals, so the order of _faults decides inside one row.
        field, bad, limit = min(faults, key=lambda fault: int(np.argmax(fault[1])))
        row = int(np.argmax(bad))
        value = getattr(self, field)[row]
        shown = str(value) if field == "open_time" else float(value)
        return Fault(row, field, shown, limit)

    def _faults(self, now: datetime | None) -> list[tuple[str, NDArray[np.bool_], str]]:
        """(field, mask of bad rows, what is expected) of every check, in the order of ``validate``."""
        times = self.open_time
        not_after = np.zeros(len(self), dtype=bool)
        not_after[1:] = times[1:] <= times[:-1]
        off_grid = times.astype(np.int64) % self.step.astype(np.int64) != 0
        faults = [
            ("open_time", np.isnat(times), "a time"),
            ("open_time", off_grid, f"a whole number of {self.interval} since 1970-01-01T00:00Z"),
            ("open_time", not_after, "a time after the row before: sorted, without duplicates"),
        ]
        if now is not None:
            limit = to_datetime64(now)
            faults.append(("open_time", self.close_time > limit, f"a candle closed by {limit}Z"))
        faults += [(name, ~np.isfinite(getattr(self, name)), "a finite number") for name in OHLCV]
        faults += [(name, getattr(self, name) <= 0, "a price over 0") for name in PRICES]
        faults.append(("volume", self.volume < 0, "0 or more"))
        faults.append(("high", self.high < self.low, "at least the row's low"))
        return faults


@dataclass(frozen=True, slots=True)
class Gap:
    """A run of missing candles: opened at ``start`` up to, not including, ``end``. Aware, UTC."""

    start: datetime
    end: datetime
    missing: int


def find_gaps(candles: Candles) -> tuple[Gap, ...]:
    """Runs of missing candles between the first and the last, oldest first."""
    steps = np.diff(candles.open_time) // candles.step
    return tuple(
        Gap(
            start=to_datetime(candles.open_time[row] + candles.step),
            end=to_datetime(candles.open_time[row + 1]),
            missing=int(steps[row]) - 1,
        )
        for row in np.flatnonzero(steps > 1)
    )


def resample(candles: Candles, interval: str) -> Candles:
    """Candles of a longer interval, exact. A candle with a missing part is dropped, never guessed.

    Open of the first part, highest high, lowest low, close of the last part, sum of volumes.

    Raises:
        KeyRejected: ``interval`` is unknown, or not a whole multiple of the candles' own.
    """
    longer = np.timedelta64(interval_duration(interval), "us")
    if longer % candles.step != np.timedelta64(0, "us"):
        raise KeyRejected("interval", interval, f"a whole multiple of {candles.interval}")
    parts = int(longer // candles.step)
    group = candles.open_time.astype(np.int64) // longer.astype(np.int64)
    _, first, size = np.unique(group, return_index=True, return_counts=True)
    # On the grid and unique, so a group of `parts` rows has every part.
    rows = first[size == parts, None] + np.arange(parts)
    return Candles(
        interval,
        candles.open_time[rows[:, 0]],
        candles.open[rows[:, 0]],
        candles.high[rows].max(axis=1),
        candles.low[rows].min(axis=1),
        candles.close[rows[:, -1]],
        candles.volume[rows].sum(axis=1),
    )
