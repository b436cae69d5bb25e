"""Metrics are scikit-learn's; intervals cover what they should; nothing is made up where nothing is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import (
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from ml.evaluation import Estimate, Evaluation, block_multiplicities, evaluate
from ml.rows import SignalRows

MakeRows = Callable[..., SignalRows]
Floats = NDArray[np.float64]

pytestmark = pytest.mark.training

HOUR = timedelta(hours=1)


def judged(
    rows: SignalRows,
    confidence: Floats,
    *,
    expected: Floats | None = None,
    threshold: float = 0.55,
    seed: int = 7,
) -> Evaluation:
    return evaluate(
        rows,
        confidence=confidence,
        threshold=threshold,
        expected_net_return_atr=np.ones(len(rows)) if expected is None else expected,
        known_base_rate=0.57,
        block=48 * HOUR,
        samples=200,
        seed=seed,
    )


def informed(rows: SignalRows) -> Floats:
    """The chance that the rows were drawn with."""
    chance: Floats = 1 / (1 + np.exp(-(0.3 + 0.6 * rows.features[:, 0].astype(np.float64))))
    return chance


def test_every_metric_is_scikit_learns(make_rows: MakeRows) -> None:
    rows = make_rows(800)
    confidence = np.round(informed(rows), 2)  # with ties
    positive = confidence >= 0.55

    found = judged(rows, confidence)

    assert found.f1.value == pytest.approx(f1_score(rows.label, positive), abs=1e-12)
    assert found.precision.value == pytest.approx(precision_score(rows.label, positive), abs=1e-12)
    assert found.recall.value == pytest.approx(recall_score(rows.label, positive), abs=1e-12)
    assert found.auc.value == pytest.approx(roc_auc_score(rows.label, confidence), abs=1e-12)
    assert found.log_loss.value == pytest.approx(log_loss(rows.label, confidence), abs=1e-12)
    brier = brier_score_loss(rows.label, confidence)
    assert found.brier.value == pytest.approx(brier, abs=1e-12)
    constant = brier_score_loss(rows.label, np.full(800, 0.57))
    assert found.brier_skill.value == pytest.approx(1 - brier / constant, abs=1e-12)
    pattern = rows.pattern_confidence
    assert found.pattern_auc.value == pytest.approx(roc_auc_score(rows.label, pattern), abs=1e-12)
    assert found.pattern_brier.value == pytest.approx(brier_score_loss(rows.label, pattern), abs=1e-12)
    assert (found.rows, found.positives, found.base_rate) == (800, positive.sum(), rows.label.mean())


def test_money_of_five_signals_by_hand(make_rows: MakeRows) -> None:
    rows = make_rows(5)
    rows.label[:] = [1, 1, 0, 0, 1]
    rows.gross_return_atr[:] = [1.0, 1.0, -2.0, 0.4, 1.0]
    rows.cost_atr[:] = 0.2

    found = judged(rows, np.array([0.9, 0.8, 0.7, 0.2, 0.1]), expected=np.array([0.3, -0.1, 0.1, 0.5, 0.5]))

    # net: 0.8, 0.8, -2.2, 0.2, 0.8; positives are the first three, of which the first and third are accepted
    assert found.net_return_atr.value == pytest.approx(0.4 / 5)
    assert found.net_return_positive_atr.value == pytest.approx(-0.6 / 3)
    assert (found.positives, found.accepted) == (3, 2)
    assert found.net_return_accepted_atr.value == pytest.approx(-1.4 / 2)
    # a win brings 0.8, a miss -1.0 on average: 10 hits in 18 pay for themselves
    assert found.break_even_hit_rate.value == pytest.approx(1.0 / 1.8)


def test_one_class_gives_no_auc_and_no_number_in_its_place(make_rows: MakeRows) -> None:
    rows = make_rows(300)
    rows.label[:] = 1.0

    found = judged(rows, informed(rows))

    assert found.auc == Estimate(None, None, None)
    assert found.break_even_hit_rate == Estimate(None, None, None)
    assert found.recall.value is not None


def test_no_signal_over_the_threshold_gives_no_precision_but_a_recall_of_zero(make_rows: MakeRows) -> None:
    rows = make_rows(300)

    found = judged(rows, informed(rows), threshold=0.999)

    assert found.precision == Estimate(None, None, None)
    assert found.net_return_positive_atr == Estimate(None, None, None)
    assert (found.recall.value, found.f1.value, found.positives) == (0.0, 0.0, 0)


def test_bounds_that_too_many_resamples_cannot_compute_are_none(make_rows: MakeRows) -> None:
    rows = make_rows(300)
    confidence = np.full(300, 0.5)
    confidence[10] = 0.9  # one positive: about a third of the resamples miss it

    found = judged(rows, confidence)

    assert found.precision.value in (0.0, 1.0)
    assert (found.precision.low, found.precision.high) == (None, None)


def test_same_rows_and_seed_give_the_same_intervals_and_another_seed_others(make_rows: MakeRows) -> None:
    rows = make_rows(500)

    first, again, other = (judged(rows, informed(rows), seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first.auc.low != other.auc.low
    assert first.auc.value == other.auc.value


def test_json_and_back_is_the_same_evaluation(make_rows: MakeRows) -> None:
    found = judged(make_rows(300), informed(make_rows(300)))

    text = json.dumps(found.to_json(), allow_nan=False)

    assert Evaluation.from_json(json.loads(text)) == found
    assert set(json.loads(text)) == {field.name for field in fields(Evaluation)}


@pytest.mark.parametrize("unlabelled", [0, 1])
def test_rows_that_cannot_be_judged_are_refused(make_rows: MakeRows, unlabelled: int) -> None:
    rows = make_rows(unlabelled)
    rows.label[:] = np.nan

    with pytest.raises(ValueError, match="needs labelled rows"):
        judged(rows, np.full(unlabelled, 0.5))


def drawn(
    hours: NDArray[Any],
    *,
    block: timedelta = 48 * HOUR,
    samples: int = 400,
    seed: int = 3,
) -> Floats:
    times = np.datetime64("2020-01-01", "us") + np.asarray(hours).astype("timedelta64[h]")
    return np.concatenate(list(block_multiplicities(times, block=block, samples=samples, seed=seed)))


def test_blocks_draw_each_row_equally_often_and_the_ends_too() -> None:
    weights = drawn(np.arange(0, 4800, 3), samples=4000)

    assert weights.shape == (4000, 1600)
    assert weights.mean(axis=0) == pytest.approx(np.ones(1600), abs=0.06)


def test_rows_of_one_block_are_drawn_together() -> None:
    # Pairs of rows an hour apart, pairs a week from each other: a pair is seldom split.
    hours = (np.arange(100)[:, None] * 168 + [0, 1]).ravel()

    weights = drawn(hours, samples=1000)

    assert (weights[:, ::2] == weights[:, 1::2]).mean() > 0.95


def test_a_span_shorter_than_a_block_is_drawn_whole() -> None:
    assert drawn(np.arange(4), samples=10).tolist() == [[1.0] * 4] * 10


@pytest.mark.parametrize(("days", "sure"), [(19.9, False), (20.1, True)])
def test_a_span_of_fewer_than_ten_blocks_has_values_but_no_bounds(
    make_rows: MakeRows, days: float, sure: bool
) -> None:
    rows = make_rows(1200)
    until = rows.close_time[0] + np.timedelta64(int(days * 24), "h")
    rows = rows.take(rows.close_time <= until)

    found = judged(rows, np.linspace(0.4, 0.7, len(rows)))

    assert found.auc.value is not None
    assert (found.auc.low is not None) is sure
    assert (found.brier_skill.low is not None) is sure


@pytest.mark.parametrize(("block_hours", "covers"), [(48, True), (1, False)])
def test_interval_covers_the_mean_of_an_autocorrelated_series_where_single_rows_do_not(
    block_hours: int, covers: bool
) -> None:
    """AR(1) with 0.7: neighbours agree, so that single rows claim far more than they know."""
    draw = np.random.default_rng(11)
    n, trials = 1500, 150
    inside = 0
    for trial in range(trials):
        noise = draw.normal(size=n + 100)
        series = np.zeros(n + 100)
        for i in range(1, n + 100):
            series[i] = 0.7 * series[i - 1] + noise[i]
        series = series[100:]
        weights = drawn(np.arange(n), block=block_hours * HOUR, samples=200, seed=trial)
        low, high = np.quantile(weights @ series / weights.sum(axis=1), (0.05, 0.95))
        inside += low <= 0.0 <= high
    # 90 % is meant: 150 trials have a standard error of 2.5 %, and blocks lose a little at their ends.
    assert (inside / trials > 0.82) == covers
    assert covers or inside / trials < 0.65
