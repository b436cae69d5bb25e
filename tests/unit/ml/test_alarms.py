"""Alarm levels counted by hand; severities at their very limits."""

from __future__ import annotations

import numpy as np
import pytest

from ml.alarms import (
    BUDGET_SCORE,
    BUDGET_SHARES,
    AlarmLevels,
    SeverityLimits,
    alarm_levels,
    drift_score,
    severity_of,
    strictest,
    triggered,
)

pytestmark = pytest.mark.drift


@pytest.mark.parametrize(
    ("score", "severity"),
    [
        (0.0, "none"),
        (0.10, "none"),
        (0.1001, "low"),
        (0.15, "low"),
        (0.1501, "medium"),
        (0.20, "medium"),
        (0.2001, "high"),
        (0.30, "high"),
        (0.3001, "critical"),
    ],
)
def test_a_severity_begins_over_its_limit(score: float, severity: str) -> None:
    assert severity_of(score, SeverityLimits()) == severity


def test_the_score_is_in_units_of_the_budgets_level() -> None:
    assert drift_score(3.0, 3.0) == BUDGET_SCORE
    assert drift_score(4.5, 3.0) == pytest.approx(0.30)
    assert drift_score(-1.0, 3.0) == 0.0
    assert sum(BUDGET_SHARES.values()) == pytest.approx(1.0)


def test_a_cooldown_swallows_the_alarms_after_one() -> None:
    day = np.array([0.0, 1, 6.9, 7, 13.9, 20, 100])

    assert triggered(np.ones(7, bool), day, cooldown_days=7) == 4  # 0, 7, 20, 100
    assert triggered(np.ones(7, bool), day, cooldown_days=0) == 7
    assert triggered(np.array([0, 1, 1, 1, 0, 0, 0], bool), day, cooldown_days=7) == 1
    assert triggered(np.zeros(7, bool), day, cooldown_days=7) == 0


def test_levels_are_rated_by_the_upper_bound_of_what_they_trigger() -> None:
    # One check a day for 100 months; the statistic is over 1 once in 30.44 days, and over 2 never.
    day = np.arange(3045.0)
    statistic = np.where(day % 30 == 0, 2.0, np.linspace(0, 1, 3045))

    levels = alarm_levels(statistic, day, cooldown_days=7)

    assert levels.level == tuple(sorted(set(levels.level)))
    assert levels.per_month == tuple(sorted(levels.per_month, reverse=True))
    # Garwood's bound of none in 100 months is -ln 0.05 / 100.
    assert levels.level[-1] == 2.0
    assert levels.per_month[-1] == pytest.approx(-np.log(0.05) / 100, rel=1e-3)
    assert levels.at(0.5) == 2.0  # 102 in 100 months are more than one in two
    assert levels.at(1.5) < 2.0
    assert AlarmLevels.from_json(levels.to_json()) == levels


def test_a_budget_that_no_level_keeps_gets_the_highest_level() -> None:
    assert AlarmLevels(level=(1.0, 2.0), per_month=(3.0, 1.0)).at(0.1) == 2.0


def test_the_strictest_of_two_simulations_asks_the_higher_level_of_each_budget() -> None:
    one = AlarmLevels(level=(1.0, 3.0), per_month=(2.0, 0.5))
    other = AlarmLevels(level=(2.0, 4.0), per_month=(1.0, 0.1))

    both = strictest([one, other])

    # Below 2 the other is not known; between levels a simulation rings as at the lower one.
    assert both == AlarmLevels(level=(2.0, 3.0, 4.0), per_month=(2.0, 1.0, 0.5))
    assert strictest([one]) == one
    with pytest.raises(ValueError, match="no simulations"):
        strictest([])


@pytest.mark.parametrize("day", [[], [1.0], [1.0, 1.0]])
def test_levels_need_checks_over_some_time(day: list[float]) -> None:
    with pytest.raises(ValueError, match="some span of time"):
        alarm_levels(np.zeros(len(day)), np.array(day), cooldown_days=7)
