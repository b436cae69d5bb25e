"""What a model's feature statistics come to in years without drift, and the level at which they are drift.

A feature's *excess* says how far beyond the ordinary its two statistics are, in units of how much they
usually move. With q the 0.9 quantile and s = q - median of the statistic over the simulated checks::

    excess = 1/2 max(0, (KS - q_KS) / s_KS) + 1/2 max(0, (PSI - q_PSI) / s_PSI)

The statistic of a check is the mean of the excesses, weighted by importance.

s is at least ``1 / window_rows``, one step of a KS statistic. So a feature that never varied in training (the
flag of a regime in a key of that regime) costs nothing while it stays so, and when it begins to vary counts
by the rows that do: its excess is half their number. Its weight is its importance, as any other's, and the
importance is in units of what the features that varied have together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ml.alarms import AlarmLevels, alarm_levels, strictest
from ml.config import DriftConfig
from ml.drift import FeatureReference, Reference
from ml.drift_simulation import SimulatedChecks, SimulatedTime

__all__ = ["Excess", "FeatureNull", "Scale", "feature_null"]

Floats = NDArray[np.float64]

HIGH: Final = 0.9
QUANTILES: Final = 1001
BLOCK_RATIOS: Final = (1.0, 2.0)
"""Nobody knows how long features remember; they look back 500 candles. Alarms set by blocks of 14 days alone
rang up to 1.6 times their budget in blocks of 30."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How one statistic of each feature is spread without drift."""

    median: tuple[float, ...]
    high: tuple[float, ...]
    """The 0.9 quantile."""
    least: float
    """Of high - median, as it is used."""

    def above(self, statistic: Floats) -> Floats:
        """(..., F) statistics as (statistic - high) / (high - median)."""
        high = np.array(self.high)
        above: Floats = (statistic - high) / np.maximum(high - np.array(self.median), self.least)
        return above

    @classmethod
    def of(cls, statistic: Floats, *, least: float) -> Self:
        """From simulated checks (k, F)."""
        median, high = np.quantile(statistic, (0.5, HIGH), axis=0)
        return cls(median=tuple(median.tolist()), high=tuple(high.tolist()), least=least)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``asdict``."""
        return cls(median=tuple(value["median"]), high=tuple(value["high"]), least=value["least"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """How statistics become one number: see the module's docstring."""

    weight: tuple[float, ...]
    """Importance over that of all features that varied; all 0 where those have none."""
    ks: Scale
    psi: Scale

    def by_feature(self, ks: Floats, psi: Floats) -> Floats:
        """(..., F) what each feature adds, before its weight."""
        excess: Floats = np.maximum(0, self.ks.above(ks)) + np.maximum(0, self.psi.above(psi))
        return excess / 2

    def statistic(self, ks: Floats, psi: Floats) -> Floats:
        """(...) the weighted sum."""
        statistic: Floats = self.by_feature(ks, psi) @ np.array(self.weight)
        return statistic

    def of(self, checks: SimulatedChecks) -> Floats:
        """(k,) the statistic of simulated checks."""
        return self.statistic(checks.ks, checks.psi)

    def extremeness(self, ks: Floats, psi: Floats) -> Floats:
        """(..., F) as ``by_feature``, but below 0 for what is ordinary."""
        above: Floats = self.ks.above(ks) + self.psi.above(psi)
        return above / 2

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``asdict``."""
        return cls(
            weight=tuple(value["weight"]),
            ks=Scale.from_json(value["ks"]),
            psi=Scale.from_json(value["psi"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureNull:
    """The no-drift years of one model's features, or of its confidence as one feature."""

    names: tuple[str, ...]
    window_rows: int
    excess: Excess
    levels: AlarmLevels
    excess_quantiles: tuple[float, ...]
    """Of the statistic over the simulated checks, evenly from the lowest to the highest."""
    extreme_quantiles: tuple[float, ...]
    """The same of the most extreme feature of each check."""

    def p_value(self, statistic: float) -> float:
        """Share of no-drift checks with a statistic at least as large."""
        return float(_share_at_least(self.excess_quantiles, np.array(statistic)))

    def family_wise(self, extremeness: Floats) -> Floats:
        """(F,) share of no-drift checks whose most extreme feature is at least as extreme.

        The max-T correction over features (Westfall & Young, *Resampling-Based Multiple Testing*, 1993): it
        keeps to its level however much the features hang together.
        """
        return _share_at_least(self.extreme_quantiles, extremeness)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "names": list(self.names),
            "window_rows": self.window_rows,
            "excess": asdict(self.excess),
            "levels": self.levels.to_json(),
            "excess_quantiles": list(self.excess_quantiles),
            "extreme_quantiles": list(self.extreme_quantiles),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        return cls(
            names=tuple(value["names"]),
            window_rows=value["window_rows"],
            excess=Excess.from_json(value["excess"]),
            levels=AlarmLevels.from_json(value["levels"]),
            excess_quantiles=tuple(value["excess_quantiles"]),
            extreme_quantiles=tuple(value["extreme_quantiles"]),
        )


