"""The newest candles of each series in memory, as answers need them."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.orm import Session

from db import candles
from ml.errors import StoreUnavailable
from ml.features import WINDOW
from ml.keys import interval_duration
from ml.sightings import Window

__all__ = ["MarketCache", "newest_due", "read_window"]

SPARE_CANDLES: Final = 128
"""Read beyond ``WINDOW``, so that a few missing candles leave enough, and a few new ones find room."""
MAX_SERIES: Final = 1024
"""In memory at once: some 150 kB each."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Entry:
    window: Window
    version: tuple[int, int]
    """Rows and revisions of the series when it was read."""
    due: datetime
    """Close of the newest candle that could have been read."""
    trusted_until: float


def newest_due(interval: str, now: datetime) -> datetime:
    """Close of the newest candle that can have closed by ``now`` (aware)."""
    return now - (now - _EPOCH) % interval_duration(interval)


def read_window(
    session: Session, symbol: str, interval: str, *, known_at: datetime, max_signal_age_bars: float
) -> Window:
    """The stored candles that signals of a series are seen in, as they were known at ``known_at`` (aware).

    Args:
        session: the caller's.
        symbol: as in ``ml.keys``.
        interval: as in ``ml.keys``.
        known_at: candles that closed later are not read.
        max_signal_age_bars: how far back signals may lie.
    """
    rows = WINDOW + SPARE_CANDLES + math.ceil(max_signal_age_bars)
    start = known_at - (rows + 1) * interval_duration(interval)
    return Window(candles.read(session, symbol, interval, known_at=known_at, start=start))


class MarketCache:
    """Windows of the stored series. Threads may share it.

    Args:
        transaction: opens one; called only where something has to be read.
        check_seconds: how long a window is trusted that holds the candle asked for; then the series is
            asked whether candles were added or revised.
        max_signal_age_bars: how far back signals may lie.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Session]],
        *,
        check_seconds: float,
        max_signal_age_bars: float,
    ) -> None:
        self._transaction = transaction
        self._check_seconds = check_seconds
        self._max_signal_age_bars = max_signal_age_bars
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._lock = threading.RLock()
        self.reads = 0

    def window(self, symbol: str, interval: str, times: Sequence[datetime], *, now: datetime) -> Window | str:
        """The window that holds the candles which closed at ``times``, as far as they are stored.

        Returns:
            The window, or ``unknown_series`` where nothing is stored of it, or ``store_unavailable`` where
            the window in memory does not hold all of them and the database cannot be asked.
        """
        series = (symbol, interval)
        with self._lock:
            entry = self._entries.get(series)
            held = entry is not None and all(map(entry.window.covers, {min(times), max(times)}))
            if entry is not None and held and time.monotonic() < entry.trusted_until:
                self._entries.move_to_end(series)
                return entry.window
            try:
                fresh = self._refresh(series, entry, now, held=held)
            except StoreUnavailable:
                return entry.window if entry is not None and held else "store_unavailable"
            if fresh is None:
                return "unknown_series"
            self._entries[series] = fresh
            self._entries.move_to_end(series)
            if len(self._entries) > MAX_SERIES:
                self._entries.popitem(last=False)
            return fresh.window

    def known_symbols(self, interval: str) -> list[str]:
        """Symbols of which candles of this interval are stored. Raises StoreUnavailable."""
        with self._transaction() as session:
            return candles.symbols(session, interval)

    def _refresh(
        self, series: tuple[str, str], entry: _Entry | None, known_at: datetime, *, held: bool
    ) -> _Entry | None:
        """The entry again if reading it would change nothing, else read anew; None where nothing is stored.

        Args:
            series: symbol and interval.
            entry: what is known of it.
            known_at: candles that closed later are not read.
            held: whether the candles asked for are in the entry. Those that are not may be too old for any
                window, or not stored yet: while an exchange is away everybody asks for one that is not.
        """
        due = newest_due(series[1], known_at)
        with self._transaction() as session:
            stored = candles.find_series(session, *series)
            if stored is None:
                return None
            version = (stored.rows, stored.revisions)
            trusted_until = time.monotonic() + self._check_seconds
            if entry is not None and entry.version == version and (held or entry.due == due):
                entry.trusted_until = trusted_until
                return entry
            age_bars = self._max_signal_age_bars
            window = read_window(session, *series, known_at=known_at, max_signal_age_bars=age_bars)
        self.reads += 1
        return _Entry(window, version, due, trusted_until)
