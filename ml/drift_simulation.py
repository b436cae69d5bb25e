"""Drift checks of years without drift, made of a model's own training rows.

No-drift time is rows in blocks (circular block bootstrap: Politis & Romano, *A circular block-resampling
procedure for stationary data*, 1992). Rows keep their order and their times inside a block, so signals come
as often, and as alike, as they did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ml.alarms import DAYS_PER_MONTH
from ml.drift import PSI_FLOOR, FeatureReference, Reference

__all__ = ["SimulatedChecks", "SimulatedTime", "draw_days"]

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Counts = NDArray[np.int64]

CHECKS_PER_WINDOW: Final = 25
COARSE_CHECKS: Final = 5_000
FINE_ROWS: Final = 50_000
"""Of a busier simulation every second row is looked at, every third ..."""
PEAK_QUANTILE: Final = 0.85
MIN_BLOCKS: Final = 4
"""A block is shortened until the rows hold so many: of one block every life would be the same."""
BATCH_CELLS: Final = 64_000
"""Values sorted at once: they stay in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedChecks:
    """The statistics of checks in time order."""

    ks: Floats
    """(k, F)."""
    psi: Floats
    """(k, F)."""
    day: Floats
    """(k,) when, ascending."""


def draw_days(
    at: Floats, *, days: float, block_days: float, generator: np.random.Generator
) -> tuple[Rows, Floats]:
    """Draw blocks of rows, one after the other, until they last ``days``.

    Args:
        at: (n,) when each row was, in days since the first; ascending, ``at[-1] > 0``.
        days: how much time to fill.
        block_days: length of a block; on a short span less, see ``MIN_BLOCKS``.
        generator: of the starts, which are uniform over the span closed to a circle.

    Returns:
        (m,) row numbers and (m,) the simulated day of each, ascending.
    """
    # The circle closes after one more step of the mean length, or rows would come too fast.
    span = at[-1] * len(at) / (len(at) - 1)
    block = min(block_days, span / MIN_BLOCKS)
    circle = np.concatenate([at, at + span])
    starts = generator.uniform(0, span, int(np.ceil(days / block)))
    first = np.searchsorted(circle, starts)
    size = np.searchsorted(circle, starts + block) - first
    place = np.arange(size.sum()) + np.repeat(first - (np.cumsum(size) - size), size)
    day = circle[place] + np.repeat(np.arange(len(starts)) * block - starts, size)
    return place % len(at), day


