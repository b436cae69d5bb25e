"""The newest signals of each series in memory, as drift checks need them: keys of a series share them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from db import candles
from ml.candles import to_datetime, to_datetime64
from ml.keys import ALL_REGIMES, REGIMES, ModelKey, interval_duration
from tasks.markets import SPARE_CANDLES, newest_due

__all__ = ["NewestSignals", "SignalCache"]

CANDLES_A_ROW: Final = 8
"""Read at first for each row asked for: a candle has near one signal, a regime seldom under an eighth."""
MAX_SERIES: Final = 4
"""In memory at once, some MB each: checks come symbol by symbol."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewestSignals:
    """Signals of one series, in time order. Every array has n rows."""

    newest_close: datetime
    """Of the newest candle known, with a signal or not."""
    complete_after: datetime
    """Signals of candles that closed after it are all there."""
    close_time: NDArray[np.datetime64]
    regime: NDArray[np.int8]
    """Index into ``REGIMES``."""
    features: NDArray[np.float32]
    """(n, F), as ``ml.dataset.ROW_FEATURE_NAMES``."""

    def newest(self, key: ModelKey, rows: int, *, after: datetime) -> NDArray[np.float32]:
        """Features (m, F), m <= ``rows``, of the key's newest signals after ``after``, in time order.

        A regime's key has its own regime's signals only: a change of regime is routing, not drift.
        """
        of_key = self.close_time > to_datetime64(after)
        if key.regime != ALL_REGIMES:
            of_key &= self.regime == REGIMES.index(key.regime)
        return self.features[np.flatnonzero(of_key)[-rows:]]


@dataclass(frozen=True, slots=True)
class _Entry:
    signals: NewestSignals
    version: tuple[int, int]
    """Rows and revisions of the series when it was read."""
    due: datetime
    """Close of the newest candle that could have been read."""


class SignalCache:
    """The newest signals of a few series. Threads may share it."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._lock = threading.RLock()
        self.reads = 0

    def read(
        self, session: Session, key: ModelKey, *, rows: int, after: datetime, now: datetime
    ) -> NewestSignals | None:
        """Signals that hold the newest ``rows`` of the key's which closed after ``after``, or all of these.

        A few candles are read first; as far back as ``after`` only where these hold too few.

        Args:
            session: the caller's.
            key: whose signals.
            rows: how many.
            after: older ones are not asked for; aware.
            now: candles that closed later, or were corrected later, are not read.

        Returns:
            None where no candle is known by ``now``.
        """
        step = interval_duration(key.interval)
        near = max(after, now - CANDLES_A_ROW * rows * step)
        found = self._held(session, key, since=near, now=now)
        if found is not None and len(found.newest(key, rows, after=after)) >= rows:
            return found
        return self._held(session, key, since=after, now=now)

    def _held(
        self, session: Session, key: ModelKey, *, since: datetime, now: datetime
    ) -> NewestSignals | None:
        series = (key.symbol, key.interval)
        stored = candles.find_series(session, *series)
        if stored is None:
            return None
        version, due = (stored.rows, stored.revisions), newest_due(key.interval, now)
        with self._lock:
            entry = self._entries.get(series)
            current = entry is not None and (entry.version, entry.due) == (version, due)
            if entry is not None and current and entry.signals.complete_after <= since:
                self._entries.move_to_end(series)
                return entry.signals
            signals = _read(session, *series, since=since, now=now)
            self.reads += 1
            if signals is not None:
                self._entries[series] = _Entry(signals, version, due)
                self._entries.move_to_end(series)
                if len(self._entries) > MAX_SERIES:
                    self._entries.popitem(last=False)
            return signals


def _read(
    session: Session, symbol: str, interval: str, *, since: datetime, now: datetime
) -> NewestSignals | None:
    """As training makes them, but not labelled. Features look back on ``WINDOW`` candles before ``since``."""
    # Not above: beat and the command line import the tasks, and make no features.
    from ml.dataset import read_market, row_features
    from ml.features import WINDOW
    from ml.noise import clean
    from ml.patterns import PATTERN_WINDOW, detect

    start = since - (WINDOW + SPARE_CANDLES) * interval_duration(interval)
    raw = candles.read(session, symbol, interval, known_at=now, start=start)
    if not len(raw):
        return None
    cleaned = clean(raw).candles
    last = int(np.count_nonzero(cleaned.close_time > to_datetime64(since)))
    market = read_market(cleaned, last)
    tail = cleaned.slice(max(0, len(cleaned) - last - PATTERN_WINDOW))
    found = detect(tail)
    at = found.at - (len(tail) - last)
    kept = at >= 0
    kept[kept] = market.regime[at[kept]] >= 0
    at = at[kept]
    return NewestSignals(
        newest_close=to_datetime(raw.close_time[-1]),
        complete_after=since,
        close_time=market.candles.close_time[at],
        regime=market.regime[at],
        features=row_features(market, at, found.direction[kept], found.patterns[kept]),
    )
