"""Whether a champion has become worse than it was judged to be: a sequential test on its matured outcomes.

Two series, in the order of the signals: the Brier loss ``(confidence - label)^2``, watched for a rise
(*accuracy*), and the residual ``confidence - label``, watched both ways (*calibration*: up is promising too
much). The detector is that of Page (*Continuous inspection schemes*, Biometrika 1954) and Hinkley (*Inference
about the change-point from cumulative sum tests*, Biometrika 1971), number for number as the library river
computes it: see ``page_hinkley``.

The outcomes the model was judged by, its test rows, are the known good past: the running mean starts with
them, so a model that is bad from its first day is found too. The sums start at 0: those rows were accepted,
and what they added up to is no news of the time since.

Each value counts by how far it is off the judged mean of its regime. A model of ``all`` is judged on every
regime, but answers only those that have no model of their own: had these a worse mean from the start, their
share of the answers would be taken for decay.

How high the statistic must be is read off lives without drift, made of blocks of the judged rows: see
``outcome_null``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ml.alarms import BUDGET_SHARES, DAYS_PER_MONTH, AlarmLevels, DriftCheck, alarm_levels, drift_score
from ml.config import DriftConfig
from ml.keys import REGIMES

__all__ = [
    "GoodPast",
    "OutcomeNull",
    "SeriesNull",
    "check_outcomes",
    "outcome_null",
    "page_hinkley",
    "strictest",
]

Floats = NDArray[np.float64]
Codes = NDArray[np.int8]
"""Indices into ``REGIMES``; of live rows -1 where the regime is not known."""
OutcomeKind = Literal["calibration", "accuracy"]

FORGETTING: Final = 1 - 0.0001
"""river's default: what happened 10,000 outcomes ago counts a third."""
DELTA_SHARE: Final = 0.1
"""Of the series' standard deviation. Page's scheme is best for a shift of twice its allowance: 0.2 deviations
are what a typical model loses in Brier score when it comes to know nothing (0.03), and 9 points of hit rate.
"""
MIN_JUDGED: Final = 30
"""river's ``min_instances``: a mean of fewer is no past to compare with."""
LIFE_MONTHS: Final = 12.0
REPEATS: Final = 5
"""Alarms of one life come in clumps: ten lives are too few to know their rate by."""
BLOCK_RATIOS: Final = (0.5, 1.0, 2.0)
"""Nobody knows how long outcomes remember: the level has to hold at half and at twice the block too."""
MIN_BLOCKS: Final = 4
QUANTILES: Final = 201
LOWEST_LEVEL: Final = 1.0
"""One outcome, as bad as can be, never spends the budget, not even where all that were judged were alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodPast:
    """What the detector knows of a series before its first live value."""

    rows: int
    mean: float
    delta: float
    """Allowance: what each value may be off the mean before it adds to the sums."""

    @classmethod
    def of(cls, series: Floats) -> Self:
        """From the judged values (n,), n >= 1."""
        return cls(rows=len(series), mean=float(series.mean()), delta=DELTA_SHARE * float(series.std()))


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesNull:
    """One series of one model where nothing drifts."""

    centre: tuple[float, ...]
    """See ``_centre``."""
    past: GoodPast
    """Of the series less its centre."""
    levels: AlarmLevels
    quantiles: tuple[float, ...]
    """Of the statistic over the simulated lives, evenly from the lowest to the highest: for p-values."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "centre": list(self.centre),
            "past": asdict(self.past),
            "levels": self.levels.to_json(),
            "quantiles": list(self.quantiles),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        return cls(
            centre=tuple(value["centre"]),
            past=GoodPast(**value["past"]),
            levels=AlarmLevels.from_json(value["levels"]),
            quantiles=tuple(value["quantiles"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeNull:
    """What a model's outcomes were when it was judged, and how its statistics wander while that stays so."""

    calibration: SeriesNull
    accuracy: SeriesNull

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"calibration": self.calibration.to_json(), "accuracy": self.accuracy.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        return cls(
            calibration=SeriesNull.from_json(value["calibration"]),
            accuracy=SeriesNull.from_json(value["accuracy"]),
        )


def page_hinkley(series: Floats, *, past: GoodPast) -> tuple[Floats, Floats]:
    """The statistic of the Page-Hinkley test after each value, upward and downward.

    With x the series, m its running mean (the past counts as ``past.rows`` values), d the allowance and a the
    forgetting: ``up_t = a up_(t-1) + x_t - m_t - d``, and the upward statistic is ``up_t - min(0, up_1 ..
    up_t)``; ``down_t = a down_(t-1) + x_t - m_t + d`` and ``max(0, down_1 .. down_t) - down_t``. river's
    ``drift.PageHinkley`` has the same values, and alarms where one is over its threshold.

    Args:
        series: (m,) in time order, without NaN.
        past: ``rows`` may be 0: then the first value is the first mean.

    Returns:
        Two arrays (m,), at least 0, in units of the series.
    """
    steps = np.arange(1, len(series) + 1)
    mean = (past.rows * past.mean + np.cumsum(series)) / (past.rows + steps)
    faded = FORGETTING**steps
    up = faded * np.cumsum((series - mean - past.delta) / faded)
    down = faded * np.cumsum((series - mean + past.delta) / faded)
    lowest = np.minimum.accumulate(np.minimum(up, 0.0))
    highest = np.maximum.accumulate(np.maximum(down, 0.0))
    return up - lowest, highest - down


def outcome_null(
    confidence: Floats,
    label: Floats,
    regime: Codes,
    close_time: NDArray[np.datetime64],
    config: DriftConfig,
    *,
    seed: int,
) -> OutcomeNull:
    """Simulate ``config.null_months`` of a champion that does not change, and set its alarms by them.

    Lives of a year, one after the other. Of each the judged past and the live outcomes both are drawn anew in
    blocks of ``config.block_days`` (circular block bootstrap, Politis & Romano 1992), so that the past is as
    uncertain as it is, and outcomes come as often, and as alike, as the judged ones did. The statistic is
    looked at after each outcome, as production does. After a retraining and its cooldown the life goes on as
    it was, as that of a champion does whose challenger was rejected: a statistic that is still high triggers
    again, so the levels are rather too high than too low.

    Args:
        confidence: (n,) of the judged rows, in [0, 1].
        label: (n,) their outcomes, 0 or 1.
        regime: (n,) index into ``REGIMES``.
        close_time: (n,) ascending.
        config: blocks, months and cooldown.
        seed: same input and seed, same result.

    Raises:
        ValueError: fewer than ``MIN_JUDGED`` rows, an outcome that is not known, or rows out of order or all
            of one moment.
    """
    if len(label) < MIN_JUDGED or not np.isfinite(confidence + label).all():
        raise ValueError(f"outcome_null needs {MIN_JUDGED} judged rows with outcomes; got {len(label)}")
    at = (close_time - close_time[0]) / np.timedelta64(1, "D")
    if at[-1] <= 0 or (np.diff(at) < 0).any():
        raise ValueError("judged rows must be sorted by close_time and last some time")
    residual = confidence - label
    generator = np.random.default_rng(seed)
    lives = [
        _Lives(
            at, block_days=config.block_days * ratio, months=config.null_months * REPEATS, generator=generator
        )
        for ratio in BLOCK_RATIOS
    ]
    return OutcomeNull(
        calibration=_series_null("calibration", residual, regime, lives, config),
        accuracy=_series_null("accuracy", residual**2, regime, lives, config),
    )


def _centre(series: Floats, regime: Codes) -> Floats:
    """(R + 1,) judged mean by regime; that of all n rows where a regime has fewer than ``MIN_JUDGED``.

    The last, which index -1 finds, is that of all rows.
    """
    rows = np.bincount(regime, minlength=len(REGIMES))
    total = np.bincount(regime, weights=series, minlength=len(REGIMES))
    means = np.where(rows >= MIN_JUDGED, total / np.maximum(rows, 1), series.mean())
    return np.append(means, series.mean())


class _Lives:
    """Which judged row each simulated outcome is, and on which day: drawn once, for both series."""

    def __init__(
        self, at: Floats, *, block_days: float, months: float, generator: np.random.Generator
    ) -> None:
        self._at = at
        # The circle closes after one more step of the mean length, or outcomes would come too fast.
        self._span = at[-1] * len(at) / (len(at) - 1)
        self._block = min(block_days, self._span / MIN_BLOCKS)
        count = max(1, round(months / LIFE_MONTHS))
        self._days = months * DAYS_PER_MONTH / count
        self._lives = [
            (self._draw(self._span, generator)[0], *self._draw(self._days, generator)) for _ in range(count)
        ]

    def _draw(self, days: float, generator: np.random.Generator) -> tuple[NDArray[np.intp], Floats]:
        """Rows (m,) of ``days`` in blocks, and the day of each."""
        circle = np.concatenate([self._at, self._at + self._span])
        starts = generator.uniform(0, self._span, int(np.ceil(days / self._block)))
        first = np.searchsorted(circle, starts)
        size = np.searchsorted(circle, starts + self._block) - first
        place = np.arange(size.sum()) + np.repeat(first - (np.cumsum(size) - size), size)
        day = circle[place] + np.repeat(np.arange(len(starts)) * self._block - starts, size)
        kept = day < days
        return place[kept] % len(self._at), day[kept]

    def statistic(self, kind: OutcomeKind, series: Floats, regime: Codes) -> tuple[Floats, Floats]:
        """(d,) highest of each day with an outcome, life after life, and (d,) the days.

        Each life has the centre of its own judged past: that is as uncertain as the past is.
        A cooldown is days long, so of a day it only counts whether it was over a level at any time of it.
        """
        paths, days = [], []
        for number, (judged, live, day) in enumerate(self._lives):
            if len(judged) and len(live):
                off = series - _centre(series[judged], regime[judged])[regime]
                path = _statistic(kind, *page_hinkley(off[live], past=GoodPast.of(off[judged])))
                first = np.flatnonzero(np.diff(np.floor(day), prepend=-1.0))
                paths.append(np.maximum.reduceat(path, first))
                days.append(day[first] + number * self._days)
        return np.concatenate(paths), np.concatenate(days)


def _series_null(
    kind: OutcomeKind, series: Floats, regime: Codes, simulations: Sequence[_Lives], config: DriftConfig
) -> SeriesNull:
    found = [lives.statistic(kind, series, regime) for lives in simulations]
    centre = _centre(series, regime)
    quantiles = np.quantile(np.concatenate([path for path, _ in found]), np.linspace(0, 1, QUANTILES))
    return SeriesNull(
        centre=tuple(centre.tolist()),
        past=GoodPast.of(series - centre[regime]),
        levels=strictest([alarm_levels(*one, cooldown_days=config.cooldown_days) for one in found]),
        quantiles=tuple(quantiles.tolist()),
    )


def strictest(simulations: Sequence[AlarmLevels]) -> AlarmLevels:
    """At every level, from ``LOWEST_LEVEL`` on, the highest rate of any simulation."""
    level = np.unique([max(LOWEST_LEVEL, one) for levels in simulations for one in levels.level])
    rates = []
    for levels in simulations:
        # Between two levels as often as at the lower one; below the lowest it is not known, so never enough.
        place = np.searchsorted(levels.level, level, side="right") - 1
        rates.append(np.where(place < 0, np.inf, np.array(levels.per_month)[place]))
    highest = np.max(rates, axis=0)
    known = np.isfinite(highest)
    return AlarmLevels(level=tuple(level[known].tolist()), per_month=tuple(highest[known].tolist()))


def _statistic(kind: OutcomeKind, up: Floats, down: Floats) -> Floats:
    return up if kind == "accuracy" else np.maximum(up, down)


def check_outcomes(
    null: OutcomeNull,
    confidence: Floats,
    label: Floats,
    regime: Codes,
    signal_time: NDArray[np.datetime64],
    *,
    budget_per_month: float,
) -> tuple[DriftCheck, ...]:
    """Hold a champion's outcomes since its promotion against its null.

    The statistic is that of now: one that was high and came down again is no reason to retrain.

    Args:
        null: of the champion.
        confidence: (m,) as it answered, m >= 0.
        label: (m,) 0 or 1; signals whose outcome is not known are not given.
        regime: (m,) index into ``REGIMES``, or -1.
        signal_time: (m,) ascending.
        budget_per_month: a key's false retrainings of all kinds together.

    Returns:
        *calibration* and *accuracy*, or nothing where no outcome is known. ``details`` holds ``mean_live``
        of the series and ``mean_judged`` of as many judged rows of each of its regimes, ``direction`` (up or
        down) and ``since``, the signal with which the statistic last left 0 (None: it is 0).

    Raises:
        ValueError: signals out of order, or one without confidence or outcome.
    """
    if len(label) == 0:
        return ()
    if (signal_time[1:] < signal_time[:-1]).any() or not np.isfinite(confidence + label).all():
        raise ValueError("outcomes must be known and sorted by signal_time")
    residual = confidence - label
    return (
        _check("calibration", null.calibration, residual, regime, signal_time, budget_per_month),
        _check("accuracy", null.accuracy, residual**2, regime, signal_time, budget_per_month),
    )


def _check(
    kind: OutcomeKind,
    null: SeriesNull,
    series: Floats,
    regime: Codes,
    time: NDArray[np.datetime64],
    budget: float,
) -> DriftCheck:
    expected = np.array(null.centre)[regime]
    up, down = page_hinkley(series - expected, past=null.past)
    upward = kind == "accuracy" or bool(up[-1] >= down[-1])
    path = up if upward else down
    statistic, level = float(path[-1]), null.levels.at(budget * BUDGET_SHARES[kind])
    at_rest = np.flatnonzero(path == 0)
    left = int(at_rest[-1]) + 1 if len(at_rest) else 0
    return DriftCheck(
        kind=kind,
        score=drift_score(statistic, level),
        p_value=_share_at_least(null.quantiles, statistic),
        reference_rows=null.past.rows,
        current_rows=len(series),
        statistic=statistic,
        level=level,
        details={
            "mean_judged": float(expected.mean()) + null.past.mean,
            "mean_live": float(series.mean()),
            "direction": "up" if upward else "down",
            "since": str(time[left]) if left < len(time) else None,
        },
    )


def _share_at_least(quantiles: tuple[float, ...], statistic: float) -> float:
    """Share of the simulated statistics that are not lower, at least one step of the quantiles."""
    below = int(np.searchsorted(quantiles, statistic, side="left"))
    return min(1.0, max(1, len(quantiles) - below) / len(quantiles))
