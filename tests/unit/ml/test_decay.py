from __future__ import annotations

import json
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from river.drift import PageHinkley

from ml.alarms import BUDGET_SHARES, AlarmLevels, DriftCheck, SeverityLimits, severity_of
from ml.config import DriftConfig
from ml.decay import GoodPast, OutcomeNull, check_outcomes, outcome_null, page_hinkley, strictest
from tests.unit.ml.real_outcomes import history, real_outcomes

pytestmark = pytest.mark.drift

Floats = NDArray[np.float64]
CONFIG = DriftConfig()
NOTHING_KNOWN = GoodPast(rows=0, mean=0.0, delta=0.01)
JUDGED, LIVE = slice(None, 3400), slice(3400, None)


@cache
def null(seed: int = 1) -> OutcomeNull:
    """Of the older half of the real outcomes."""
    known = real_outcomes()
    return outcome_null(known.confidence[JUDGED], known.label[JUDGED], known.time[JUDGED], CONFIG, seed=seed)


def live(confidence: Floats | None = None) -> tuple[DriftCheck, ...]:
    """Checks of the newer half, as if the model had answered with ``confidence``."""
    known = real_outcomes()
    answered = known.confidence[LIVE] if confidence is None else confidence
    label, time = known.label[LIVE][: len(answered)], known.time[LIVE][: len(answered)]
    return check_outcomes(null(), answered, label, time, budget_per_month=1.0)


def severity(check: DriftCheck) -> str:
    return severity_of(check.score, SeverityLimits())


def river(*, threshold: float = np.inf, **options: Any) -> Any:
    return PageHinkley(min_instances=1, threshold=threshold, alpha=0.9999, **options)


@pytest.mark.parametrize("series", ["residual", "loss"])
def test_the_statistic_has_rivers_values_at_every_outcome(series: str) -> None:
    known = real_outcomes()
    values = known.confidence - known.label
    values = values if series == "residual" else values**2
    detector, up, down = river(delta=0.01), [], []
    for value in values.tolist():
        detector.update(value)
        up.append(detector._sum_increase - detector._min_increase)
        down.append(detector._max_decrease - detector._sum_decrease)

    ours = page_hinkley(values, past=NOTHING_KNOWN)

    assert max(up) > 3
    np.testing.assert_allclose(ours[0], up, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours[1], down, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("mode", "side"), [("up", 0), ("down", 1)])
@pytest.mark.parametrize("threshold", [2.0, 5.0, 10.0])
def test_the_first_alarm_is_rivers(mode: str, side: int, threshold: float) -> None:
    known = real_outcomes()
    values = known.confidence - known.label
    detector, first = river(delta=0.01, threshold=threshold, mode=mode), None
    for number, value in enumerate(values.tolist()):
        detector.update(value)
        if detector.drift_detected:
            first = number
            break

    path = page_hinkley(values, past=NOTHING_KNOWN)[side]

    assert first is not None
    assert np.flatnonzero(path > threshold)[0] == first


def test_a_warm_start_is_river_that_saw_the_judged_outcomes_and_began_its_sums_again() -> None:
    known = real_outcomes()
    values = (known.confidence - known.label) ** 2
    past = GoodPast.of(values[JUDGED])
    detector, up, down = river(delta=past.delta), [], []
    for value in values[JUDGED].tolist():
        detector.update(value)
    detector._sum_increase = detector._min_increase = 0.0
    detector._sum_decrease = detector._max_decrease = 0.0
    for value in values[LIVE].tolist():
        detector.update(value)
        up.append(detector._sum_increase - detector._min_increase)
        down.append(detector._max_decrease - detector._sum_decrease)

    ours = page_hinkley(values[LIVE], past=past)

    np.testing.assert_allclose(ours[0], up, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours[1], down, rtol=0, atol=1e-9)


def test_the_statistic_of_three_values_by_hand() -> None:
    # Means 2/3, 3/4, 3/5. Up: 0.2333; 0.9999 x 0.2333 + 0.15 = 0.38331; 0.9999 x 0.38331 - 0.7 = -0.31673,
    # which is the lowest. Down: 0.43333 and 0.9999 x 0.43333 + 0.35 = 0.78329 are the highest so far; then
    # 0.9999 x 0.78329 - 0.5 = 0.28321.
    up, down = page_hinkley(np.array([1.0, 1.0, 0.0]), past=GoodPast(rows=2, mean=0.5, delta=0.1))

    np.testing.assert_allclose(up, [0.233333, 0.383310, 0.0], atol=1e-6)
    np.testing.assert_allclose(down, [0.0, 0.0, 0.500078], atol=1e-6)


