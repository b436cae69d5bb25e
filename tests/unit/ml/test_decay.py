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
from ml.decay import GoodPast, OutcomeNull, SeriesNull, check_outcomes, outcome_null, page_hinkley, strictest
from ml.keys import REGIMES
from tests.unit.ml.real_outcomes import history, real_outcomes

pytestmark = pytest.mark.drift

Floats = NDArray[np.float64]
CONFIG = DriftConfig()
NOTHING_KNOWN = GoodPast(rows=0, mean=0.0, delta=0.01)
JUDGED, LIVE = slice(None, 3400), slice(3400, None)
VOLATILE = REGIMES.index("volatile")


@cache
def null(seed: int = 1) -> OutcomeNull:
    """Of the older half of the real outcomes."""
    known = real_outcomes()
    return outcome_null(
        known.confidence[JUDGED],
        known.label[JUDGED],
        known.regime[JUDGED],
        known.time[JUDGED],
        CONFIG,
        seed=seed,
    )


def live(confidence: Floats | None = None) -> tuple[DriftCheck, ...]:
    """Checks of the newer half, or its first rows, as if the model had answered with ``confidence``."""
    known = real_outcomes()
    answered = known.confidence[LIVE] if confidence is None else confidence
    rows = slice(3400, 3400 + len(answered))
    return check_outcomes(
        null(), answered, known.label[rows], known.regime[rows], known.time[rows], budget_per_month=1.0
    )


def off(series: Floats, regime: NDArray[np.int8], judged: NDArray[np.intp]) -> Floats:
    """(n,) values less the mean of their regime's judged rows; under 30 rows, of all that were judged."""
    centred: Floats = series - series[judged].mean()
    for code in range(len(REGIMES)):
        own = judged[regime[judged] == code]
        if len(own) >= 30:
            centred[regime == code] = series[regime == code] - series[own].mean()
    return centred


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


@pytest.mark.parametrize("kind", ["calibration", "accuracy"])
def test_a_warm_start_is_river_that_saw_the_judged_outcomes_and_began_its_sums_again(kind: str) -> None:
    known = real_outcomes()
    values = known.confidence - known.label
    values = off(values if kind == "calibration" else values**2, known.regime, np.arange(3400))
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
    (check,) = (one for one in live() if one.kind == kind)
    assert check.statistic == pytest.approx(up[-1] if kind == "accuracy" else max(up[-1], down[-1]))


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
    loss, regime = (known.confidence - known.label) ** 2, known.regime
    judged = [loss[JUDGED][regime[JUDGED] == code].mean() for code in regime[LIVE][:400]]
    assert accuracy.details["mean_judged"] == pytest.approx(np.mean(judged))
    assert accuracy.details["mean_live"] > accuracy.details["mean_judged"]


def test_a_better_model_is_no_decay() -> None:
    known = real_outcomes()
    _, accuracy = live(np.abs(known.label[LIVE] - 0.2))  # a loss of 0.04 every time

    assert (accuracy.statistic, accuracy.score, accuracy.p_value) == (0.0, 0.0, 1.0)
    assert accuracy.details["since"] is None


def test_the_statistic_is_that_of_now_and_since_names_where_it_left_zero() -> None:
    time, label = real_outcomes().time[LIVE], real_outcomes().label[LIVE]
    answered = np.abs(label - 0.2)
    answered[100:200] = np.abs(label[100:200] - 0.9)
    bad, over = live(answered[:200])[1], live(answered[:600])[1]

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
            null(),
            known.confidence[LIVE],
            known.label[LIVE],
            known.regime[LIVE],
            known.time[LIVE],
            budget_per_month=budget,
        )[0].level
        for budget in (4.0, 1.0, 0.25)
    ]
    assert levels[0] < levels[1] < levels[2]


def test_nothing_resolved_is_no_check() -> None:
    none = np.array([])
    regime, time = none.astype(np.int8), none.astype("datetime64[us]")
    assert check_outcomes(null(), none, none, regime, time, budget_per_month=1.0) == ()


def test_outcomes_out_of_order_or_unknown_are_refused() -> None:
    known = real_outcomes()
    confidence, label, time = known.confidence[:50], known.label[:50].copy(), known.time[:50]
    regime = known.regime[:50]
    with pytest.raises(ValueError, match="sorted"):
        check_outcomes(null(), confidence, label, regime, time[::-1], budget_per_month=1.0)
    with pytest.raises(ValueError, match="sorted"):
        outcome_null(confidence, label, regime, time[::-1], CONFIG, seed=1)
    label[3] = np.nan
    with pytest.raises(ValueError, match="known"):
        check_outcomes(null(), confidence, label, regime, time, budget_per_month=1.0)
    with pytest.raises(ValueError, match="outcomes"):
        outcome_null(confidence, label, regime, time, CONFIG, seed=1)
    with pytest.raises(ValueError, match="got 29"):
        outcome_null(known.confidence[:29], known.label[:29], regime[:29], time[:29], CONFIG, seed=1)


def test_a_null_survives_json_and_the_same_seed_gives_it_again() -> None:
    stored = json.loads(json.dumps(null().to_json()))

    assert OutcomeNull.from_json(stored) == null()
    assert null.__wrapped__(seed=1) == null()
    assert null(seed=2) != null()


