"""Gates: each can fail a challenger alone, and fails closed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ml.config import GateConfig
from ml.evaluation import Estimate, Evaluation
from ml.promotion import Comparison, decide

pytestmark = pytest.mark.training

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


def test_a_challenger_at_every_limit_is_promoted_where_there_is_no_champion() -> None:
    at_limits = replace(PASSING, f1=sure(0.60), precision=sure(0.58), recall=sure(0.50))

    decision = decide(at_limits, None, 0.15, GATES)

    assert decision.promote
    assert decision.reasons == ()
    assert [gate.name for gate in decision.gates] == [
        "min_f1",
        "min_precision",
        "min_recall",
        "rel_improvement_f1",
        "max_feature_drift_ks",
        "min_auc_lower",
        "min_brier_skill_lower",
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
    decision = decide(replace(PASSING, **change), None, drift_score, GATES)

    assert not decision.promote
    assert decision.reasons == (reason,)


@pytest.mark.parametrize("field", ["f1", "precision", "recall", "auc", "brier_skill"])
def test_a_metric_without_a_value_fails_its_gate(field: str) -> None:
    change: dict[str, Any] = {field: NONE}

    decision = decide(replace(PASSING, **change), None, 0.1, GATES)

    assert not decision.promote
    assert len(decision.reasons) == 1
    assert "without data the gate fails" in decision.reasons[0]


def test_bounds_without_a_value_fail_though_the_metric_has_one() -> None:
    decision = decide(replace(PASSING, auc=Estimate(0.6, None, None)), None, 0.1, GATES)

    assert not decision.promote


def test_no_drift_score_fails_the_drift_gate() -> None:
    assert not decide(PASSING, None, None, GATES).promote


@pytest.mark.parametrize(("champion_f1", "promoted"), [(0.63, True), (0.64, False)])
def test_f1_must_rise_by_the_stated_share_over_the_champions(champion_f1: float, promoted: bool) -> None:
    champion = replace(PASSING, f1=sure(champion_f1))

    decision = decide(PASSING, Comparison(PASSING, champion), 0.1, GATES)

    # 1.03 * 0.63 = 0.6489 <= 0.65 < 1.03 * 0.64 = 0.6592
    assert decision.promote == promoted
    if not promoted:
        assert decision.reasons == (
            "F1 is 0.6500 against the champion's 0.6400 on the same rows, at least 0.6592 (+3.0%) is asked",
        )


@pytest.mark.parametrize("change", [{"rows": 999}, {"last_close": "2020-07-01T00:00:00"}, {"f1": NONE}])
def test_a_champion_that_cannot_be_compared_fails_the_gate(change: dict[str, Any]) -> None:
    champion = replace(PASSING, **{"f1": sure(0.5), **change})

    assert not decide(PASSING, Comparison(PASSING, champion), 0.1, GATES).promote


def test_too_few_rows_that_neither_has_seen_fail_the_gate() -> None:
    decision = decide(PASSING, Comparison(None, None), 0.1, GATES)

    assert not decision.promote
    assert decision.reasons == (
        "the gain in F1 over the champion could not be computed; without data the gate fails",
    )
