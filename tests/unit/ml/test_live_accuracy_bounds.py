"""Where the bounds of live accuracy are given, and where there are too few signals for any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ml.evaluation import Estimate
from tests.unit.ml.resolved_signals import FIGURES, drawn, judged, signals, written_out

pytestmark = pytest.mark.inference


@pytest.mark.parametrize(("days", "sure"), [(19.9, False), (20.1, True)])
def test_a_span_of_fewer_than_ten_blocks_has_values_but_no_bounds(days: float, sure: bool) -> None:
    given = drawn(600)
    row = int(days * 24)
    given = written_out(given, (np.arange(600) <= row).astype(int))

    found = judged(given)

    assert found.answered == row + 1
    for name in FIGURES:
        estimate = getattr(found, name)
        assert estimate.value is not None, name
        assert (estimate.low is not None) is (estimate.high is not None) is sure, name


@pytest.mark.parametrize("days", [90, 3000])
@pytest.mark.parametrize("count", [3, 4, 5, 6, 29])
def test_few_signals_of_a_long_span_have_no_bounds(count: int, days: int) -> None:
    label = (np.arange(count) % 2).astype(float)
    spread = np.datetime64("2019-01-01", "us") + np.linspace(0, days, count).astype("timedelta64[D]")

    found = judged(signals(label, 0.4 + 0.3 * label, signal_time=spread))

    assert {getattr(found, name).low for name in FIGURES} == {None}
    assert found.precision.value == 1.0


@pytest.mark.parametrize(("blocks", "sure"), [(9, False), (10, True)])
def test_signals_of_fewer_than_ten_blocks_have_no_bounds_however_long_their_span(
    blocks: int, sure: bool
) -> None:
    """Twenty signals each, in blocks of two days with one of silence after each."""
    plain = drawn(20 * blocks)
    index = np.arange(20 * blocks)
    hours = (index // 20) * 2 * 48 + index % 20
    apart = replace(plain, signal_time=plain.signal_time[0] + hours.astype("timedelta64[h]"))

    assert (judged(apart).brier.low is not None) is sure


def test_each_figure_needs_signals_enough_of_those_it_is_of() -> None:
    """Of 600 signals 29 are positive; then one more is."""
    plain = drawn(600)
    order = np.argsort(np.random.default_rng(1).random(600))
    for positives, sure in ((29, False), (30, True)):
        confidence = np.where(np.isin(np.arange(600), order[:positives]), 0.9, 0.1)
        found = judged(replace(plain, confidence=confidence, accepted=confidence > 0.5))

        of_positives = {"precision", "accuracy_gained", "net_return_positive_atr", "net_return_accepted_atr"}
        of_positives |= {"pattern_accuracy_gained", "accuracy_gained_over_pattern"}
        for name in FIGURES:
            assert (getattr(found, name).low is not None) is (sure or name not in of_positives), name


def test_signals_that_all_came_to_the_same_promise_no_certainty() -> None:
    found = judged(replace(drawn(600), label=np.ones(600), net_return_atr=np.full(600, 0.8)))

    assert found.precision == Estimate(1.0, None, None)
    assert (found.net_return_atr.low, found.net_return_atr.high) == (None, None)
    assert found.accuracy.low is not None


def test_calibration_error_is_a_number_without_bounds_that_chance_alone_makes() -> None:
    """Of a model that is right its resamples would lie above it: 5th percentile over the value."""
    draw = np.random.default_rng(3)
    chance = draw.uniform(0.45, 0.7, 500)

    found = judged(signals(draw.random(500) < chance, chance))

    assert isinstance(found.calibration_error, float)
    large = found.calibration_in_the_large
    assert large.low is not None
    assert large.high is not None
    assert large.low < 0 < large.high
