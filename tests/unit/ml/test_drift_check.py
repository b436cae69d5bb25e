"""One check: its statistic worked by hand, constant and missing features, the confidence, what it reports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ml.alarms import BUDGET_SHARES, AlarmLevels, SeverityLimits, severity_of
from ml.config import DriftConfig
from ml.drift import Reference, compare, make_reference
from ml.drift_check import LEAST_LEVEL, check_confidence, check_features
from ml.drift_null import Excess, FeatureNull, Scale, feature_null

pytestmark = pytest.mark.drift

LIMITS = SeverityLimits()
CONFIG = DriftConfig(null_months=24)
NAMES = ("calm", "wild", "flag", "unused")
IMPORTANCE = np.array([0.6, 0.3, 0.1, 0.0])


def _rows(n: int, seed: int) -> NDArray[np.float32]:
    """Two features that vary, a constant one, and one that the model does not use."""
    rows = np.random.default_rng(seed).normal(size=(n, 4))
    rows[:, 2] = 1
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def kept() -> tuple[Reference, FeatureNull]:
    rows = _rows(4000, seed=0)
    time = np.datetime64("2020-01-01", "us") + 3 * np.arange(4000) * np.timedelta64(1, "h")
    reference = make_reference(rows, NAMES, IMPORTANCE)
    return reference, feature_null(rows, time, IMPORTANCE, reference, CONFIG, seed=1)


def test_the_statistic_is_the_weighted_excess_and_the_score_holds_it_against_the_level() -> None:
    rows = _rows(1000, seed=0)[:, :2]
    reference = make_reference(rows, NAMES[:2], np.array([0.75, 0.25]))
    null = FeatureNull(
        names=NAMES[:2],
        window_rows=250,
        excess=Excess(
            weight=(0.75, 0.25),
            ks=Scale(median=(0.05, 0.05), high=(0.1, 0.15), least=0.004),
            psi=Scale(median=(0.1, 0.1), high=(0.2, 0.2), least=0.004),
        ),
        levels=AlarmLevels(level=(0.25, 1.0, 4.0), per_month=(2.0, 0.5, 0.1)),
        excess_quantiles=(0.0, 0.5, 1.0, 5.0, 100.0),
        extreme_quantiles=(0.0, 1.0, 2.0, 50.0, 100.0),
    )
    current = rows[:250] + np.array([0.8, 0.0], np.float32)

    check = check_features(reference, null, current, LIMITS, budget_per_month=1.0)

    ks, psi = compare(reference, current)
    moved = ((ks[0] - 0.1) / 0.05 + (psi[0] - 0.2) / 0.1) / 2
    assert ks[1] < 0.15 and psi[1] < 0.2  # nothing beyond the ordinary
    assert check.statistic == pytest.approx(0.75 * moved, rel=1e-12)
    assert (check.kind, check.level) == ("features", 1.0)  # half of the budget of 1 a month
    assert check.score == pytest.approx(0.2 * check.statistic, rel=1e-12)
    assert (check.reference_rows, check.current_rows) == (1000, 250)
    assert check.p_value == 0.4  # two of five
    first, second = check.features
    assert (first.name, first.importance, first.ks, first.psi) == ("calm", 0.75, ks[0], psi[0])
    assert first.excess == pytest.approx(moved, rel=1e-12)
    assert (first.p_value, first.drifted) == (0.4, False)  # over both limits, but not beyond chance
    assert (second.name, second.excess, second.drifted) == ("wild", 0.0, False)
    strict = check_features(reference, null, current, LIMITS, budget_per_month=0.2)
    assert strict.level == 4.0
    assert strict.score == pytest.approx(check.score / 4, rel=1e-12)


def test_fewer_rows_than_the_nulls_are_held_against_it_by_what_chance_makes_of_them(
    kept: tuple[Reference, FeatureNull],
) -> None:
    reference, null = kept
    current = _rows(200, seed=5) + np.array([0, 1, 0, 0], np.float32)

    check = check_features(reference, null, current, LIMITS, budget_per_month=1.0)

    ks, psi = compare(reference, current)
    assert check.statistic == pytest.approx(null.excess.statistic(ks * 0.8**0.5, psi * 0.8), rel=1e-12)
    assert (check.features[0].ks, check.features[0].psi) == (ks[1], psi[1])
    more = np.concatenate([current, current])
    assert check_features(reference, null, more, LIMITS, budget_per_month=1.0).statistic == pytest.approx(
        null.excess.statistic(*compare(reference, more)), rel=1e-12
    )


def test_the_same_market_is_no_drift(kept: tuple[Reference, FeatureNull]) -> None:
    check = check_features(*kept, _rows(250, seed=5), LIMITS, budget_per_month=1.0)

    assert severity_of(check.score, LIMITS) == "none"
    assert check.details == {"window_rows": 250, "drifted_features": 0, "alarms_per_month": 0.5}
    assert check.p_value is not None and check.p_value > 0.05


def test_a_moved_feature_is_named_first_and_called_drifted(kept: tuple[Reference, FeatureNull]) -> None:
    current = _rows(250, seed=5)
    current[:, 1] += 1

    check = check_features(*kept, current, LIMITS, budget_per_month=1.0)

    assert severity_of(check.score, LIMITS) == "critical"
    assert [feature.name for feature in check.features if feature.drifted] == ["wild"]
    assert check.features[0].name == "wild"
    assert check.features[0].p_value <= 0.001
    assert len(check.features) == 4


def test_a_feature_the_model_does_not_use_alarms_nobody(kept: tuple[Reference, FeatureNull]) -> None:
    current = _rows(250, seed=5)
    still = check_features(*kept, current, LIMITS, budget_per_month=1.0)
    current[:, 3] += 5

    check = check_features(*kept, current, LIMITS, budget_per_month=1.0)

    assert check.score == still.score
    assert next(feature for feature in check.features if feature.name == "unused").drifted


def test_a_constant_that_begins_to_vary_counts_by_the_rows_that_do(
    kept: tuple[Reference, FeatureNull],
) -> None:
    current = _rows(250, seed=5)
    still = check_features(*kept, current, LIMITS, budget_per_month=1.0)
    current[:60, 2] = 0

    check = check_features(*kept, current, LIMITS, budget_per_month=1.0)

    flag = check.features[0]
    assert (flag.name, flag.ks, flag.psi) == ("flag", 60 / 250, 0.0)
    assert flag.excess == pytest.approx(60 / 2)
    # Weights are shares of the importance of what varied: 0.9.
    assert check.statistic - still.statistic == pytest.approx(0.1 / 0.9 * 60 / 2)
    assert severity_of(check.score, LIMITS) == "critical"
    assert flag.drifted


def test_a_feature_that_goes_missing_is_critical(kept: tuple[Reference, FeatureNull]) -> None:
    current = _rows(250, seed=5)
    current[:, 0] = np.nan

    check = check_features(*kept, current, LIMITS, budget_per_month=1.0)

    assert severity_of(check.score, LIMITS) == "critical"
    assert (check.features[0].name, check.features[0].ks) == ("calm", 1.0)


def test_a_model_without_any_varying_feature_has_no_drift_to_report() -> None:
    rows = np.ones((500, 2), np.float32)
    time = np.datetime64("2020-01-01", "us") + np.arange(500) * np.timedelta64(1, "h")
    reference = make_reference(rows, NAMES[:2], np.array([0.5, 0.5]))
    null = feature_null(rows, time, np.array([0.5, 0.5]), reference, CONFIG, seed=1)

    check = check_features(reference, null, rows[:250], LIMITS, budget_per_month=1.0)

    assert (check.score, check.statistic, check.level) == (0.0, 0.0, LEAST_LEVEL)


def test_the_confidence_is_compared_with_what_was_said_of_unseen_rows() -> None:
    said = np.random.default_rng(0).beta(8, 6, 2000)
    time = np.datetime64("2020-01-01", "us") + 3 * np.arange(2000) * np.timedelta64(1, "h")
    reference = make_reference(_rows(100, 0), NAMES, IMPORTANCE, confidence=said)
    assert reference.confidence is not None
    alone = Reference((reference.confidence,), len(said))
    null = feature_null(said.astype(np.float32)[:, None], time, np.ones(1), alone, CONFIG, seed=1)
    fresh = np.random.default_rng(1).beta(8, 6, 250)

    calm = check_confidence(reference, null, fresh, LIMITS, budget_per_month=1.0)
    moved = check_confidence(reference, null, fresh - 0.1, LIMITS, budget_per_month=1.0)

    assert (calm.kind, severity_of(calm.score, LIMITS)) == ("scores", "none")
    assert severity_of(moved.score, LIMITS) == "critical"
    assert moved.level == max(LEAST_LEVEL, null.levels.at(BUDGET_SHARES["scores"]))
    assert (moved.reference_rows, moved.current_rows, len(moved.features)) == (2000, 250, 1)
    with pytest.raises(ValueError, match="no confidence"):
        check_confidence(replace(reference, confidence=None), null, fresh, LIMITS, budget_per_month=1.0)


def test_a_check_of_no_rows_is_refused(kept: tuple[Reference, FeatureNull]) -> None:
    with pytest.raises(ValueError, match="empty"):
        check_features(*kept, np.empty((0, 4), np.float32), LIMITS, budget_per_month=1.0)
