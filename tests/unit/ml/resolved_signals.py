"""Resolved signals, made up, for the tests of live accuracy."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.evaluation import Estimate
from ml.live_accuracy import LiveAccuracy, ResolvedSignals, live_accuracy

Floats = NDArray[np.float64]
BLOCK = timedelta(hours=48)
NOTHING = Estimate(None, None, None)
NAN = float("nan")
FIGURES = [field.name for field in fields(LiveAccuracy) if field.type == "Estimate"]


def signals(
    label: Any, confidence: Any, *, threshold: float = 0.55, pattern: Any = 0.57, **columns: Any
) -> ResolvedSignals:
    """Hourly ones; a hit earns 0.8, a miss loses 2.2; positive ones are accepted."""
    label, confidence = np.asarray(label, float), np.asarray(confidence, float)
    n = len(label)
    values: dict[str, Any] = {
        "signal_time": np.datetime64("2019-01-01", "us") + np.arange(n).astype("timedelta64[h]"),
        "label": label,
        "net_return_atr": np.where(np.isnan(label), NAN, np.where(label == 1, 0.8, -2.2)),
        "confidence": confidence,
        "threshold": np.full(n, threshold),
        "pattern_confidence": np.broadcast_to(np.asarray(pattern, float), n),
        "accepted": confidence >= threshold,
        "answered_by": tuple(None if np.isnan(value) else 7 for value in confidence),
        "abstain_reason": tuple("no_model" if np.isnan(value) else None for value in confidence),
        "unresolved": tuple("gap" if np.isnan(value) else None for value in label),
    }
    return ResolvedSignals(**values | columns)


def drawn(n: int, *, seed: int = 0, decimals: int = 2) -> ResolvedSignals:
    """Confidences that know something, pattern confidences that know less; both with ties."""
    draw = np.random.default_rng(seed)
    chance = draw.uniform(0.3, 0.9, n)
    return signals(
        draw.random(n) < chance,
        np.round(chance + draw.normal(0, 0.02, n), decimals),
        pattern=np.round(np.clip(chance + draw.normal(0, 0.15, n), 0, 1), decimals),
    )


def judged(given: ResolvedSignals, *, samples: int = 200, seed: int = 7) -> LiveAccuracy:
    return live_accuracy(given, block=BLOCK, samples=samples, seed=seed)


def written_out(given: ResolvedSignals, times: NDArray[np.int_]) -> ResolvedSignals:
    rows = np.repeat(np.arange(len(given)), times)
    columns = {
        field.name: getattr(given, field.name)[rows]
        for field in fields(given)
        if isinstance(getattr(given, field.name), np.ndarray)
    }
    nothing = (None,) * len(rows)
    answered_by = tuple(given.answered_by[row] for row in rows)
    return replace(given, answered_by=answered_by, abstain_reason=nothing, unresolved=nothing, **columns)