def feature_null(
    features: NDArray[np.float32],
    close_time: NDArray[np.datetime64],
    importance: Floats,
    reference: Reference,
    config: DriftConfig,
    *,
    seed: int,
) -> FeatureNull:
    """Simulate ``config.null_months`` without drift, and set the alarms of a model's features by them.

    Twice, in blocks of ``config.block_days`` and of twice as long; of each budget the higher level counts.

    Args:
        features: (n, F) the rows that ``reference`` is of, in time order, n >= 2; fewer than a window are
            enough to draw from.
        close_time: (n,) ascending, over more than no time.
        importance: (F,) adds to 1.
        reference: of them.
        config: window, blocks, months, cooldown.
        seed: of the simulation; same input and seed, same result.

    Raises:
        ValueError: rows out of order, or no time between them.
    """
    years = [
        SimulatedTime(
            features,
            close_time,
            reference,
            months=config.null_months,
            window_rows=config.window_rows,
            block_days=ratio * config.block_days,
            seed=seed + number,
        )
        for number, ratio in enumerate(BLOCK_RATIOS)
    ]
    coarse = SimulatedChecks(
        ks=np.concatenate([year.coarse.ks for year in years]),
        psi=np.concatenate([year.coarse.psi for year in years]),
        day=np.concatenate([year.coarse.day for year in years]),
    )
    excess = _excess(coarse, importance, reference, config.window_rows)
    paths = [year.follow(excess.of) for year in years]
    levels = [alarm_levels(*path, cooldown_days=config.cooldown_days) for path in paths]
    return FeatureNull(
        names=tuple(feature.name for feature in reference.features),
        window_rows=config.window_rows,
        excess=excess,
        levels=strictest(levels),
        excess_quantiles=_quantiles(excess.of(coarse)),
        extreme_quantiles=_quantiles(excess.extremeness(coarse.ks, coarse.psi).max(axis=1)),
    )


def _excess(checks: SimulatedChecks, importance: Floats, reference: Reference, window_rows: int) -> Excess:
    varied = np.array([_varied(feature) for feature in reference.features])
    used = float(importance[varied].sum())
    least = 1 / window_rows
    return Excess(
        weight=tuple((importance / used if used > 0 else 0 * importance).tolist()),
        ks=Scale.of(checks.ks, least=least),
        psi=Scale.of(checks.psi, least=least),
    )


def _varied(feature: FeatureReference) -> bool:
    lowest, highest = feature.sample[0], feature.sample[-1]
    return not (lowest == highest or np.isnan(lowest))


def _quantiles(values: Floats) -> tuple[float, ...]:
    return tuple(np.quantile(values, np.linspace(0, 1, QUANTILES)).tolist())


def _share_at_least(quantiles: tuple[float, ...], values: Floats) -> Floats:
    """Of the simulated values, at least one step of the quantiles."""
    below = np.searchsorted(quantiles, values, side="left")
    return np.clip((len(quantiles) - below) / len(quantiles), 1 / len(quantiles), 1.0)
