"""Outcomes of a logistic model on real hourly candles, and new histories made of their blocks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ml.config import LabelConfig
from ml.dataset import build_rows
from ml.noise import clean
from tests.real_candles import real_candles

__all__ = ["Outcomes", "history", "real_outcomes"]

Floats = NDArray[np.float64]
FIT_SHARE, RIDGE = 0.6, 50.0


@dataclass(frozen=True)
class Outcomes:
    """Of signals the model has not seen; arrays of shape (n,)."""

    time: NDArray[np.datetime64]
    confidence: Floats
    label: Floats
    net_return_atr: Floats
    regime: NDArray[np.int8]


@cache
def real_outcomes() -> Outcomes:
    """About 6,900 signals of Bitcoin, 2018-12 to 2019-10; the model was fitted on those before."""
    rows = build_rows(clean(real_candles()).candles, symbol="BTCUSDT", config=LabelConfig())
    rows = rows.take(rows.labelled)
    fit = slice(None, int(FIT_SHARE * len(rows)))
    features = np.nan_to_num(rows.features.astype(np.float64))
    scaled = (features - features[fit].mean(axis=0)) / (features[fit].std(axis=0) + 1e-9)
    design = np.column_stack([np.ones(len(rows)), np.clip(scaled, -4, 4)])
    weight = np.zeros(design.shape[1])
    for _ in range(15):  # Newton's steps to the ridge solution
        chance = 1 / (1 + np.exp(-design[fit] @ weight))
        curvature = (design[fit] * (chance * (1 - chance))[:, None]).T @ design[fit]
        slope = design[fit].T @ (rows.label[fit] - chance) - RIDGE * weight
        weight += np.linalg.solve(curvature + RIDGE * np.eye(len(weight)), slope)
    rest = slice(int(FIT_SHARE * len(rows)), None)
    return Outcomes(
        time=rows.close_time[rest],
        confidence=1 / (1 + np.exp(-design[rest] @ weight)),
        label=rows.label[rest],
        net_return_atr=(rows.gross_return_atr - rows.cost_atr)[rest],
        regime=rows.regime[rest],
    )


def history(
    time: NDArray[np.datetime64], *, days: float, block: timedelta, draw: np.random.Generator
) -> tuple[NDArray[np.intp], Floats]:
    """A history that never was: blocks of (n,) real moments, one after the other.

    Returns:
        Index (m,) of the row drawn, and its day (m,), ascending, from 0 up to ``days``.
    """
    at = (time - time[0]) / np.timedelta64(1, "D")
    length = block / timedelta(days=1)
    rows, moments = [], []
    for number in range(int(np.ceil(days / length))):
        start = draw.uniform(0, at[-1] - length)
        inside = np.flatnonzero((at >= start) & (at < start + length))
        rows.append(inside)
        moments.append(at[inside] - start + number * length)
    day = np.concatenate(moments)
    return np.concatenate(rows)[day < days], day[day < days]
