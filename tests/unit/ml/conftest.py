"""Synthetic signals: what can be learned from them is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ml.rows import SignalRows

MakeRows = Callable[..., SignalRows]


@pytest.fixture(scope="session")
def make_rows() -> MakeRows:
    """``make_rows(n, strength=..., seed=...)``: n hourly signals of one symbol over 2 n hours.

    The log-odds of a hit are 0.3 + strength * feature 0; with ``strength=0`` nothing can be learned.
    Outcomes are known 1 to 12 hours after the signal. A hit earns 1 ATR, a miss loses 2.
    """

    def make(n: int, *, strength: float = 0.6, seed: int = 0, symbol: str = "BTCUSDT") -> SignalRows:
        draw = np.random.default_rng(seed)
        hours = np.sort(draw.choice(2 * n, n, replace=False))
        close_time = np.datetime64("2019-01-01", "us") + hours.astype("timedelta64[h]")
        features = draw.normal(size=(n, 6)).astype(np.float32)
        chance = 1 / (1 + np.exp(-(0.3 + strength * features[:, 0])))
        label = (draw.random(n) < chance).astype(np.float64)
        return SignalRows(
            symbols=(symbol,),
            feature_names=tuple(f"feature_{i}" for i in range(6)),
            symbol_code=np.zeros(n, np.int16),
            close_time=close_time,
            direction=np.where(draw.random(n) < 0.5, 1, -1).astype(np.int8),
            regime=draw.integers(0, 4, n).astype(np.int8),
            patterns=np.ones(n, np.uint64),
            pattern_confidence=np.clip(0.57 + draw.normal(0, 0.01, n), 0, 1),
            features=features,
            entry_price=np.full(n, 100.0),
            atr=np.ones(n),
            label=label,
            label_end=close_time + draw.integers(1, 13, n).astype("timedelta64[h]"),
            gross_return_atr=np.where(label == 1, 1.0, -2.0),
            cost_atr=np.full(n, 0.1),
            uniqueness=draw.uniform(0.2, 1, n),
        )

    return make