class SimulatedTime:
    """Months without drift, of which any moment can be checked.

    Fewer rows than a window are enough to draw from: a window then holds some of them twice.

    Args:
        features: (n, F) rows to draw from, in time order, n >= 2.
        close_time: (n,) ascending.
        reference: that the checks compare with.
        months: how long, from the first full window on.
        window_rows: rows of a check.
        block_days: of the bootstrap.
        seed: same input and seed, same result.

    Raises:
        ValueError: rows out of order, fewer than two, or no time between them.
    """

    def __init__(
        self,
        features: NDArray[np.float32],
        close_time: NDArray[np.datetime64],
        reference: Reference,
        *,
        months: float,
        window_rows: int,
        block_days: float,
        seed: int,
    ) -> None:
        at = (close_time - close_time[:1]) / np.timedelta64(1, "D")
        if len(at) < 2 or at[-1] <= 0 or (np.diff(at) < 0).any():
            raise ValueError("a simulation needs rows sorted by close_time, over some span of time")
        warm_up = 2 * window_rows * at[-1] / len(at) + block_days
        self.rows, self.day = draw_days(
            at,
            days=months * DAYS_PER_MONTH + warm_up,
            block_days=block_days,
            generator=np.random.default_rng(seed),
        )
        """Which row each simulated one is, and its day."""
        self._features, self._reference, self._window = features, reference, window_rows
        step = max(window_rows // CHECKS_PER_WINDOW, len(self.rows) // COARSE_CHECKS, 1)
        self._coarse = self.ends(step)
        self.coarse = self.checks(self._coarse)
        """Checks at even steps: what statistics are like at any time."""

    def ends(self, step: int = 1) -> Rows:
        """How many rows there have been at the moments of checks: at each ``step``-th row."""
        return np.arange(self._window, len(self.rows) + 1, step)

    def checks(self, ends: Rows) -> SimulatedChecks:
        """Check the newest ``window_rows`` at each of these moments (k,), ascending."""
        ks, psi = np.empty((2, len(ends), len(self._reference.features)))
        for column, feature in enumerate(self._reference.features):
            values = self._features[:, column]
            ks[:, column] = _ks(feature.sample, values, self.rows, ends, self._window)
            psi[:, column] = _psi(feature, values, self.rows, ends, self._window)
        return SimulatedChecks(ks=ks, psi=psi, day=self.day[ends - 1])

    def follow(self, statistic: Callable[[SimulatedChecks], Floats]) -> tuple[Floats, Floats]:
        """The statistic over time, with every check that may be an alarm.

        Peaks are short: checks at every tenth row of 250 find a quarter fewer alarms than checks with each
        row that comes, as production makes them. So between two coarse checks of which one is high
        (``PEAK_QUANTILE``), it is checked with each row.

        Returns:
            (k,) statistic and (k,) day, ascending.
        """
        found = statistic(self.coarse)
        high = found >= np.quantile(found, PEAK_QUANTILE)
        near = np.append((high[:-1] | high[1:]), False)
        step = -(-len(self.rows) // FINE_ROWS)
        fine = self.ends(step)
        fine = fine[near[np.searchsorted(self._coarse, fine, side="right") - 1]]
        fine = np.setdiff1d(fine, self._coarse)
        closer = self.checks(fine)
        order = np.argsort(np.concatenate([self._coarse, fine]))
        values = np.concatenate([found, statistic(closer)])
        return values[order], np.concatenate([self.coarse.day, closer.day])[order]


def _ks(sample: NDArray[np.float32], values: NDArray[np.float32], rows: Rows, ends: Rows, n: int) -> Floats:
    """(k,) KS statistic of each window, as ``ml.drift.ks_statistic``: see there why two sides suffice.

    In integers, units of 1 / (m n): they sort several times as fast as numbers with a fraction.
    """
    m = len(sample)
    unit = np.dtype(np.int32 if m * n < 2**31 else np.int64)
    upto: Counts = np.searchsorted(sample, values, side="right").astype(unit)
    below: Counts = np.searchsorted(sample, values, side="left").astype(unit)
    # Where no value is twice in the sample, both counts are halves of their sum, and one sort does for both.
    distinct = bool((upto - below).max() <= 1)
    kept = [upto + below] if distinct else [upto, below]
    series = [sliding_window_view(counts[rows], n) for counts in kept]
    own: Counts = np.arange(0, (n + 1) * m, m, dtype=unit)
    found = np.empty(len(ends))
    batch = max(1, BATCH_CELLS // n)
    for start in range(0, len(ends), batch):
        taken = ends[start : start + batch] - n
        ordered = [np.sort(windows[taken], axis=1) for windows in series]
        over = (ordered[0] + 1) >> 1 if distinct else ordered[0]
        under = ordered[0] >> 1 if distinct else ordered[1]
        over *= n
        under *= n
        np.subtract(own[1:], over, out=over)
        under -= own[:-1]
        found[start : start + batch] = np.maximum(over.max(axis=1), under.max(axis=1))
    return found / (m * n)


def _psi(feature: FeatureReference, values: NDArray[np.float32], rows: Rows, ends: Rows, n: int) -> Floats:
    """(k,) population stability index of each window, as ``ml.drift.population_stability_index``."""
    place = np.searchsorted(feature.edges, values, side="left")[rows]
    index = np.zeros(len(ends))
    for number, share in enumerate(feature.shares):
        seen = np.concatenate([[0], np.cumsum(place == number)])
        now = np.maximum((seen[ends] - seen[ends - n]) / n, PSI_FLOOR)
        was = max(float(share), PSI_FLOOR)
        index += (now - was) * np.log(now / was)
    return index
