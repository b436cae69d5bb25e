"""Retrainings that all four kinds of drift check together trigger in years without drift."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from benchmarks.drift_joint import Champion, joint_rate, life_scores
from ml.alarms import BUDGET_SHARES
from ml.config import TrainingConfig
from ml.decay import check_outcomes
from ml.keys import ModelKey
from ml.rows import SignalRows
from ml.training import FittedBooster, fit_booster
from tests.real_rows import KEYS, trained_rows

pytestmark = pytest.mark.drift

CONFIG = TrainingConfig.from_mapping(
    {"fit": {"n_estimators": 60, "learning_rate": 0.05, "threads": 1}, "bootstrap_samples": 100}
)
BUDGET = CONFIG.drift.false_retrainings_per_month
OTHER_SEED = 4321
BTC, ETH = ModelKey("BTCUSDT", "1h", "volatile"), ModelKey("ETHUSDT", "1h", "sideways")


@cache
def fitted() -> tuple[SignalRows, FittedBooster]:
    own = [trained_rows(key) for key in KEYS]
    rows = SignalRows.concatenate([part for one in own for part in (one.trained, one.test)])
    return rows, fit_booster(rows, CONFIG, interval="1h")


@cache
def champion(key: ModelKey) -> Champion:
    return Champion.of(key, *fitted(), CONFIG)


@pytest.mark.parametrize("key", [BTC, ETH], ids=str)
def test_all_kinds_together_keep_to_the_budget_in_years_without_drift(key: ModelKey) -> None:
    found = joint_rate(champion(key), outcomes="unseen", block_days=30.0, months=360, seed=OTHER_SEED)

    alone = {kind: rate.count for kind, rate in found.alone.items()}
    assert found.all_kinds.months > 350
    assert found.all_kinds.upper <= 1.5 * BUDGET, found
    assert alone.keys() == BUDGET_SHARES.keys()
    assert min(alone.values()) > 0  # an alarm that never rings keeps to any budget
    assert max(alone.values()) < found.all_kinds.count <= sum(alone.values())


@pytest.mark.parametrize("key", [BTC, BTC.fallback], ids=str)
def test_a_lifes_scores_are_those_of_the_checks_after_each_outcome(key: ModelKey) -> None:
    own = champion(key)
    judged = own.outcomes(np.arange(len(own.unseen)))  # what their null is of
    live, time = own.outcomes(np.flatnonzero(own.judged)), own.unseen.close_time[own.judged]
    null = own.drift.calibration.outcomes

    scores = life_scores(null, live, judged, BUDGET)

    for count in (1, 60, 300):
        checks = check_outcomes(
            null,
            live.confidence[:count],
            live.label[:count],
            live.regime[:count],
            time[:count],
            budget_per_month=BUDGET,
        )
        assert [check.score for check in checks] == pytest.approx(
            [scores[check.kind][count - 1] for check in checks]
        )
