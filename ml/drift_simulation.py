"""Drift checks of years without drift, made of a model's own training rows.

No-drift time is rows in blocks (circular block bootstrap: Politis & Romano, *A circular block-resampling
procedure for stationary data*, 1992). Rows keep their order and their times inside a block, so signals come
as often, and as alike, as they did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ml.drift import PSI_FLOOR, FeatureReference, Reference

__all__ = ["SimulatedChecks", "draw_days", "simulate_checks"]

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Counts = NDArray[np.int64]

DAYS_PER_MONTH: Final = 30.44
MAX_CHECKS: Final = 10_000
"""Then a check is made every second row, every third ... A window's statistic has short peaks: checks every
tenth row of 250 found a quarter fewer alarms than checks every row, every fifth a seventh fewer."""
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


def simulate_checks(
    features: NDArray[np.float32],
    close_time: NDArray[np.datetime64],
    reference: Reference,
    *,
    months: float,
    window_rows: int,
    block_days: float,
    seed: int,
) -> SimulatedChecks:
    """Check the newest ``window_rows`` with each row that comes (see ``MAX_CHECKS``), for ``months``.

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
    at = (close_time - close_time[:1]) / np.timedelta64(1, "D")
    if len(at) < 2 or at[-1] <= 0 or (np.diff(at) < 0).any():
        raise ValueError("a simulation needs rows sorted by close_time, over some span of time")
    warm_up = 2 * window_rows * at[-1] / len(at) + block_days
    rows, day = draw_days(
        at,
        days=months * DAYS_PER_MONTH + warm_up,
        block_days=block_days,
        generator=np.random.default_rng(seed),
    )
    ends = np.arange(window_rows, len(rows) + 1, max(1, -(-len(rows) // MAX_CHECKS)))
    ks, psi = np.empty((2, len(ends), len(reference.features)))
    for column, feature in enumerate(reference.features):
        values = features[:, column]
        ks[:, column] = _ks(feature.sample, values, rows, ends, window_rows)
        psi[:, column] = _psi(feature, values, rows, ends, window_rows)
    return SimulatedChecks(ks=ks, psi=psi, day=day[ends - 1])


def _ks(sample: NDArray[np.float32], values: NDArray[np.float32], rows: Rows, ends: Rows, n: int) -> Floats:
    """(k,) KS statistic of each window, as ``ml.drift.ks_statistic``: see there why two sides suffice.

    In integers, units of 1 / (m n): they sort several times as fast as numbers with a fraction.
    """
    m = len(sample)
    unit = np.dtype(np.int32 if m * n < 2**31 else np.int64)
    step = int(ends[1] - ends[0]) if len(ends) > 1 else 1
    upto: Counts = np.searchsorted(sample, values, side="right").astype(unit)
    below: Counts = np.searchsorted(sample, values, side="left").astype(unit)
    # Where no value is twice in the sample, both counts are halves of their sum, and one sort does for both.
    distinct = bool((upto - below).max() <= 1)
    series = [(upto + below)[rows]] if distinct else [upto[rows], below[rows]]
    own: Counts = np.arange(0, (n + 1) * m, m, dtype=unit)
    found = np.empty(len(ends))
    batch = max(1, BATCH_CELLS // n)
    for start in range(0, len(ends), batch):
        taken = slice(start * step, (start + batch) * step, step)
        ordered = [np.sort(sliding_window_view(counts, n)[taken], axis=1) for counts in series]
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
