"""What the market looked like at a signal: regime and features from candles up to it, or why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from ml.candles import Candles, to_datetime, to_datetime64
from ml.dataset import Market, read_market, row_features
from ml.features import FEATURE_NAMES, WINDOW
from ml.noise import clean
from ml.patterns import newest_patterns
from ml.regimes import classify_measures
from ml.signals import SignalRequest

__all__ = ["Sighting", "Window", "sighting_of_features", "unseen"]

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sighting:
    """What the market looked like at a signal; ``missing`` says why it could not be seen."""

    time: datetime
    patterns: int = 0
    regime: int = -1
    features: Rows | None = None
    """(F,), as ``ROW_FEATURE_NAMES``."""
    entry_price: float | None = None
    atr: float | None = None
    missing: str | None = None


class Window:
    """Candles of one series as a worker holds them: cleaned once, features made on demand and kept.

    Args:
        raw: by contract valid; the newest last.
    """

    def __init__(self, raw: Candles) -> None:
        self.raw = raw
        self._close_time = raw.close_time
        self._cleaned = clean(raw).candles
        self._cleaned_close = self._cleaned.close_time
        self._market: Market | None = None
        self._found: dict[int, dict[int, int]] = {}

    def covers(self, time: datetime) -> bool:
        """Whether ``time`` is not before the first candle's close nor after the last one's."""
        moment = to_datetime64(time)
        return bool(len(self.raw) and self._close_time[0] <= moment <= self._close_time[-1])

    def see(self, requests: Sequence[SignalRequest], times: Sequence[datetime]) -> list[Sighting]:
        """What the market looked like at each request's signal, from candles up to it."""
        rows = self._rows(times)
        masks = [
            self._patterns(row, request) if isinstance(row, int) else 0
            for row, request in zip(rows, requests, strict=True)
        ]
        seen = [index for index, row in enumerate(rows) if isinstance(row, int) and masks[index]]
        first = min((row for row in rows if isinstance(row, int)), default=0)
        market = self._newest(first) if seen else None
        table = self._features(market, seen, rows, requests, masks)
        sightings = []
        for index, (row, time, mask) in enumerate(zip(rows, times, masks, strict=True)):
            if isinstance(row, str) or market is None or not mask:
                reason = row if isinstance(row, str) else "no_pattern"
                sightings.append(unseen(requests[index], time, reason))
                continue
            at = row - len(self._cleaned) + len(market.candles)
            regime = int(market.regime[at])
            sightings.append(
                Sighting(
                    time=time,
                    patterns=mask,
                    regime=regime,
                    features=table[index] if regime >= 0 else None,
                    entry_price=float(market.candles.close[at]),
                    atr=_number(market.atr[at]),
                    missing=None if regime >= 0 else "no_regime",
                )
            )
        return sightings

    def newest_close(self) -> datetime | None:
        """Close of the newest candle, or None."""
        return to_datetime(self._close_time[-1]) if len(self.raw) else None

    def _rows(self, times: Sequence[datetime]) -> list[int | str]:
        """For each time the row of the cleaned candle that closed then, or why there is none."""
        moments = np.array([to_datetime64(time) for time in times])
        raw, stored = _find(self._close_time, moments)
        row, kept = _find(self._cleaned_close, moments)
        found: list[int | str] = row.tolist()
        for index in np.flatnonzero(~kept | (raw < WINDOW - 1)).tolist():
            missing = "too_few_candles" if raw[index] < WINDOW - 1 else "noisy_candle"
            found[index] = missing if stored[index] else "no_candle"
        return found

    def _patterns(self, row: int, request: SignalRequest) -> int:
        """The request's patterns, or those of its candle in its direction; 0 where it has none."""
        if request.patterns is not None:
            return request.patterns
        if row not in self._found:
            self._found[row] = newest_patterns(self._cleaned.slice(0, row + 1))
        return self._found[row].get(request.direction, 0)

    def _newest(self, first: int) -> Market:
        """Features of the rows from ``first`` on; made again only where an older row is asked for."""
        last = len(self._cleaned) - first
        if self._market is None or len(self._market.candles) < last:
            self._market = read_market(self._cleaned, last=last)
        return self._market

    def _features(
        self,
        market: Market | None,
        seen: Sequence[int],
        rows: Sequence[int | str],
        requests: Sequence[SignalRequest],
        masks: Sequence[int],
    ) -> dict[int, Rows]:
        """Index of a request -> its row of features."""
        if market is None:
            return {}
        offset = len(self._cleaned) - len(market.candles)
        table = row_features(
            market,
            np.array([rows[index] for index in seen], dtype=np.int64) - offset,
            np.array([requests[index].direction for index in seen], dtype=np.int8),
            np.array([masks[index] for index in seen], dtype=np.uint64),
        )
        return dict(zip(seen, table, strict=True))


def _find(
    times: NDArray[np.datetime64], moments: NDArray[np.datetime64]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """(n,) where each moment would stand in sorted ``times``, and (n,) whether it stands there."""
    at = times.searchsorted(moments)
    stands = at < len(times)
    stands[stands] = times[at[stands]] == moments[stands]
    return at, stands


def unseen(request: SignalRequest, time: datetime, reason: str) -> Sighting:
    """A signal of which nothing can be seen, for a reason of ``ABSTAIN_REASONS``."""
    return Sighting(time=time, patterns=request.patterns or 0, missing=reason)


def sighting_of_features(request: SignalRequest) -> Sighting:
    """A signal whose caller brings the market's features: the regime is told from them."""
    assert request.features is not None
    assert request.time is not None
    features = request.features[None, :]
    column = {name: features[:, index] for index, name in enumerate(FEATURE_NAMES)}
    regime = classify_measures(column["adx_14"], column["atr_rank_500"], column["width_rank_500"])
    if regime[0] < 0:
        return unseen(request, request.time, "no_regime")
    # Prices are not known here; row_features reads none.
    nothing = Candles.empty(request.interval)
    market = Market(candles=nothing, features=features, regime=regime, atr=np.empty(0))
    row = row_features(
        market,
        np.zeros(1, np.int64),
        np.array([request.direction], np.int8),
        np.array([request.patterns], np.uint64),
    )
    return Sighting(time=request.time, patterns=request.patterns or 0, regime=int(regime[0]), features=row[0])


def _number(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
