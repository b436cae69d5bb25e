"""What rows must hold before trees may grow on them, and before a key may be judged: refusals in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ml.config import TrainingConfig
from ml.errors import TrainingRefused
from ml.keys import ALL_REGIMES, ModelKey
from ml.rows import SignalRows
from ml.splits import Split

__all__ = ["check_fit_rows", "check_key_rows"]

MAY_BE_CONSTANT = ("regime_", "hour_")
"""Rows of one regime share it, and daily candles all close at one hour: no reason to refuse them."""


def check_fit_rows(rows: SignalRows, parts: Split, config: TrainingConfig) -> None:
    """Refuse rows that no tree should grow on."""
    least = {"fit": config.split.min_fit_rows, "early_stop": config.split.min_calibrate_rows}
    for name, limit in least.items():
        found = len(getattr(parts, name))
        if found < limit:
            raise TrainingRefused(
                "too_few_rows",
                f"{found} signals of pool {config.pool!r} in the {name} part, at least {limit} are needed: "
                "import more candles or pool more",
            )
    for name in least:
        _check_two_classes(rows.label[getattr(parts, name)], f"the {name} part of the pool {config.pool!r}")
    features = rows.features[parts.fit]
    missing = np.isnan(features).mean(axis=0)
    worst = int(missing.argmax())
    if missing[worst] > config.fit.max_missing_share:
        raise TrainingRefused(
            "missing_features",
            f"feature {rows.feature_names[worst]} is missing in {missing[worst]:.1%} of {len(features)} "
            f"rows, at most {config.fit.max_missing_share:.1%} is allowed",
        )
    constant = np.fmin.reduce(features) == np.fmax.reduce(features)
    named = [
        name
        for name, same in zip(rows.feature_names, constant, strict=True)
        if same and not name.startswith(MAY_BE_CONSTANT)
    ]
    if named:
        raise TrainingRefused(
            "constant_features",
            f"{len(named)} features never change in {len(features)} rows, 0 may: {', '.join(named[:5])}",
        )


def check_key_rows(key: ModelKey, own: SignalRows, parts: Split, config: TrainingConfig) -> None:
    """Refuse a key that has too little of its own to be calibrated or judged on."""
    served = "" if key == key.fallback else f"; served by {key.symbol} {ALL_REGIMES}"
    least = {"calibrate": config.split.min_calibrate_rows, "test": config.split.min_test_rows}
    for name, limit in least.items():
        found = len(getattr(parts, name))
        if found < limit:
            raise TrainingRefused(
                "too_few_rows",
                f"{found} signals of {key} in the {name} part, at least {limit} are needed{served}",
            )
        _check_two_classes(own.label[getattr(parts, name)], f"the {name} part of {key}")


def _check_two_classes(label: NDArray[np.float64], what: str) -> None:
    if label.min() == label.max():
        outcome = "reached" if label[0] == 1 else "missed"
        raise TrainingRefused(
            "one_class",
            f"all {len(label)} signals in {what} {outcome} their profit-take; both outcomes are needed",
        )