def test_a_past_in_which_all_outcomes_were_alike_is_not_alarmed_by_a_single_miss() -> None:
    time = real_outcomes().time[:200]
    regime = np.zeros(200, np.int8)
    alike = outcome_null(np.full(200, 0.9), np.ones(200), regime, time, CONFIG, seed=1)
    label = np.ones(20)
    label[-1] = 0.0

    checks = check_outcomes(alike, np.full(20, 0.9), label, regime[:20], time[:20], budget_per_month=1.0)

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
    time, residual, of = known.time[mine], (known.confidence - known.label)[mine], known.regime[mine]
    null_ = outcome_null(known.confidence[mine], known.label[mine], of, time, CONFIG, seed=3)
    draw, block = np.random.default_rng(400 + block_days), timedelta(days=block_days)
    span = float((time[-1] - time[0]) / np.timedelta64(1, "D"))
    share = CONFIG.false_retrainings_per_month * (BUDGET_SHARES["calibration"] + BUDGET_SHARES["accuracy"])
    triggered = []
    for _ in range(years):
        judged, _ = history(time, days=span, block=block, draw=draw)
        rows, day = history(time, days=365.25, block=block, draw=draw)
        rest, squared = off(residual, of, judged), off(residual**2, of, judged)
        up, down = page_hinkley(rest[rows], past=GoodPast.of(rest[judged]))
        loss, _ = page_hinkley(squared[rows], past=GoodPast.of(squared[judged]))
        over_calibration = np.maximum(up, down) > null_.calibration.levels.at(0.15)
        triggered.append(
            retrainings(day[over_calibration]) + retrainings(day[loss > null_.accuracy.levels.at(0.15)])
        )

    # One year's alarms come in clumps: the bound is of the mean over independent years, not Poisson's.
    upper = (np.mean(triggered) + 1.645 * np.std(triggered) / np.sqrt(years)) / 12

    # 1.5 is what is asked for. A past that is taken for certain comes to 1.4 with 200 judged rows.
    assert 0 < upper <= 1.2 * share


@pytest.mark.parametrize("serves", range(len(REGIMES)), ids=REGIMES)
def test_a_model_of_all_that_answers_one_regime_only_keeps_to_its_share(serves: int) -> None:
    """It was worse than elsewhere in volatile markets from the start, as it was when it was judged."""
    known, weak = real_outcomes(), weak_when_volatile()
    residual = (weak - known.label, (weak - known.label) ** 2)
    of_all = null_of(weak)
    own = np.flatnonzero(known.regime == serves)
    draw, years, triggered = np.random.default_rng(500 + serves), 100, np.zeros(2)
    for _ in range(years):
        rows, day = history(known.time[own], days=365.25, block=timedelta(days=14), draw=draw)
        for kind, (series, null_) in enumerate(
            zip(residual, (of_all.calibration, of_all.accuracy), strict=True)
        ):
            rest = (series - np.array(null_.centre)[known.regime])[own]
            up, down = page_hinkley(rest[rows], past=null_.past)
            over = (up if kind == 1 else np.maximum(up, down)) > null_.levels.at(0.15)
            triggered[kind] += retrainings(day[over])

    assert (triggered / years / 12 <= 0.15).all()


def test_a_model_of_all_is_not_held_to_the_mean_of_regimes_that_it_does_not_answer() -> None:
    known, weak = real_outcomes(), weak_when_volatile()
    own = known.regime == VOLATILE

    checks = check_outcomes(
        null_of(weak), weak[own], known.label[own], known.regime[own], known.time[own], budget_per_month=1.0
    )

    assert [severity(check) for check in checks] == ["none", "none"]
    for check, series in zip(checks, (weak - known.label, (weak - known.label) ** 2), strict=True):
        assert check.details["mean_judged"] == pytest.approx(series[own].mean())
        assert check.details["mean_live"] == pytest.approx(series[own].mean())


def test_a_regime_that_was_hardly_judged_or_is_not_known_is_held_to_the_mean_of_all() -> None:
    known = real_outcomes()
    regime = np.zeros(200, np.int8)
    regime[:30], regime[30:59] = 1, 2
    null_ = outcome_null(known.confidence[:200], known.label[:200], regime, known.time[:200], CONFIG, seed=1)
    residual = (known.confidence - known.label)[:200]

    def means(series: Floats, found: SeriesNull) -> None:
        of_all = series.mean()
        expected = [series[59:].mean(), series[:30].mean(), of_all, of_all, of_all]
        assert found.centre == pytest.approx(expected)

    means(residual, null_.calibration)
    means(residual**2, null_.accuracy)
    for code in (2, 3, -1):
        unknown = np.full(50, code, np.int8)
        check, _ = check_outcomes(
            null_, known.confidence[:50], known.label[:50], unknown, known.time[:50], budget_per_month=1.0
        )
        assert check.details["mean_judged"] == pytest.approx(residual.mean() + null_.calibration.past.mean)


def weak_when_volatile() -> Floats:
    """Confidence of a model that promises 5 points too much in volatile markets, and did when judged."""
    known = real_outcomes()
    weak: Floats = np.clip(known.confidence + 0.05 * (known.regime == VOLATILE), 0, 1)
    return weak


def null_of(confidence: Floats) -> OutcomeNull:
    """Of all the real outcomes, had they been answered so."""
    known = real_outcomes()
    return outcome_null(confidence, known.label, known.regime, known.time, CONFIG, seed=3)


def retrainings(days: Floats) -> int:
    """Triggered on ``days`` (m,), none within the cooldown of the one before."""
    count, free = 0, -np.inf
    for day in days:
        if day >= free:
            count, free = count + 1, day + CONFIG.cooldown_days
    return count
