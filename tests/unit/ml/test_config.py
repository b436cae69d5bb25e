"""Training options: unknown ones are refused, equal ones have one hash."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ml.alarms import BUDGET_SHARES
from ml.config import SCORES_SHARE, TrainingConfig, canonical_json
from ml.errors import ConfigRejected

pytestmark = pytest.mark.training


def test_an_unknown_option_is_named_in_the_refusal() -> None:
    with pytest.raises(ConfigRejected) as refused:
        TrainingConfig.from_mapping({"fit": {"max_deepth": 3}})

    assert refused.value.field == "training.fit.max_deepth"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"fit": {"n_estimators": 401}}, "training.fit.n_estimators"),
        ({"fit": {"max_depth": 6}}, "training.fit.max_depth"),
        ({"pool": "everything"}, "training.pool"),
        ({"drift": {"window_rows": 1001}}, "training.drift.window_rows"),  # of 5,000: 40 s a key
        ({"drift": {"window_rows": 199}}, "training.drift.window_rows"),
        ({"gates": {"min_f1": float("nan")}}, "training.gates.min_f1"),
        ({"split": {"calibrate_share": 0.4, "test_share": 0.45}}, "training"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigRejected) as refused:
        TrainingConfig.from_mapping(options)

    assert refused.value.field == field


@pytest.mark.parametrize(
    ("drift", "needed"),
    [({"null_months": 14}, 15), ({"false_retrainings_per_month": 0.1}, 150)],
)
def test_a_budget_that_the_null_is_too_short_to_show_is_refused_with_both_numbers(
    drift: dict[str, float], needed: int
) -> None:
    with pytest.raises(ConfigRejected) as refused:
        TrainingConfig.from_mapping({"drift": drift})

    told = str(refused.value)
    both = {"null_months": 120, "false_retrainings_per_month": 1.0} | drift
    assert refused.value.field == "training.drift"
    assert all(f"drift.{name} {value:g} " in told for name, value in both.items())
    assert f"at least {needed} months are needed" in told
    assert TrainingConfig.from_mapping({"drift": drift | {"null_months": needed}}).drift.null_months == needed


def test_the_share_that_the_budget_is_held_to_is_that_of_the_scores() -> None:
    assert SCORES_SHARE == BUDGET_SHARES["scores"] < BUDGET_SHARES["features"]


def test_equal_options_have_one_digest_whatever_their_order_and_origin() -> None:
    one = TrainingConfig.from_mapping({"pool": "key", "fit": {"seed": 3, "max_depth": 4}})
    other = TrainingConfig.from_mapping(json.loads(one.model_dump_json()))

    assert one.digest() == other.digest()
    assert one.digest() != TrainingConfig().digest()
    assert len(one.digest()) == 64


def test_gates_change_the_digest_but_not_that_of_the_fit() -> None:
    strict = TrainingConfig.from_mapping({"gates": {"min_f1": 0.7}, "calibration": "isotonic"})

    assert strict.digest() != TrainingConfig().digest()
    assert strict.fit_digest() == TrainingConfig().fit_digest()
    assert TrainingConfig.from_mapping({"fit": {"seed": 1}}).fit_digest() != TrainingConfig().fit_digest()


def test_canonical_json_sorts_and_refuses_nan() -> None:
    assert canonical_json({"b": 1.5, "a": ["é"]}) == b'{"a":["\\u00e9"],"b":1.5}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))