def test_the_past_is_its_mean_and_a_tenth_of_its_deviation() -> None:
    assert GoodPast.of(np.array([0.0, 0.0, 1.0, 1.0])) == GoodPast(rows=4, mean=0.5, delta=0.05)


def test_a_model_that_stays_as_it_was_judged_raises_no_alarm() -> None:
    calibration, accuracy = live()

    assert (calibration.kind, accuracy.kind) == ("calibration", "accuracy")
    assert [severity(calibration), severity(accuracy)] == ["none", "none"]
    assert calibration.current_rows == accuracy.current_rows == len(real_outcomes().label) - 3400
    assert calibration.reference_rows == accuracy.reference_rows == 3400


@pytest.mark.parametrize(("shift", "direction"), [(0.1, "up"), (-0.1, "down")])
def test_a_model_ten_points_off_from_its_first_day_is_found_in_a_month_and_a_half(
    shift: float, direction: str
) -> None:
    known = real_outcomes()
    days = (known.time[LIVE] - known.time[LIVE][0]) / np.timedelta64(1, "D")
    month = known.confidence[LIVE][days < 45]

    calibration, _ = live(np.clip(month + shift, 0, 1))

    assert severity(calibration) in ("high", "critical")
    assert calibration.details["direction"] == direction
    assert calibration.p_value is not None
    assert calibration.p_value < 0.05


def test_a_model_grown_far_too_sure_of_itself_loses_its_accuracy() -> None:
    known = real_outcomes()
    sharper = 1 / (1 + np.exp(-3 * np.log(known.confidence / (1 - known.confidence))))[LIVE]

    _, accuracy = live(sharper[:400])

    assert severity(accuracy) == "critical"
    assert accuracy.details["direction"] == "up"
    loss = (known.confidence - known.label) ** 2
    assert accuracy.details["mean_judged"] == pytest.approx(loss[JUDGED].mean())
    assert accuracy.details["mean_live"] > accuracy.details["mean_judged"]


def test_a_better_model_is_no_decay() -> None:
    known = real_outcomes()
    _, accuracy = live(np.abs(known.label[LIVE] - 0.2))  # a loss of 0.04 every time

    assert (accuracy.statistic, accuracy.score, accuracy.p_value) == (0.0, 0.0, 1.0)
    assert accuracy.details["since"] is None


def test_the_statistic_is_that_of_now_and_since_names_where_it_left_zero() -> None:
    known = real_outcomes()
    time, label = known.time[LIVE], known.label[LIVE]
    answered = np.abs(label - 0.2)
    answered[100:200] = np.abs(label[100:200] - 0.9)
    bad = check_outcomes(null(), answered[:200], label[:200], time[:200], budget_per_month=1.0)[1]
    over = check_outcomes(null(), answered[:600], label[:600], time[:600], budget_per_month=1.0)[1]

    assert severity(bad) == "critical"
    assert bad.details["since"] == str(time[100])
    assert severity(over) == "none"


def test_score_is_the_statistic_in_units_of_the_level_at_the_kinds_share_of_the_budget() -> None:
    for check in live():
        level = getattr(null(), check.kind).levels.at(1.0 * BUDGET_SHARES[check.kind])
        assert check.level == level
        assert check.score == pytest.approx(0.20 * check.statistic / level)


def test_a_smaller_budget_asks_for_a_higher_level() -> None:
    known = real_outcomes()
    levels = [
        check_outcomes(
            null(), known.confidence[LIVE], known.label[LIVE], known.time[LIVE], budget_per_month=budget
        )[0].level
        for budget in (4.0, 1.0, 0.25)
    ]
    assert levels[0] < levels[1] < levels[2]


def test_nothing_resolved_is_no_check() -> None:
    none = np.array([])
    assert check_outcomes(null(), none, none, none.astype("datetime64[us]"), budget_per_month=1.0) == ()


