"""Figures are scikit-learn's, a loop's or a hand's; what is not known is None."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, precision_score, recall_score

from ml.evaluation import Estimate, block_multiplicities
from ml.live_accuracy import LiveAccuracy, ResolvedSignals, live_accuracy
from tests.unit.ml.resolved_signals import (
    BLOCK,
    FIGURES,
    NAN,
    NOTHING,
    Floats,
    drawn,
    judged,
    signals,
    written_out,
)

pytestmark = pytest.mark.inference


def test_six_signals_by_hand() -> None:
    given = signals(
        [1, 1, 0, 0, 1, 0],
        [0.9, 0.7, 0.6, 0.5, 0.4, 0.3],
        pattern=[0.5, 0.8, 0.7, 0.6, 0.4, 0.3],
        accepted=np.array([True, False, True, False, False, False]),
        net_return_atr=np.array([0.8, 0.8, -2.2, 0.2, 0.8, -2.2]),
    )

    found = judged(given)

    assert (found.resolved, found.answered, found.positives, found.accepted) == (6, 6, 3, 2)
    assert (found.base_rate, found.coverage, found.compared) == (0.5, 1.0, 6)
    assert (found.first_signal, found.last_signal) == (
        "2019-01-01T00:00:00.000000",
        "2019-01-01T05:00:00.000000",
    )
    by_hand = {
        "accuracy": 4 / 6,
        "precision": 2 / 3,
        "accuracy_gained": 1 / 3,  # from 1 in 2 right to 2 in 3
        "false_signals_removed": 2 / 3,
        "hits_kept": 2 / 3,
        # the pattern's highest three: 0.8 hit, 0.7 missed, 0.6 missed
        "pattern_accuracy_gained": (1 / 3) / (1 / 2) - 1,
        "pattern_false_signals_removed": 1 / 3,
        "pattern_hits_kept": 1 / 3,
        "accuracy_gained_over_pattern": (2 / 3 - 1 / 3) / (1 / 2),
        "false_removed_over_pattern": 1 / 3,
        "brier": (0.01 + 0.09 + 0.36 + 0.25 + 0.36 + 0.09) / 6,
        "pattern_brier": (0.25 + 0.04 + 0.49 + 0.36 + 0.36 + 0.09) / 6,
        "brier_skill_over_pattern": 1 - 1.16 / 1.59,
        "calibration_in_the_large": 3.4 / 6 - 0.5,
        "net_return_atr": -1.8 / 6,
        "net_return_positive_atr": -0.6 / 3,
        "net_return_accepted_atr": -1.4 / 2,
    }
    assert {name: getattr(found, name).value for name in FIGURES} == pytest.approx(by_hand)
    # no two share a bin
    assert found.calibration_error == pytest.approx((0.1 + 0.3 + 0.6 + 0.5 + 0.6 + 0.3) / 6)
    assert found.answered_by == {"7": 6}


def test_figures_of_many_signals_are_scikit_learns() -> None:
    given = drawn(900)
    label, positive = given.label, given.confidence >= 0.55

    found = judged(given)

    brier = brier_score_loss(label, given.confidence)
    pattern_brier = brier_score_loss(label, given.pattern_confidence)
    expected = {
        "accuracy": accuracy_score(label, positive),
        "precision": precision_score(label, positive),
        "accuracy_gained": precision_score(label, positive) / label.mean() - 1,
        "false_signals_removed": recall_score(1 - label, ~positive),  # specificity
        "hits_kept": recall_score(label, positive),
        "brier": brier,
        "pattern_brier": pattern_brier,
        "brier_skill_over_pattern": 1 - brier / pattern_brier,
        "calibration_in_the_large": given.confidence.mean() - label.mean(),
    }
    assert {name: getattr(found, name).value for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found.calibration_error == pytest.approx(binned_error(given.confidence, label), abs=1e-12)


def binned_error(confidence: Floats, label: Floats) -> float:
    """Guo et al. 2017, equations 2 and 3: bin m is ((m - 1) / 10, m / 10]."""
    error = 0.0
    for m in range(1, 11):
        inside = (confidence > (m - 1) / 10) & (confidence <= m / 10)
        if inside.any():
            error += inside.mean() * abs(label[inside].mean() - confidence[inside].mean())
    return error


def every_way(label: Floats, pattern: Floats, count: int) -> float:
    """Mean hits among the ``count`` highest, over every choice among equals at the cut."""
    cut = np.sort(pattern)[::-1][count - 1]
    sure, equals = label[pattern > cut], label[pattern == cut]
    choices = itertools.combinations(equals, count - len(sure))
    return float(sure.sum() + np.mean([sum(choice) for choice in choices]))


@pytest.mark.parametrize("positives", [1, 3, 5, 8])
def test_of_equal_pattern_confidences_at_the_cut_each_counts_by_its_share(positives: int) -> None:
    label = np.array([1, 0, 1, 1, 0, 1, 0, 0], float)
    pattern = np.array([0.5, 0.6, 0.5, 0.6, 0.5, 0.7, 0.5, 0.4])
    confidence = np.where(np.arange(8) < positives, 0.9, 0.1)
    hits = every_way(label, pattern, positives)

    for order in (np.arange(8), np.arange(8)[::-1]):
        given = signals(label[order], confidence[order], pattern=pattern[order])
        found = judged(given)

        assert found.positives == positives
        assert found.pattern_accuracy_gained.value == pytest.approx(hits / positives / 0.5 - 1)
        assert found.pattern_hits_kept.value == pytest.approx(hits / 4)
        assert found.pattern_false_signals_removed.value == pytest.approx(1 - (positives - hits) / 4)


def test_one_pattern_confidence_for_all_is_worth_nothing_beyond_its_coverage() -> None:
    found = judged(signals([1, 0, 1, 0, 0], [0.9, 0.9, 0.1, 0.1, 0.1], pattern=0.57))

    assert found.pattern_accuracy_gained.value == pytest.approx(0)
    assert found.pattern_hits_kept.value == pytest.approx(2 / 5)
    assert found.pattern_false_signals_removed.value == pytest.approx(3 / 5)


def test_bounds_are_quantiles_of_the_figures_of_rows_written_out_as_often_as_drawn() -> None:
    given = drawn(600, decimals=1)

    found = judged(given, samples=100, seed=3)

    draws = np.concatenate(
        list(block_multiplicities(given.signal_time, block=BLOCK, samples=100, seed=3))
    ).astype(int)
    copies = [judged(written_out(given, times), samples=1) for times in draws]
    for name in FIGURES:
        low, high = np.quantile([getattr(copy, name).value for copy in copies], (0.05, 0.95))
        estimate = getattr(found, name)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-9), name
        assert estimate.low < estimate.high, name


def test_what_the_model_adds_is_the_difference_of_the_figures_of_the_same_signals() -> None:
    whole = drawn(600)
    unknown = np.where(np.arange(600) % 3 == 0, NAN, whole.pattern_confidence)

    found = judged(replace(whole, pattern_confidence=unknown))

    same = judged(written_out(whole, (np.arange(600) % 3 != 0).astype(int)))
    own, pattern = same.accuracy_gained.value, same.pattern_accuracy_gained.value
    assert own is not None
    assert pattern is not None
    assert found.accuracy_gained_over_pattern.value == pytest.approx(own - pattern)
    removed, by_pattern = same.false_signals_removed.value, same.pattern_false_signals_removed.value
    assert removed is not None
    assert by_pattern is not None
    assert found.false_removed_over_pattern.value == pytest.approx(removed - by_pattern)
    assert found.accuracy_gained != same.accuracy_gained  # which is of them all


def test_two_that_say_the_same_differ_by_nothing_in_every_resample() -> None:
    """Each figure has wide bounds, their difference none to speak of: it is paired."""
    plain = drawn(900)
    top = plain.confidence >= np.quantile(plain.confidence, 0.6)
    pattern = np.where(top, 0.7, 0.5)

    found = judged(
        replace(plain, threshold=np.full(900, plain.confidence[top].min()), pattern_confidence=pattern)
    )

    assert found.accuracy_gained == found.pattern_accuracy_gained
    assert found.accuracy_gained.low is not None
    assert found.accuracy_gained_over_pattern == Estimate(0.0, None, None)
    assert found.false_removed_over_pattern == Estimate(0.0, None, None)


def test_abstained_and_unlabelled_signals_change_counts_and_no_figure() -> None:
    alone = drawn(600)
    plain = judged(alone)
    extra = signals([1, 0, NAN, NAN, 1], [NAN, NAN, NAN, 0.9, NAN])
    extra = replace(
        extra,
        signal_time=extra.signal_time + np.timedelta64(100, "D"),
        abstain_reason=("no_model", "stale_signal", "no_model", None, None),
        unresolved=(None, None, "gap", "no_candle", None),
    )

    found = judged(together(alone, extra))

    assert (found.resolved, found.answered, found.compared) == (605, 600, 600)
    assert found.abstained == {"no_model": 2, "stale_signal": 1, "unknown": 1}
    assert found.unlabelled == {"no_candle": 1}
    assert found.coverage == 601 / 605
    unchanged = {"resolved": 0, "coverage": 0.0, "abstained": {}, "unlabelled": {}}
    assert replace(found, **unchanged) == replace(plain, **unchanged)  # type: ignore[arg-type]


def together(first: ResolvedSignals, second: ResolvedSignals) -> ResolvedSignals:
    columns: dict[str, Any] = {}
    for field in fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        columns[field.name] = one + other if isinstance(one, tuple) else np.concatenate([one, other])
    return ResolvedSignals(**columns)


def test_signals_without_a_pattern_confidence_are_judged_but_not_compared() -> None:
    label = [1, 0, 1, 1, 0, 0]
    confidence = [0.9, 0.8, 0.7, 0.2, 0.3, 0.9]
    pattern = [0.6, 0.7, 0.4, 0.5, NAN, NAN]

    found = judged(signals(label, confidence, pattern=pattern))
    only = judged(signals(label[:4], confidence[:4], pattern=pattern[:4]))

    assert (found.answered, found.compared) == (6, 4)
    assert found.brier.value == pytest.approx(brier_score_loss(label, confidence))
    against = [name for name in FIGURES if "pattern" in name]
    assert len(against) == 7
    assert [getattr(found, name) for name in against] == [getattr(only, name) for name in against]


def test_saying_no_to_everything_removes_every_false_signal_and_keeps_no_hit() -> None:
    found = judged(replace(drawn(600), threshold=np.full(600, 2.0), accepted=np.zeros(600, bool)))

    assert (found.positives, found.accepted) == (0, 0)
    assert found.false_signals_removed == found.pattern_false_signals_removed == Estimate(1.0, None, None)
    assert found.hits_kept == found.pattern_hits_kept == Estimate(0.0, None, None)
    for name in ("precision", "accuracy_gained", "pattern_accuracy_gained", "net_return_positive_atr"):
        assert getattr(found, name) == NOTHING, name


def test_a_coin_keeps_and_removes_by_its_coverage() -> None:
    draw = np.random.default_rng(5)
    confidence = np.where(draw.random(20_000) < 0.7, 0.6, 0.5)
    found = judged(signals(draw.random(20_000) < 0.57, confidence), samples=20)

    assert found.false_signals_removed.value == pytest.approx(0.3, abs=0.015)
    assert found.hits_kept.value == pytest.approx(0.7, abs=0.015)
    assert found.accuracy_gained.value == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize(
    ("label", "missing"),
    [
        (1.0, ["false_signals_removed", "pattern_false_signals_removed", "false_removed_over_pattern"]),
        (
            0.0,
            [
                "accuracy_gained",
                "hits_kept",
                "pattern_accuracy_gained",
                "pattern_hits_kept",
                "accuracy_gained_over_pattern",
            ],
        ),
    ],
    ids=["hits only", "misses only"],
)
def test_one_class_gives_no_share_of_the_other(label: float, missing: list[str]) -> None:
    found = judged(replace(drawn(600), label=np.full(600, label)))

    assert [name for name in FIGURES if getattr(found, name) == NOTHING] == missing


def test_a_model_without_a_stated_threshold_calls_nothing_positive() -> None:
    found = judged(replace(drawn(600), threshold=np.full(600, NAN), accepted=np.zeros(600, bool)))

    assert found.positives == 0


@pytest.mark.parametrize("block", [timedelta(0), timedelta(hours=-1)])
def test_a_block_without_length_is_refused(block: timedelta) -> None:
    with pytest.raises(ValueError, match="block"):
        live_accuracy(drawn(10), block=block, samples=10)


@pytest.mark.parametrize("given", [signals([], []), signals([1, 0], [NAN, NAN]), signals([NAN], [0.6])])
def test_with_no_outcome_of_an_answer_every_figure_is_empty(given: ResolvedSignals) -> None:
    found = judged(given)

    assert (found.resolved, found.answered, found.base_rate) == (len(given), 0, None)
    assert (found.first_signal, found.last_signal) == (None, None)
    assert [getattr(found, name) for name in FIGURES] == [NOTHING] * 17
    assert (found.calibration_error, found.answered_by) == (None, {})


def test_signals_out_of_order_are_refused() -> None:
    given = drawn(10)

    with pytest.raises(ValueError, match="sorted"):
        judged(replace(given, signal_time=given.signal_time[::-1]))


def test_json_and_back_is_the_same() -> None:
    extra = replace(
        signals([NAN, 1], [0.9, NAN]), signal_time=np.repeat(np.datetime64("2020-01-01", "us"), 2)
    )
    found = judged(together(drawn(600), extra))

    text = json.dumps(found.to_json(), allow_nan=False)

    assert (found.abstained, found.unlabelled) == ({"no_model": 1}, {"gap": 1})
    assert LiveAccuracy.from_json(json.loads(text)) == found


def test_same_signals_and_seed_give_the_same_bounds_and_another_seed_others() -> None:
    first, again, other = (judged(drawn(600), seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first.precision.value == other.precision.value
    assert first.precision.low != other.precision.low
