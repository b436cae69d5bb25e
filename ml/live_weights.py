"""What live answers teach the next fit: rows that the served models got wrong weigh more, if asked to.

Outcomes come from candles, so a live one is no new label. What it adds is how far a served model was off on
a signal that it had not seen. Learning++.NSE weights its instances so, by the error of the ensemble that
served before they came in (Elwell & Polikar, *Incremental learning of concept drift in nonstationary
environments*, IEEE Trans. Neural Networks 22, 2011); here the error is squared, for confidences are
probabilities. docs/learning.md has what it was measured to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ml.config import LiveConfig, canonical_json
from ml.rows import SignalRows

__all__ = ["LiveWeights", "ServedConfidence", "Signal", "live_weights"]

Floats = NDArray[np.float64]
Signal = tuple[str, int, int]
"""Symbol, close of the signal's candle in microseconds since 1970 (UTC), direction."""


@dataclass(frozen=True, slots=True)
class ServedConfidence:
    """What champions answered live, of signals whose outcome is known by now."""

    of: Mapping[Signal, float]
    """Confidence, in [0, 1]."""

    def __len__(self) -> int:
        return len(self.of)

    def digest(self) -> str:
        """sha256 of every entry, whatever their order, in hex: another set is another fit."""
        entries = sorted([*signal, confidence] for signal, confidence in self.of.items())
        return hashlib.sha256(canonical_json(entries)).hexdigest()

    def of_rows(self, rows: SignalRows) -> Floats:
        """(n,) confidence that each row was served with; NaN where it was not."""
        signals = zip(
            (rows.symbols[code] for code in rows.symbol_code.tolist()),
            rows.close_time.astype("datetime64[us]").astype(np.int64).tolist(),
            rows.direction.tolist(),
            strict=True,
        )
        found = (self.of.get(signal, np.nan) for signal in signals)
        return np.fromiter(found, dtype=np.float64, count=len(rows))


class LiveWeights(NamedTuple):
    """From ``live_weights``."""

    factor: Floats
    """(n,) what each row's weight is multiplied by."""
    outcomes: int
    """How many of the rows were served and so weighted."""


def live_weights(rows: SignalRows, served: ServedConfidence | None, config: LiveConfig) -> LiveWeights:
    """Factors of the rows' weights: 1 for a row that was not served, 1 on average for those that were.

    A served row whose squared error is e has ``1 + error_weight * (e / m - 1)``, m being the mean of e: never
    below 0, for ``error_weight`` is at most 1.

    Args:
        rows: n labelled rows that trees grow on.
        served: what was answered live; None where nobody asked.
        config: ``error_weight``, and ``min_outcomes``: under so many served rows every factor stays 1.
    """
    factor = np.ones(len(rows))
    if served is None or not config.weighs:
        return LiveWeights(factor, 0)
    confidence = served.of_rows(rows)
    was_served = ~np.isnan(confidence)
    if was_served.sum() < config.min_outcomes:
        return LiveWeights(factor, 0)
    error = (confidence[was_served] - rows.label[was_served]) ** 2
    mean = error.mean()
    if mean > 0:
        factor[was_served] += config.error_weight * (error / mean - 1)
    return LiveWeights(factor, len(error))