def test_outcomes_out_of_order_or_unknown_are_refused() -> None:
    known = real_outcomes()
    confidence, label, time = known.confidence[:50], known.label[:50].copy(), known.time[:50]
    with pytest.raises(ValueError, match="sorted"):
        check_outcomes(null(), confidence, label, time[::-1], budget_per_month=1.0)
    with pytest.raises(ValueError, match="sorted"):
        outcome_null(confidence, label, time[::-1], CONFIG, seed=1)
    label[3] = np.nan
    with pytest.raises(ValueError, match="known"):
        check_outcomes(null(), confidence, label, time, budget_per_month=1.0)
    with pytest.raises(ValueError, match="outcomes"):
        outcome_null(confidence, label, time, CONFIG, seed=1)
    with pytest.raises(ValueError, match="got 29"):
        outcome_null(known.confidence[:29], known.label[:29], time[:29], CONFIG, seed=1)


def test_a_null_survives_json_and_the_same_seed_gives_it_again() -> None:
    stored = json.loads(json.dumps(null().to_json()))

    assert OutcomeNull.from_json(stored) == null()
    assert null.__wrapped__(seed=1) == null()
    assert null(seed=2) != null()


def test_a_past_in_which_all_outcomes_were_alike_is_not_alarmed_by_a_single_miss() -> None:
    time = real_outcomes().time[:200]
    alike = outcome_null(np.full(200, 0.9), np.ones(200), time, CONFIG, seed=1)
    label = np.ones(20)
    label[-1] = 0.0

    checks = check_outcomes(alike, np.full(20, 0.9), label, time[:20], budget_per_month=1.0)

    assert [severity(check) for check in checks] == ["medium", "medium"]
    assert [check.level for check in checks] == [1.0, 1.0]


def test_of_two_simulations_a_level_has_the_rate_of_the_one_that_crosses_it_more_often() -> None:
    one = AlarmLevels(level=(0.5, 2.0, 4.0), per_month=(3.0, 1.0, 0.5))
    other = AlarmLevels(level=(1.5, 3.0, 5.0), per_month=(2.0, 0.8, 0.1))

    # Nothing is known of the other at 1.0, the lowest level that may be; 0.5 stands for it in the first.
    assert strictest([one, other]) == AlarmLevels(
        level=(1.5, 2.0, 3.0, 4.0, 5.0), per_month=(3.0, 2.0, 1.0, 0.8, 0.5)
    )


@pytest.mark.parametrize(
    ("regime", "newest", "block_days"),
    [(None, 7000, 7), (None, 7000, 30), (3, 7000, 7), (3, 7000, 30), (1, 200, 7)],
)
def test_years_without_drift_keep_to_the_budget_by_other_blocks_and_seeds(
    regime: int | None, newest: int, block_days: int
) -> None:
    known, years = real_outcomes(), 200
    mine = np.flatnonzero((known.regime == regime) | (regime is None))[-newest:]
    time, residual = known.time[mine], (known.confidence - known.label)[mine]
    null_ = outcome_null(known.confidence[mine], known.label[mine], time, CONFIG, seed=3)
    draw, block = np.random.default_rng(400 + block_days), timedelta(days=block_days)
    span = float((time[-1] - time[0]) / np.timedelta64(1, "D"))
    share = CONFIG.false_retrainings_per_month * (BUDGET_SHARES["calibration"] + BUDGET_SHARES["accuracy"])
    triggered = []
    for _ in range(years):
        judged, _ = history(time, days=span, block=block, draw=draw)
        rows, day = history(time, days=365.25, block=block, draw=draw)
        up, down = page_hinkley(residual[rows], past=GoodPast.of(residual[judged]))
        loss, _ = page_hinkley(residual[rows] ** 2, past=GoodPast.of(residual[judged] ** 2))
        over_calibration = np.maximum(up, down) > null_.calibration.levels.at(0.15)
        triggered.append(
            retrainings(day[over_calibration]) + retrainings(day[loss > null_.accuracy.levels.at(0.15)])
        )

    # One year's alarms come in clumps: the bound is of the mean over independent years, not Poisson's.
    upper = (np.mean(triggered) + 1.645 * np.std(triggered) / np.sqrt(years)) / 12

    # 1.5 is what is asked for. A past that is taken for certain comes to 1.4 with 200 judged rows.
    assert 0 < upper <= 1.2 * share


def retrainings(days: Floats) -> int:
    """Triggered on ``days`` (m,), none within the cooldown of the one before."""
    count, free = 0, -np.inf
    for day in days:
        if day >= free:
            count, free = count + 1, day + CONFIG.cooldown_days
    return count
