"""Gates: each can fail a challenger alone, and fails closed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from ml.comparison import Comparison, Difference, Gains, Slice
from ml.config import GateConfig
from ml.evaluation import Estimate, Evaluation
from ml.promotion import Decision, GateResult, Trial, decide, next_trial

pytestmark = pytest.mark.drift

NONE = Estimate(None, None, None)


def sure(value: float) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.01)


PASSING = Evaluation(
    rows=1000,
    first_close="2020-01-01T00:00:00",
    last_close="2020-06-01T00:00:00",
    threshold=0.55,
    positives=600,
    accepted=0,
    base_rate=0.57,
    known_base_rate=0.57,
    f1=sure(0.65),
    precision=sure(0.6),
    recall=sure(0.7),
    auc=sure(0.56),
    brier=sure(0.24),
    brier_skill=sure(0.02),
    log_loss=sure(0.68),
    net_return_atr=sure(-0.2),
    net_return_positive_atr=sure(-0.1),
    net_return_accepted_atr=NONE,
    break_even_hit_rate=sure(0.7),
    pattern_auc=sure(0.5),
    pattern_brier=sure(0.245),
)
GATES = GateConfig()
LENIENT = GateConfig(
    min_f1=0,
    min_precision=0,
    min_recall=0,
    rel_improvement_f1=0,
    max_feature_drift_ks=1,
    min_auc_lower=0,
    min_brier_skill_lower=-1,
    max_f1_loss=1,
    promotion_alpha=1,
    alpha_days=0,
    slice_alpha=0,
)
NO_CHAMPION = Comparison(baseline="patterns", challenger=PASSING)
CUT = datetime(2020, 6, 1, tzinfo=UTC)
FIRST = Trial(number=1, alpha=0.1, accrued_days=90.0)
PROBE = GateResult("probe_answers", 0.0, 0.0, True, "it answers")


def difference(value: float, p: float, tail: float | None = None) -> Difference:
    tail = p if tail is None else tail
    return Difference(
        value=value, low=value - 0.01, high=value + 0.01, p_resampled=p, p_tail=tail, least_p=0.001
    )


def against(
    champion: Evaluation = PASSING, *, f1: float = 0.5, auc: float = 0.5, brier: float = 0.5
) -> Comparison:
    """PASSING beside a champion, with the chance of each gain."""
    gains = Gains(difference(0.01, f1), difference(0.01, auc), difference(0.001, brier))
    return Comparison(baseline="champion", challenger=PASSING, champion=champion, gains=gains)


def decided(
    challenger: Evaluation = PASSING,
    comparison: Comparison = NO_CHAMPION,
    drift_score: float | None = 0.1,
    gates: GateConfig = GATES,
    *,
    trial: Trial | None = None,
    probes: tuple[GateResult, ...] = (PROBE,),
) -> Decision:
    return decide(challenger, comparison, drift_score, gates, trial=trial, probes=probes)


def test_a_challenger_at_every_limit_is_promoted_where_there_is_no_champion() -> None:
    at_limits = replace(PASSING, f1=sure(0.60), precision=sure(0.58), recall=sure(0.50))

    decision = decided(at_limits, drift_score=0.15)

    assert decision.promote
    assert decision.reasons == ()
    assert [gate.name for gate in decision.gates] == [
        "min_f1",
        "min_precision",
        "min_recall",
        "better_than_champion",
        "max_feature_drift_ks",
        "min_auc_lower",
        "min_brier_skill_lower",
        "slices",
        "probe_answers",
    ]
    json.dumps(decision.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "drift_score", "reason"),
    [
        ({"f1": sure(0.59)}, 0.1, "F1 is 0.5900, at least 0.6000 is asked"),
        ({"precision": sure(0.57)}, 0.1, "precision is 0.5700, at least 0.5800 is asked"),
        ({"recall": sure(0.49)}, 0.1, "recall is 0.4900, at least 0.5000 is asked"),
        ({}, 0.151, "the drift score of the test rows is 0.1510, at most 0.1500 is asked"),
        (
            {"auc": Estimate(0.53, 0.5, 0.56)},
            0.1,
            "the lower 95 % bound of the AUC is 0.5000, over 0.5000 is asked",
        ),
        (
            {"brier_skill": Estimate(0.01, -0.001, 0.02)},
            0.1,
            "the lower 95 % bound of the Brier skill score is -0.0010, over 0.0000 is asked",
        ),
    ],
)
def test_one_failed_gate_rejects_and_says_value_and_limit(
    change: dict[str, Any], drift_score: float, reason: str
) -> None:
    decision = decided(replace(PASSING, **change), drift_score=drift_score)

    assert not decision.promote
    assert decision.reasons == (reason,)


@pytest.mark.parametrize("field", ["f1", "precision", "recall", "auc", "brier_skill"])
def test_a_metric_without_a_value_fails_its_gate(field: str) -> None:
    change: dict[str, Any] = {field: NONE}

    decision = decided(replace(PASSING, **change))

    assert not decision.promote
    assert len(decision.reasons) == 1
    assert "without data the gate fails" in decision.reasons[0]


def test_bounds_without_a_value_fail_though_the_metric_has_one() -> None:
    decision = decided(replace(PASSING, auc=Estimate(0.6, None, None)))

    assert not decision.promote


def test_no_drift_score_fails_the_drift_gate() -> None:
    assert not decided(drift_score=None).promote


@pytest.mark.parametrize(("champion_f1", "promoted"), [(0.63, True), (0.64, False)])
def test_f1_must_rise_by_the_stated_share_over_the_champions(champion_f1: float, promoted: bool) -> None:
    champion = replace(PASSING, f1=sure(champion_f1))

    decision = decided(comparison=against(champion, f1=0.001), trial=FIRST)

    # 1.03 * 0.63 = 0.6489 <= 0.65 < 1.03 * 0.64 = 0.6592
    assert decision.promote == promoted


@pytest.mark.parametrize(
    ("chances", "champion_f1", "value", "promoted"),
    [
        ({"f1": 0.05}, 0.5, 0.1, True),  # twice the chance of the one way: 0.1 may be spent
        ({"f1": 0.051}, 0.5, 0.102, False),
        ({"auc": 0.05, "brier": 0.01}, 0.66, 0.1, True),  # F1 falls by 0.01, and both others are sure
        ({"auc": 0.051, "brier": 0.01}, 0.66, 0.102, False),
        ({"auc": 0.01, "brier": 0.051}, 0.66, 0.102, False),
        ({"auc": 0.001, "brier": 0.001}, 0.6602, 1.0, False),  # F1 falls by more
        ({"f1": 0.001}, 0.645, 1.0, False),  # sure, but too small, and the others are not
        ({"f1": 0.6, "auc": 0.7, "brier": 0.8}, 0.5, 1.0, False),
    ],
)
def test_the_gain_is_sure_by_f1_or_by_brier_and_auc_together(
    chances: dict[str, float], champion_f1: float, value: float, promoted: bool
) -> None:
    champion = replace(PASSING, f1=sure(champion_f1))

    decision = decided(comparison=against(champion, **chances), trial=FIRST)

    gate = decision.gates[3]
    assert gate.value == pytest.approx(value)
    assert gate.limit == 0.1
    assert (decision.promote, gate.passed) == (promoted, promoted)


@pytest.mark.parametrize("worse", ["auc", "brier"])
def test_more_f1_does_not_make_up_for_less_skill(worse: str) -> None:
    compared = against(replace(PASSING, f1=sure(0.5)), f1=0.001)
    assert compared.gains is not None
    assert decided(comparison=compared, trial=FIRST).promote

    gains = replace(compared.gains, **{worse: difference(-0.0001, 0.5)})
    decision = decided(comparison=replace(compared, gains=gains), trial=FIRST)

    assert [gate.name for gate in decision.gates if not gate.passed] == ["better_than_champion"]


def test_a_decision_carries_the_numbers_of_its_trial() -> None:
    trial = Trial(number=4, alpha=0.04, accrued_days=36.0)
    champion = replace(PASSING, f1=sure(0.6), brier=sure(0.245), auc=sure(0.55))

    decision = decided(comparison=against(champion, f1=0.03, auc=0.2, brier=0.004), trial=trial)

    assert decision.reasons == (
        "F1 0.6500 against 0.6000 (+0.0100, p 0.03), AUC 0.5600 against 0.5500 (+0.0100, p 0.2), "
        "Brier 0.2400 against 0.2450 (-0.0010, p 0.004): p 0.06 of two ways, trial 4 may spend 0.04",
    )
    data = decision.to_json()["gates"][3]["data"]
    assert data["trial"] == {"number": 4, "alpha": 0.04, "accrued_days": 36.0}
    assert data["p_values"] == {"f1": 0.03, "auc": 0.2, "brier": 0.004}
    assert data["p_values_from"] == "resamples"
    assert data["gains"]["auc"]["low"] == pytest.approx(0)
    json.dumps(decision.to_json(), allow_nan=False)


def test_less_than_the_resamples_can_tell_is_asked_of_the_tail() -> None:
    """0.0019 for two ways is 0.00095 each: no thousand resamples can show it."""
    little = Trial(number=2, alpha=0.0019, accrued_days=1.7)
    gains = Gains(difference(0.05, 0.001, 0.0009), difference(0.0, 0.5), difference(0.0, 0.5))
    compared = Comparison(
        baseline="champion", challenger=PASSING, champion=replace(PASSING, f1=sure(0.6)), gains=gains
    )

    decision = decided(comparison=compared, trial=little)

    assert decision.promote
    assert decision.gates[3].value == pytest.approx(0.0018)
    assert decision.gates[3].data["p_values_from"] == "Student's t"
    assert not decided(comparison=compared, trial=replace(little, alpha=0.0017)).promote


def test_a_trial_that_may_spend_nothing_promotes_nobody() -> None:
    sure_of_it = against(replace(PASSING, f1=sure(0.5)), f1=0.0, auc=0.0, brier=0.0)

    assert not decided(comparison=sure_of_it, trial=Trial(number=2, alpha=0.0, accrued_days=0.0)).promote


def test_with_lenient_limits_a_worse_challenger_takes_the_place() -> None:
    worse = against(replace(PASSING, f1=sure(0.99)), f1=1.0, auc=1.0, brier=1.0)
    trial = next_trial([CUT], champion_cut=CUT, cut=CUT, gates=LENIENT)
    slices = (slice_of("CDLDOJI", 0.9, 0.001),)

    assert decided(comparison=replace(worse, slices=slices), gates=LENIENT, trial=trial).promote


@pytest.mark.parametrize(
    "change",
    [
        {"gains": None},
        {"challenger": None},
        {"champion": None},
        {"champion": replace(PASSING, rows=999)},
        {"champion": replace(PASSING, last_close="2020-07-01T00:00:00")},
        {"champion": replace(PASSING, f1=NONE)},
        {"gains": Gains(*(replace(difference(0.1, 0.0), p_resampled=None, p_tail=None) for _ in range(3)))},
    ],
)
def test_a_champion_that_cannot_be_compared_fails_the_gate(change: dict[str, Any]) -> None:
    whole = against(replace(PASSING, f1=sure(0.5)), f1=0.001)
    assert decided(comparison=whole, trial=FIRST).gates[3].passed

    assert not decided(comparison=replace(whole, **change), trial=FIRST).gates[3].passed


def test_a_champion_without_a_trial_fails_the_gate() -> None:
    assert not decided(comparison=against(replace(PASSING, f1=sure(0.5)), f1=0.001), trial=None).promote


def test_too_few_rows_that_neither_has_seen_fail_both_comparisons() -> None:
    decision = decided(comparison=Comparison(baseline="champion", challenger=None, slices=None), trial=FIRST)

    assert decision.reasons == (
        "the gain over the champion could not be computed; without data the gate fails",
        "the patterns' slices could not be computed; without data the gate fails",
    )


def slice_of(pattern: str, rise: float, p: float) -> Slice:
    return Slice(
        pattern=pattern, rows=120, challenger_brier=0.25 + rise, baseline_brier=0.25, rise=difference(rise, p)
    )


@pytest.mark.parametrize(
    ("chances", "adjusted", "worse"),
    [
        ((0.01, 0.02, 0.9), (0.03, 0.04, 0.9), ("a", "b")),  # 3 * 0.01, 2 * 0.02, 1 * 0.9
        ((0.9, 0.026, 0.013), (0.9, 0.052, 0.039), ("c",)),
        ((0.017, 0.017, 0.017), (0.051, 0.051, 0.051), ()),
        ((0.02, 0.015, 0.8), (0.045, 0.045, 0.8), ("a", "b")),  # 2 * 0.02 is under 3 * 0.015: never falling
    ],
)
def test_slices_are_judged_together_by_holm(
    chances: tuple[float, ...], adjusted: tuple[float, ...], worse: tuple[str, ...]
) -> None:
    slices = tuple(slice_of(name, 0.02, p) for name, p in zip("abc", chances, strict=True))

    gate = decided(comparison=replace(NO_CHAMPION, slices=slices)).gates[7]

    assert [one["p_adjusted"] for one in gate.data["slices"]] == pytest.approx(adjusted)
    assert tuple(one["pattern"] for one in gate.data["slices"] if one["worse"]) == worse
    assert gate.passed == (not worse)
    assert gate.value == pytest.approx(min(adjusted))


def test_a_collapsed_slice_is_named_with_its_numbers() -> None:
    slices = (slice_of("CDLDOJI", 0.05, 0.001), slice_of("CDLENGULFING", -0.01, 0.8))

    decision = decided(comparison=replace(NO_CHAMPION, slices=slices))

    assert decision.reasons == (
        "clearly worse than the patterns' own confidence (p 0.002, over 0.05 is asked): "
        "CDLDOJI (Brier 0.3000 against 0.2500, 120 rows)",
    )
    json.dumps(decision.to_json(), allow_nan=False)


def test_no_slice_big_enough_passes_and_says_so() -> None:
    gate = decided().gates[7]

    assert gate.passed
    assert gate.detail == "no pattern has rows enough to be looked at by itself"


def test_a_slice_without_a_chance_fails_the_gate() -> None:
    unknown = slice_of("CDLDOJI", 0.0, 0.5)
    unknown = replace(unknown, rise=replace(unknown.rise, p_resampled=None, p_tail=None))

    assert not decided(comparison=replace(NO_CHAMPION, slices=(unknown,))).promote


def test_a_failed_probe_rejects() -> None:
    leaks = GateResult("probe_no_look_ahead", 1.0, 0.0, False, "natr_14 is another")

    assert decided(probes=(PROBE, leaks)).reasons == ("natr_14 is another",)


def test_a_held_decision_keeps_its_numbers_and_gains_a_reason() -> None:
    held = decided().held("the key is frozen")

    assert not held.promote
    assert held.reasons == ("the key is frozen",)
    assert held.gates == decided().gates
