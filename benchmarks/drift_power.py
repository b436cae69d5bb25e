"""How often a drift check is wrong where nothing drifts, and how small a drift it finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from ml.alarms import BUDGET_SCORE, DAYS_PER_MONTH, SeverityLimits, drift_score, severity_of, triggered
from ml.config import DriftConfig
from ml.drift import Reference, make_reference
from ml.drift_check import alarm_level, check_features
from ml.drift_null import FeatureNull, feature_null
from ml.drift_simulation import SimulatedTime, draw_days
from ml.rows import SignalRows

__all__ = ["RETRAINED", "AlarmRate", "Learned", "alarm_rate", "shifted_windows", "smallest_shift"]

RETRAINED: Final = ("high", "critical")
FOUND_SHARE: Final = 0.8
SHIFTED_FEATURES: Final = 3
STEP: Final = 0.05
LARGEST: Final = 2.0
LIMITS: Final = SeverityLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What a key's model learned from, and what is kept of it."""

    rows: SignalRows
    importance: NDArray[np.float64]
    reference: Reference
    null: FeatureNull
    config: DriftConfig

    @classmethod
    def of(
        cls, rows: SignalRows, importance: NDArray[np.float64], config: DriftConfig, *, seed: int
    ) -> Learned:
        """As training keeps it."""
        reference = make_reference(rows.features, rows.feature_names, importance)
        null = feature_null(rows.features, rows.close_time, importance, reference, config, seed=seed)
        return cls(rows=rows, importance=importance, reference=reference, null=null, config=config)

    def score(self, current: NDArray[np.float32]) -> float:
        """Of a check of these features (m, F), at the configured budget."""
        budget = self.config.false_retrainings_per_month
        return check_features(self.reference, self.null, current, LIMITS, budget_per_month=budget).score

    def severity(self, current: NDArray[np.float32]) -> str:
        """Of the same check, at the default limits."""
        return severity_of(self.score(current), LIMITS)

    def months_without_drift(
        self, *, block_days: float, months: float, seed: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(k,) scores of simulated checks and (k,) their days, with all that may be alarms."""
        time = SimulatedTime(
            self.rows.features,
            self.rows.close_time,
            self.reference,
            months=months,
            window_rows=self.config.window_rows,
            block_days=block_days,
            seed=seed,
        )
        level = alarm_level("features", self.null, self.config.false_retrainings_per_month)
        statistic, day = time.follow(self.null.excess.of)
        return np.array([drift_score(value, level) for value in statistic.tolist()]), day


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRate:
    """Retrainings that the features alone triggered in simulated time without drift."""

    count: int
    months: float

    @property
    def per_month(self) -> float:
        """The rate."""
        return self.count / self.months

    @property
    def upper(self) -> float:
        """Its upper 95 % bound (Garwood, Biometrika 1936)."""
        return float(chi2.ppf(0.95, 2 * (self.count + 1)) / 2 / self.months)


def alarm_rate(learned: Learned, *, block_days: float, months: float, seed: int) -> AlarmRate:
    """Simulate time without drift, other than the null's own by its seed and its blocks, and count."""
    scores, day = learned.months_without_drift(block_days=block_days, months=months, seed=seed)
    span = float(day[-1] - day[0])
    count = triggered(scores > BUDGET_SCORE, day, cooldown_days=learned.config.cooldown_days)
    return AlarmRate(count=count, months=span / DAYS_PER_MONTH)


def shifted_windows(
    learned: Learned, sigma: float, *, window_rows: int, runs: int, seed: int
) -> Iterable[NDArray[np.float32]]:
    """Yield ``runs`` windows (window_rows, F) without drift, with the three most important features moved.

    Rows as in the null: blocks of the training rows. Each of the three is moved by ``sigma`` of its standard
    deviations in the training rows, up or down by chance.
    """
    generator = np.random.default_rng(seed)
    features, time = learned.rows.features, learned.rows.close_time
    at = (time - time[:1]) / np.timedelta64(1, "D")
    moved = np.argsort(-learned.importance)[:SHIFTED_FEATURES]
    deviation = np.nanstd(features[:, moved], axis=0)
    days = 4 * window_rows * at[-1] / len(at) + 2 * learned.config.block_days
    for _ in range(runs):
        rows, _ = draw_days(at, days=days, block_days=learned.config.block_days, generator=generator)
        start = generator.integers(0, len(rows) - window_rows + 1)
        window = features[rows[start : start + window_rows]]
        window[:, moved] += (sigma * deviation * generator.choice((-1, 1), SHIFTED_FEATURES)).astype(
            np.float32
        )
        yield window


def smallest_shift(learned: Learned, *, window_rows: int, runs: int, seed: int) -> float | None:
    """The smallest shift, in steps of 0.05 sigma, called high or critical in 80 of 100; None over 2 sigma."""
    for sigma in np.arange(STEP, LARGEST + STEP / 2, STEP):
        windows = shifted_windows(learned, float(sigma), window_rows=window_rows, runs=runs, seed=seed)
        found = sum(learned.severity(window) in RETRAINED for window in windows)
        if found >= FOUND_SHARE * runs:
            return round(float(sigma), 2)
    return None
