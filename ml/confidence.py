"""How often patterns have kept their promise: hit rates known at a time, shrunk to the base rate.

This is the baseline that a model has to beat, so it is no feature of the model, and live features need
no history of outcomes. All outcomes are of one symbol: the caller sees to it.

A *code* is a pattern and a direction: twice the pattern's bit, plus 1 for long.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from ml.candles import to_datetime64
from ml.patterns import PATTERN_NAMES, pattern_names
from ml.rows import SignalRows

__all__ = [
    "BASE_RATE",
    "PRIOR_OUTCOMES",
    "confidence_from",
    "pattern_confidence",
    "pattern_hit_rates",
]

Floats = NDArray[np.float64]

BASE_RATE = "base_rate"
PRIOR_OUTCOMES = 50.0
"""Before its first outcome a pattern's rate counts as this many outcomes at the base rate."""

CODE_NAMES = tuple(f"{name} {side}" for name in PATTERN_NAMES for side in ("short", "long"))
CODE_STRIDE = 1 << 40
"""Over any time in seconds until the year 36812, so that (code, time) sorts as one integer."""


def pattern_confidence(
    *,
    close_time: NDArray[np.datetime64],
    direction: NDArray[np.int8],
    patterns: NDArray[np.uint64],
    label: Floats,
    horizon: timedelta,
) -> Floats:
    """(n,) mean hit rate of each signal's patterns in its direction, in (0, 1), point in time.

    For a signal at t only outcomes whose horizon had passed count (``close_time + horizon <= t``). To count
    from ``label_end`` on would let quick outcomes in before the slow ones of the same day, and the
    profit-take is the nearer barrier: the newest outcomes would look too good.

    Base rate: ``(hits + 1) / (outcomes + 2)`` over all of them. A pattern's rate over its own:
    ``(hits + PRIOR_OUTCOMES * base) / (outcomes + PRIOR_OUTCOMES)``. Every array has shape (n,), in any
    order; NaN labels never count.
    """
    known = ~np.isnan(label)
    known_at = _seconds(close_time + np.timedelta64(horizon))
    base_outcomes, base_hits = _counts(
        known_at[known], label[known], _seconds(close_time), np.zeros(len(label), np.int64)
    )
    base = (base_hits + 1) / (base_outcomes + 2)

    signal, code = _codes(patterns, direction)
    mine = known[signal]
    first = code * CODE_STRIDE
    outcomes, hits = _counts(
        first[mine] + known_at[signal[mine]],
        label[signal[mine]],
        first + _seconds(close_time[signal]),
        first,
    )
    rate = (hits + PRIOR_OUTCOMES * base[signal]) / (outcomes + PRIOR_OUTCOMES)
    total = np.bincount(signal, rate, minlength=len(label))
    return total / np.maximum(np.bitwise_count(patterns), 1)


def pattern_hit_rates(rows: SignalRows, until: datetime, *, horizon: timedelta) -> dict[str, float]:
    """What was known at ``until`` (aware): plain values for an artifact, to be read by ``confidence_from``.

    ``base_rate``, and the rate of each pattern and direction with an outcome (``CDLDOJI long``). Of rows
    of one symbol it gives what ``pattern_confidence`` gives for a signal at ``until``.
    """
    known = rows.take(rows.labelled & (rows.close_time + np.timedelta64(horizon) <= to_datetime64(until)))
    base = (known.label.sum() + 1) / (len(known) + 2)
    signal, code = _codes(known.patterns, known.direction)
    outcomes = np.bincount(code, minlength=len(CODE_NAMES))
    hits = np.bincount(code, known.label[signal], minlength=len(CODE_NAMES))
    rate = (hits + PRIOR_OUTCOMES * base) / (outcomes + PRIOR_OUTCOMES)
    seen = {CODE_NAMES[code]: float(rate[code]) for code in np.flatnonzero(outcomes)}
    return {BASE_RATE: float(base), **seen}


def confidence_from(rates: Mapping[str, float], patterns: int, direction: int) -> float:
    """A live signal's own confidence: the mean rate of its patterns, of ``pattern_hit_rates``.

    Args:
        patterns: bit i is pattern i of ``PATTERN_NAMES``; none set gives the base rate.
        direction: +1 long, -1 short.
    """
    side = "long" if direction > 0 else "short"
    base = rates[BASE_RATE]
    found = [rates.get(f"{name} {side}", base) for name in pattern_names(patterns)]
    return sum(found) / len(found) if found else base


def _seconds(times: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Candles close on whole minutes, so that seconds lose nothing."""
    return times.astype("datetime64[s]").astype(np.int64)


def _codes(
    patterns: NDArray[np.uint64], direction: NDArray[np.int8]
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """One (signal, code) pair for each set bit, signal by signal, bits rising."""
    little = np.ascontiguousarray(patterns).astype("<u8", copy=False)
    bits = np.unpackbits(little.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    signal, bit = np.nonzero(bits)
    return signal, 2 * bit + (direction[signal] > 0)


def _counts(
    end: NDArray[np.int64], hit: Floats, at_most: NDArray[np.int64], from_: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Floats]:
    """(q,) number of outcomes with ``from_ <= end <= at_most``, and (q,) how many of them hit."""
    order = np.argsort(end, kind="stable")
    end = end[order]
    hits = np.concatenate([[0.0], np.cumsum(hit[order])])
    stop = np.searchsorted(end, at_most, side="right")
    start = np.searchsorted(end, from_, side="left")
    return stop - start, hits[stop] - hits[start]
