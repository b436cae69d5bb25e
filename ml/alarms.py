"""How loud a drift is: scores held against limits, and limits that keep to a budget of false alarms.

Market features are autocorrelated, so the p-value of a textbook would call drift every hour. A statistic is
instead compared with what it comes to in years of simulated time without drift. ``alarm_levels`` turns such
a simulation into the level that is crossed so many times a month; the score of a drift is the statistic in
units of the level at the operator's budget, so that ``BUDGET_SCORE`` is where the budget is spent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BUDGET_SCORE",
    "BUDGET_SHARES",
    "DAYS_PER_MONTH",
    "SEVERITIES",
    "AlarmLevels",
    "DriftCheck",
    "DriftKind",
    "FeatureDrift",
    "SeverityLimits",
    "alarm_levels",
    "drift_score",
    "severity_of",
    "strictest",
    "triggered",
]

DriftKind = Literal["features", "scores", "calibration", "accuracy"]
SEVERITIES: Final = ("none", "low", "medium", "high", "critical")
BUDGET_SCORE: Final = 0.20
"""The mission's limit of *high*, which starts a retraining: the score at which the budget is spent."""
BUDGET_SHARES: Final[dict[DriftKind, float]] = {
    "features": 0.5,
    "scores": 0.2,
    "calibration": 0.15,
    "accuracy": 0.15,
}
"""Of a key's false retrainings; they add to 1, so that the kinds together keep to the budget."""
DAYS_PER_MONTH: Final = 30.44
LEVELS: Final = 64
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class SeverityLimits:
    """A key's limits. A severity holds where the score is *over* its limit."""

    ks: float = 0.15
    psi: float = 0.25
    low: float = 0.10
    medium: float = 0.15
    high: float = 0.20
    critical: float = 0.30


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDrift:
    """One feature of one check."""

    name: str
    importance: float
    ks: float
    psi: float
    p_value: float
    """Family-wise: share of no-drift windows whose most extreme feature is at least as extreme."""
    excess: float
    """What the feature adds to the check's statistic before its importance; see ``ml.drift_check``."""
    drifted: bool
    """Over the key's KS or PSI limit, and ``p_value`` at most 0.05."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftCheck:
    """What one check of one kind found."""

    kind: DriftKind
    score: float
    """See ``drift_score``."""
    p_value: float | None
    """Share of no-drift windows with a statistic at least as large; None where there is no such sample."""
    reference_rows: int
    current_rows: int
    statistic: float
    level: float
    """The statistic at which the kind's share of the budget is spent."""
    features: tuple[FeatureDrift, ...] = ()
    """By ``importance x excess``, the largest first."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmLevels:
    """How high a statistic's alarm level must be for so many false retrainings a month."""

    level: tuple[float, ...]
    """Ascending."""
    per_month: tuple[float, ...]
    """Upper 95 % bound of the retrainings triggered at each level; descending."""

    def at(self, per_month: float) -> float:
        """The lowest level whose bound is at most ``per_month``; the highest where none is."""
        for level, rate in zip(self.level, self.per_month, strict=True):
            if rate <= per_month:
                return level
        return self.level[-1]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"level": list(self.level), "per_month": list(self.per_month)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        return cls(level=tuple(value["level"]), per_month=tuple(value["per_month"]))


def alarm_levels(
    statistic: NDArray[np.float64], day: NDArray[np.float64], *, cooldown_days: float
) -> AlarmLevels:
    """Count, level by level, how many retrainings a simulation without drift would have triggered.

    A retraining is triggered by a check over the level, and for ``cooldown_days`` no other is.

    Args:
        statistic: (n,) of each simulated check, in time order.
        day: (n,) when, ascending, in days; the simulation lasts ``day[-1] - day[0]``.
        cooldown_days: as in production.

    Raises:
        ValueError: fewer than two checks, or no time between them.
    """
    from scipy.stats import chi2

    if len(statistic) < 2 or day[-1] <= day[0]:
        raise ValueError("alarm levels need checks over some span of time")
    months = (day[-1] - day[0]) / DAYS_PER_MONTH
    tail = 1 - np.geomspace(0.5, 1 / len(statistic), LEVELS)
    levels = np.unique(np.append(np.quantile(statistic, tail), statistic.max()))
    counts = np.array([triggered(statistic > level, day, cooldown_days) for level in levels])
    # Exact bound of a Poisson rate (Garwood, Biometrika 1936).
    upper = np.minimum.accumulate(chi2.ppf(CONFIDENCE, 2 * (counts + 1)) / 2 / months)
    return AlarmLevels(level=tuple(levels.tolist()), per_month=tuple(upper.tolist()))


def strictest(simulations: Sequence[AlarmLevels]) -> AlarmLevels:
    """At every level the highest rate of any simulation.

    Raises:
        ValueError: no simulation.
    """
    if not simulations:
        raise ValueError("the strictest of no simulations")
    level = np.unique([one for levels in simulations for one in levels.level])
    rates = []
    for levels in simulations:
        # Between two levels as often as at the lower one; below the lowest it is not known, so never enough.
        place = np.searchsorted(levels.level, level, side="right") - 1
        rates.append(np.where(place < 0, np.inf, np.array(levels.per_month)[place]))
    highest = np.max(rates, axis=0)
    known = np.isfinite(highest)
    return AlarmLevels(level=tuple(level[known].tolist()), per_month=tuple(highest[known].tolist()))


def triggered(over: NDArray[np.bool_], day: NDArray[np.float64], cooldown_days: float) -> int:
    """How many retrainings checks (n,) of these days trigger: after one, none for ``cooldown_days``."""
    alarm = day[over]
    count = place = 0
    while place < len(alarm):
        count += 1
        place = max(place + 1, int(np.searchsorted(alarm, alarm[place] + cooldown_days)))
    return count


def drift_score(statistic: float, level: float) -> float:
    """``BUDGET_SCORE x statistic / level``, at least 0: the one number that severities are read from.

    ``statistic`` is, by kind: of *features* and *scores* the excess of ``ml.drift_check``, of *calibration*
    and *accuracy* the Page-Hinkley statistic of ``ml.decay``. ``level`` is what the same statistic crosses in
    no-drift data just so often that the kind's share (``BUDGET_SHARES``) of the key's false retrainings a
    month is spent (``alarm_levels``). So one scale serves all kinds, keys and regimes: 0.20 is the budget,
    0.30 half as far again, and what is common in no-drift data is near 0.
    """
    return BUDGET_SCORE * (max(0.0, statistic) / max(level, 1e-12))


def severity_of(score: float, limits: SeverityLimits) -> str:
    """``none`` for score <= low, ``low`` for low < score <= medium, and so on to ``critical``."""
    over = {
        "critical": limits.critical,
        "high": limits.high,
        "medium": limits.medium,
        "low": limits.low,
    }
    return next((severity for severity, limit in over.items() if score > limit), "none")
