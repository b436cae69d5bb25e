"""How many retrainings all four kinds of drift check together trigger in years in which nothing drifts.

Independent bootstraps share one time axis. Features are drawn from the rows that the model learned from, as
the null of features is; confidence from those that the trees have not seen (of rows they grew on, a model is
surer than it should be); outcomes either from the test rows alone, or with the confidence, from calibrate and
test rows, as the null of outcomes is. Independent kinds ring at more different times than kinds that
ring together: this counts rather too many than too few.

A champion lives a year. With each year its outcomes begin anew, and so does the past that it was judged by,
as long as its test span and drawn from the same rows: a past is as uncertain as the years held against it.
Windows of features and confidence do not begin anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_power import AlarmRate
from ml.alarms import BUDGET_SCORE, BUDGET_SHARES, DAYS_PER_MONTH, DriftKind, drift_score, triggered
from ml.candles import to_datetime
from ml.config import DriftConfig, TrainingConfig
from ml.decay import MIN_JUDGED, GoodPast, OutcomeNull, SeriesNull, page_hinkley
from ml.drift import Reference
from ml.drift_calibration import DriftReference
from ml.drift_check import alarm_level
from ml.drift_null import FeatureNull
from ml.drift_simulation import SimulatedTime, draw_days
from ml.keys import REGIMES, ModelKey, interval_duration
from ml.rows import SignalRows
from ml.splits import split
from ml.training import FittedBooster, fit_key, own_rows

__all__ = ["Champion", "JointRate", "Outcomes", "joint_rate", "life_scores"]

LIFE_DAYS: Final = 365.25
Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
OutcomeRows = Literal["test", "unseen"]
Path = tuple[Floats, Floats]
"""Scores (k,) and the days (k,) on which they were seen, ascending."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """Answers of which it is known what became of them, in the order of their signals."""

    confidence: Floats
    label: Floats
    regime: NDArray[np.int8]

    @property
    def residual(self) -> Floats:
        """(n,) confidence less label."""
        return self.confidence - self.label


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Champion:
    """A key's model, and what its years are made of."""

    trained: SignalRows
    unseen: SignalRows
    """Calibrate and test rows."""
    confidence: Floats
    """(n,) of ``unseen``."""
    judged: NDArray[np.bool_]
    """(n,) which of ``unseen`` are test rows."""
    judged_days: float
    """Between the first and the last of those."""
    horizon_days: float
    """An outcome is known so much later than its signal."""
    drift: DriftReference
    config: DriftConfig

    def outcomes(self, rows: Rows) -> Outcomes:
        """Of these rows of ``unseen``."""
        return Outcomes(self.confidence[rows], self.unseen.label[rows], self.unseen.regime[rows])

    @classmethod
    def of(cls, key: ModelKey, rows: SignalRows, fitted: FittedBooster, config: TrainingConfig) -> Champion:
        """As training makes it. Raises TrainingRefused.

        Args:
            key: whose model.
            rows: its symbol's at least, of all regimes.
            fitted: the trees.
            config: all of it.
        """
        bar = interval_duration(key.interval)
        own = own_rows(key, rows)
        parts = split(own, fitted.times, embargo=config.split.embargo_bars * bar)
        made = fit_key(key, rows, fitted, config, as_of=to_datetime(own.close_time[-1]))
        unseen = own.take(np.concatenate([parts.calibrate, parts.test]))
        days = _days(made.test.close_time)
        return cls(
            trained=own.take(np.concatenate([parts.fit, parts.early_stop, parts.calibrate])),
            unseen=unseen,
            confidence=made.predictor.confidence(unseen.features),
            judged=np.arange(len(unseen)) >= len(parts.calibrate),
            judged_days=float(days[-1]),
            horizon_days=config.labels.horizon_bars * bar / timedelta(days=1),
            drift=made.drift,
            config=config.drift,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JointRate:
    """Retrainings triggered in simulated time without drift."""

    all_kinds: AlarmRate
    alone: dict[DriftKind, AlarmRate]
    """Were there no other kind."""


def joint_rate(
    champion: Champion, *, outcomes: OutcomeRows, block_days: float, months: float, seed: int
) -> JointRate:
    """Simulate ``months`` without drift, check all four kinds as they change, and count retrainings.

    One is triggered where the score of any kind is over the budget's, and none for the cooldown after it.

    Args:
        champion: of the key.
        outcomes: the rows that outcomes are drawn from.
        block_days: of every bootstrap.
        months: how long.
        seed: other than the null's.
    """
    paths = joint_paths(champion, outcomes=outcomes, block_days=block_days, months=months, seed=seed)
    last = min(float(day[-1]) for _, day in paths.values())

    def rate(*kinds: DriftKind) -> AlarmRate:
        score, day = (np.concatenate(part) for part in zip(*(paths[kind] for kind in kinds), strict=True))
        order = np.argsort(day, kind="stable")
        order = order[day[order] <= last]
        over = score[order] > BUDGET_SCORE
        count = triggered(over, day[order], champion.config.cooldown_days)
        return AlarmRate(count=count, months=last / DAYS_PER_MONTH)

    return JointRate(all_kinds=rate(*paths), alone={kind: rate(kind) for kind in paths})


def joint_paths(
    champion: Champion, *, outcomes: OutcomeRows, block_days: float, months: float, seed: int
) -> dict[DriftKind, Path]:
    """Each kind's scores over one simulated time that begins on day 0."""
    drift, config = champion.drift, champion.config
    said = drift.reference.confidence
    assert said is not None
    nulls = drift.calibration

    def simulated(features: NDArray[np.float32], rows: SignalRows, of: Reference, seed: int) -> SimulatedTime:
        return SimulatedTime(
            features,
            rows.close_time,
            of,
            months=months,
            window_rows=config.window_rows,
            block_days=block_days,
            seed=seed,
        )

    learned = simulated(champion.trained.features, champion.trained, drift.reference, seed)
    as_feature = champion.confidence.astype(np.float32)[:, None]
    answered = simulated(as_feature, champion.unseen, Reference((said,), len(champion.unseen)), seed + 1)
    budget, generator = config.false_retrainings_per_month, np.random.default_rng(seed + 2)
    if outcomes == "unseen":
        pool = np.arange(len(champion.unseen))
        rows, day = answered.rows, answered.day - answered.day[config.window_rows - 1]
    else:
        pool = np.flatnonzero(champion.judged)
        rows, day = draw_days(
            _days(champion.unseen.close_time[pool]),
            days=months * DAYS_PER_MONTH,
            block_days=block_days,
            generator=generator,
        )
    return {
        "features": _followed("features", nulls.features, learned, budget),
        "scores": _followed("scores", nulls.confidence, answered, budget),
        **_lives(champion, pool, rows, day, block_days, generator),
    }


def life_scores(
    null: OutcomeNull, outcomes: Outcomes, judged: Outcomes, budget_per_month: float
) -> dict[DriftKind, Floats]:
    """What ``check_outcomes`` would score after each of a life's outcomes, had ``judged`` been its past."""
    found: dict[DriftKind, Floats] = {}
    series: tuple[tuple[DriftKind, SeriesNull, Floats, Floats], ...] = (
        ("calibration", null.calibration, outcomes.residual, judged.residual),
        ("accuracy", null.accuracy, outcomes.residual**2, judged.residual**2),
    )
    for kind, of, live, past in series:
        mean = _means(past, judged.regime)
        good = GoodPast.of(past - mean[judged.regime])
        up, down = page_hinkley(live - mean[outcomes.regime], past=good)
        statistic = up if kind == "accuracy" else np.maximum(up, down)
        found[kind] = _scores(statistic, of.levels.at(budget_per_month * BUDGET_SHARES[kind]))
    return found


def _means(series: Floats, regime: NDArray[np.int8]) -> Floats:
    """(R,) by regime; of all rows where a regime has too few."""
    own = [series[regime == code] for code in range(len(REGIMES))]
    return np.array([(one if len(one) >= MIN_JUDGED else series).mean() for one in own])


def _lives(
    champion: Champion,
    pool: Rows,
    rows: Rows,
    day: Floats,
    block_days: float,
    generator: np.random.Generator,
) -> dict[DriftKind, Path]:
    """Of *calibration* and *accuracy*: ``rows`` of ``pool`` are signals on ``day``; each life begins anew."""
    at = _days(champion.unseen.close_time[pool])
    scores: dict[DriftKind, list[Floats]] = {"calibration": [], "accuracy": []}
    days = []
    for begin in np.arange(0.0, day[-1], LIFE_DAYS):
        past, _ = draw_days(at, days=champion.judged_days, block_days=block_days, generator=generator)
        live = (day >= begin) & (day < begin + LIFE_DAYS - champion.horizon_days)
        found = life_scores(
            champion.drift.calibration.outcomes,
            champion.outcomes(pool[rows[live]]),
            champion.outcomes(pool[past]),
            champion.config.false_retrainings_per_month,
        )
        days.append(day[live] + champion.horizon_days)
        for kind, score in found.items():
            scores[kind].append(score)
    return {kind: (np.concatenate(lives), np.concatenate(days)) for kind, lives in scores.items()}


def _followed(kind: DriftKind, null: FeatureNull, time: SimulatedTime, budget: float) -> Path:
    statistic, day = time.follow(null.excess.of)
    return _scores(statistic, alarm_level(kind, null, budget)), day - day[0]


def _scores(statistic: Floats, level: float) -> Floats:
    return np.array([drift_score(value, level) for value in statistic.tolist()])


def _days(time: NDArray[np.datetime64]) -> Floats:
    """(n,) days since the first."""
    days: Floats = (time - time[0]) / np.timedelta64(1, "D")
    return days
