"""Calibration, threshold and expected return: what a key makes of the shared trees."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import f1_score, precision_score, recall_score

from ml.calibration import (
    IsotonicCalibration,
    ReturnBins,
    SigmoidCalibration,
    calibration_from_json,
    choose_threshold,
    fit_calibration,
    fit_return_bins,
)
from ml.config import GateConfig

Kind = Literal["sigmoid", "isotonic"]
Floats = NDArray[np.float64]

pytestmark = pytest.mark.training


def outcomes(
    n: int, *, slope: float = 1.0, offset: float = 0.0, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    draw = np.random.default_rng(seed)
    margin = draw.normal(0, 0.5, n)
    chance = 1 / (1 + np.exp(-(slope * margin + offset)))
    return margin, (draw.random(n) < chance).astype(np.float64), np.ones(n)


def test_sigmoid_finds_the_slope_and_offset_that_many_outcomes_were_drawn_with() -> None:
    found = fit_calibration("sigmoid", *outcomes(200_000, slope=0.9, offset=0.3), base_rate=0.5)

    assert isinstance(found, SigmoidCalibration)
    assert found.slope == pytest.approx(0.9, abs=0.03)
    assert found.offset == pytest.approx(0.3, abs=0.03)


def test_sigmoid_of_ten_outcomes_is_the_prior_around_the_base_rate() -> None:
    found = fit_calibration(
        "sigmoid", np.linspace(-0.5, 0.5, 10), np.ones(10), np.full(10, 0.3), base_rate=0.6
    )

    # A margin of the base rate's own log-odds stays the base rate; 0.6 of the distance from it is kept.
    base = np.log(0.6 / 0.4)
    assert isinstance(found, SigmoidCalibration)
    assert found.slope == pytest.approx(0.6, abs=0.02)
    assert found.confidence(np.array([base])) == pytest.approx([0.6], abs=0.01)


def test_sigmoid_never_turns_the_order_round() -> None:
    margin, label, weight = outcomes(5000, slope=-1.0)

    found = fit_calibration("sigmoid", margin, label, weight, base_rate=0.5)

    assert isinstance(found, SigmoidCalibration)
    assert found.slope == 0.0
    assert np.ptp(found.confidence(margin)) == 0.0


def test_isotonic_is_scikit_learns_inside_and_flat_outside() -> None:
    margin, label, weight = outcomes(500, slope=2.0)

    found = fit_calibration("isotonic", margin, label, weight, base_rate=0.5)

    expected = IsotonicRegression(y_min=0.001, y_max=0.999, out_of_bounds="clip").fit(margin, label)
    wide = np.linspace(-5, 5, 101)
    assert found.confidence(wide) == pytest.approx(expected.predict(wide), abs=1e-12)


@pytest.mark.parametrize("kind", ["sigmoid", "isotonic"])
def test_confidences_stay_off_certainty_and_survive_json(kind: Kind) -> None:
    margin, label, weight = outcomes(300)
    found = fit_calibration(kind, margin, label, weight, base_rate=0.5)

    confidence = found.confidence(np.array([-1e6, 0.0, 1e6]))

    assert confidence.min() >= 0.001
    assert confidence.max() <= 0.999
    assert calibration_from_json(json.loads(json.dumps(found.to_json()))) == found


def test_an_unknown_kind_of_calibration_is_refused() -> None:
    with pytest.raises(ValueError, match="'beta'; expected sigmoid or isotonic"):
        calibration_from_json({"kind": "beta"})


CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
LABEL = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0])


def test_threshold_is_the_best_f1_within_gates_and_margin() -> None:
    """Precision from the top: 1, 1, 2/3, 3/4, 3/5, 4/6, 4/7, 4/8; recall: 1, 2, 2, 3, 3, 4, 4, 4 in 4."""
    gates = GateConfig(min_precision=0.6, min_recall=0.5, min_f1=0.5)

    found = choose_threshold(CONFIDENCE, LABEL, gates, margin=0.02)

    # Six positives: precision 4/6 >= 0.62, F1 = 8 / 10, more than any other that qualifies.
    assert (found.value, found.rule) == (0.4, "gates with margin")
    positive = CONFIDENCE > 0.35
    assert found.f1 == pytest.approx(f1_score(LABEL, positive))
    assert found.precision == pytest.approx(precision_score(LABEL, positive))
    assert found.recall == pytest.approx(recall_score(LABEL, positive))


def test_threshold_gives_up_the_margin_before_the_gates() -> None:
    gates = GateConfig(min_precision=0.75, min_recall=0.75, min_f1=0.5)

    assert choose_threshold(CONFIDENCE, LABEL, gates, margin=0.0).rule == "gates with margin"
    found = choose_threshold(CONFIDENCE, LABEL, gates, margin=0.1)

    assert (found.value, found.rule) == (0.6, "gates")


def test_threshold_that_meets_no_gate_is_the_nearest_and_says_so() -> None:
    gates = GateConfig(min_precision=0.8, min_recall=0.8, min_f1=0.8)

    found = choose_threshold(CONFIDENCE, LABEL, gates, margin=0.02)

    # Worst ratios: 0.75 / 0.8 at four positives, (4/6) / 0.8 at six; at two recall is 0.5 / 0.8.
    assert (found.value, found.rule) == (0.6, "compromise")


def test_threshold_never_parts_equal_confidences() -> None:
    confidence = np.array([0.6, 0.6, 0.6, 0.4])

    found = choose_threshold(
        confidence, np.array([1.0, 0.0, 1.0, 0.0]), GateConfig(min_precision=0.6), margin=0.0
    )

    assert (found.value, found.precision, found.recall) == pytest.approx((0.6, 2 / 3, 1.0))


def test_return_bins_rise_with_confidence_and_shrink_to_the_mean() -> None:
    confidence = np.arange(1000) / 1000
    earned = np.where(confidence < 0.5, -1.0, 1.0)

    bins = fit_return_bins(confidence, earned, np.ones(1000))

    # Ten bins of 100 rows against 100 rows of the overall mean of 0: half of each bin's own mean is left.
    assert bins.rows == (100,) * 10
    assert bins.edges == pytest.approx(tuple(np.arange(1, 10) / 10))
    assert bins.net_return_atr == pytest.approx((-0.5,) * 5 + (0.5,) * 5)
    assert bins.has_edge
    assert bins.expected(np.array([0.0, 0.499, 0.5, 1.0])).tolist() == pytest.approx([-0.5, -0.5, 0.5, 0.5])
    assert ReturnBins.from_json(json.loads(json.dumps(bins.to_json()))) == bins


def test_a_lucky_bin_below_worse_ones_does_not_stand() -> None:
    confidence = np.arange(1000) / 1000
    earned = np.where(confidence < 0.1, 1.0, -1.0)

    bins = fit_return_bins(confidence, earned, np.ones(1000))

    assert bins.net_return_atr == pytest.approx((-0.8,) * 10)
    assert not bins.has_edge


def test_one_confidence_for_all_is_one_bin() -> None:
    bins = fit_return_bins(np.full(50, 0.6), np.full(50, -0.3), np.ones(50))

    assert (bins.edges, bins.rows) == ((), (50,))
    assert bins.expected(np.array([0.1, 0.9])).tolist() == pytest.approx([-0.3, -0.3])


def test_isotonic_calibration_keeps_its_corners() -> None:
    corners = IsotonicCalibration((0.0, 1.0), (0.4, 0.6))

    assert corners.confidence(np.array([0.5])) == pytest.approx([0.5])
