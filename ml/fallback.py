"""Where a symbol's `all` model must not stand in for a regime that has no champion."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from ml.evaluation import INTERVAL, MIN_BLOCKS, block_multiplicities
from ml.keys import REGIMES
from ml.rows import SignalRows

__all__ = ["unfit_regimes"]


def unfit_regimes(
    rows: SignalRows,
    confidence: NDArray[np.float64],
    *,
    least_rows: int,
    block: timedelta,
    samples: int,
    seed: int,
) -> tuple[str, ...]:
    """Regimes in which a model is worse for sure than the patterns' own confidence, in order of ``REGIMES``.

    That is: the upper 95 % block-bootstrap bound of the mean of (pattern's Brier score - model's Brier
    score) is below 0 (``ml.evaluation`` has the bootstrap and its sources). A slice of fewer than
    ``least_rows`` rows, or of a span of fewer than ``MIN_BLOCKS`` blocks, shows nothing: not unfit.

    Args:
        rows: n labelled rows of every regime, sorted by close time, that no part of the model has seen.
        confidence: (n,) the model's.
        least_rows: of a slice that is judged.
        block: length of a bootstrap block.
        samples: resamples.
        seed: of the resampling.
    """
    gain = (rows.pattern_confidence - rows.label) ** 2 - (confidence - rows.label) ** 2
    unfit = []
    for code, regime in enumerate(REGIMES):
        slice_ = rows.regime == code
        times = rows.close_time[slice_]
        if len(times) < least_rows or times[-1] - times[0] < np.timedelta64(MIN_BLOCKS * block, "us"):
            continue
        means = [
            (weights * gain[slice_]).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
            for weights in block_multiplicities(times, block=block, samples=samples, seed=seed)
        ]
        if np.quantile(np.concatenate(means), INTERVAL[1]) < 0:
            unfit.append(regime)
    return tuple(unfit)
