"""Challenger beside champion: chances against an independent computation, and what trials do on real rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import t
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from ml.comparison import (
    Answers,
    Comparison,
    compare,
    compare_slices,
    occupied_blocks,
    paired_gains,
)
from ml.config import LabelConfig, TrainingConfig
from ml.evaluation import block_multiplicities
from ml.keys import ModelKey
from ml.patterns import PATTERN_NAMES
from ml.promotion import Trial, decide
from ml.rows import SignalRows
from ml.training import Challenger, fit_booster, fit_key, judge

MakeRows = Callable[..., SignalRows]
Floats = NDArray[np.float64]

pytestmark = pytest.mark.drift

CONFIG = TrainingConfig.from_mapping(
    {
        "bootstrap_samples": 300,
        "fit": {"n_estimators": 100, "threads": 1},
        "drift": {"null_months": 15},
    }
)
AS_OF = datetime(2021, 1, 1, tzinfo=UTC)
ALL = ModelKey("BTCUSDT", "1h", "all")
BLOCK = timedelta(hours=48)
DRAW = {"block": BLOCK, "samples": 200, "seed": 7}


def trained(rows: SignalRows) -> Challenger:
    return fit_key(ALL, rows, fit_booster(rows, CONFIG, interval="1h"), CONFIG, as_of=AS_OF)


def forecasts(rows: SignalRows) -> tuple[Answers, Answers]:
    """A challenger that knows a little, and a champion that knows less."""
    draw = np.random.default_rng(5)
    knows = [0.3 + share * (rows.label - 0.5) + draw.normal(0, 0.3, len(rows)) for share in (0.2, 0.15)]
    return Answers(expit(knows[0]), 0.55), Answers(expit(knows[1]), 0.58)


def resamples(times: NDArray[np.datetime64], samples: int = 200) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each resample, a row as often as it was drawn."""
    for weights in block_multiplicities(times, block=BLOCK, samples=samples, seed=7):
        for drawn in weights.astype(int):
            yield np.repeat(np.arange(len(times)), drawn)


def test_gains_and_chances_are_those_of_sklearn_on_the_same_resamples(make_rows: MakeRows) -> None:
    rows = make_rows(600)
    new, old = forecasts(rows)

    gains = paired_gains(rows, new, old, block=BLOCK, samples=200, seed=7)

    def scores(answers: Answers, at: NDArray[np.int64]) -> list[float]:
        label, confidence = rows.label[at], answers.confidence[at]
        return [
            f1_score(label, confidence >= answers.threshold),
            roc_auc_score(label, confidence),
            -brier_score_loss(label, confidence),
        ]

    def differences(at: NDArray[np.int64]) -> list[float]:
        return [a - b for a, b in zip(scores(new, at), scores(old, at), strict=True)]

    values = differences(np.arange(600))
    resampled = np.array([differences(at) for at in resamples(rows.close_time)])
    # 1,200 hours hold 25 blocks of 48.
    for gain, value, others in zip((gains.f1, gains.auc, gains.brier), values, resampled.T, strict=True):
        assert gain.value == pytest.approx(value, abs=1e-12)
        assert (gain.low, gain.high) == pytest.approx(tuple(np.quantile(others, [0.05, 0.95])), abs=1e-12)
        assert gain.p_resampled == (1 + (others <= 0).sum()) / 201
        assert gain.p_tail == pytest.approx(t.sf(value / others.std(), 24), rel=1e-9)
        assert gain.least_p == 1 / 201
    assert 1 / 201 < (gains.auc.p_resampled or 0) < 0.5


def test_slices_are_the_rows_of_each_pattern_with_the_same_resamples(make_rows: MakeRows) -> None:
    rows = make_rows(900)
    draw = np.random.default_rng(1)
    fired = draw.random((900, 3)) < (0.5, 0.3, 0.05)  # the third: too few
    rows = replace(rows, patterns=(fired * np.array([1, 4, 8])).sum(axis=1).astype(np.uint64))
    new, old = forecasts(rows)

    found = compare_slices(
        rows, old.confidence, new.confidence, least_rows=100, block=BLOCK, samples=200, seed=7
    )

    assert found is not None
    assert [one.pattern for one in found] == [PATTERN_NAMES[0], PATTERN_NAMES[2]]
    rise = (old.confidence - rows.label) ** 2 - (new.confidence - rows.label) ** 2
    for one, mask in zip(found, fired.T[:2], strict=True):
        assert one.rows == mask.sum()
        assert one.challenger_brier == pytest.approx(brier_score_loss(rows.label[mask], old.confidence[mask]))
        assert one.baseline_brier == pytest.approx(brier_score_loss(rows.label[mask], new.confidence[mask]))
        resampled = np.array([rise[at][mask[at]].mean() for at in resamples(rows.close_time)])
        assert one.rise.value == pytest.approx(rise[mask].mean())
        assert one.rise.p_resampled == (1 + (resampled <= 0).sum()) / 201
        blocks = occupied_blocks(rows.close_time[mask], BLOCK)
        assert one.rise.p_tail == pytest.approx(t.sf(rise[mask].mean() / resampled.std(), blocks - 1))


def test_the_same_answers_gain_nothing(make_rows: MakeRows) -> None:
    rows = make_rows(600)
    new, _ = forecasts(rows)

    gains = paired_gains(rows, new, new, block=BLOCK, samples=200, seed=7)

    for gain in (gains.f1, gains.auc, gains.brier):
        assert (gain.value, gain.p_resampled, gain.p_tail) == (0.0, 1.0, 1.0)


def test_rows_in_fewer_than_ten_blocks_have_no_chances(make_rows: MakeRows) -> None:
    rows = make_rows(230)  # 460 hours: nine blocks and a half
    late = rows.close_time - rows.close_time[0] >= np.timedelta64(17 * 24, "h")
    rows = rows.take(~late)
    new, old = forecasts(rows)

    gains = paired_gains(rows, new, old, block=BLOCK, samples=200, seed=7)

    assert occupied_blocks(rows.close_time, BLOCK) == 9
    assert gains.auc.value is not None
    assert (gains.auc.low, gains.auc.p_resampled, gains.auc.p_tail) == (None, None, None)
    assert (
        compare_slices(rows, new.confidence, old.confidence, least_rows=30, block=BLOCK, samples=200, seed=7)
        is None
    )


def test_a_pattern_that_fired_in_few_blocks_is_not_looked_at(make_rows: MakeRows) -> None:
    rows = make_rows(2000)
    early = rows.close_time < rows.close_time[0] + np.timedelta64(17 * 24, "h")
    rows = replace(rows, patterns=np.where(early, 3, 1).astype(np.uint64))
    assert early.sum() > 150
    new, old = forecasts(rows)

    found = compare_slices(
        rows, new.confidence, old.confidence, least_rows=100, block=BLOCK, samples=200, seed=7
    )

    assert found is not None
    assert [one.pattern for one in found] == [PATTERN_NAMES[0]]


def test_a_champion_is_judged_on_its_challengers_test_rows(make_rows: MakeRows) -> None:
    rows = make_rows(6000)
    champion, challenger = trained(rows.take(np.arange(5500))), trained(rows)

    found = compare(challenger, champion.predictor, CONFIG)

    assert found.baseline == "champion"
    assert found.challenger == challenger.evaluation
    assert found.champion == judge(
        champion.predictor, challenger.test, CONFIG, known_base_rate=challenger.model.base_rate
    )
    assert found.gains is not None
    assert found.gains.auc.value == pytest.approx(
        (found.challenger.auc.value or 0) - (found.champion.auc.value or 0), abs=1e-12
    )
    assert found.slices is not None
    assert [one.rows for one in found.slices] == [len(challenger.test)]  # one pattern fires always


def test_a_champion_is_never_judged_on_rows_that_it_was_fitted_on(make_rows: MakeRows) -> None:
    """Older candles came in: the boundaries moved back, into what the champion grew on."""
    rows = make_rows(8000)
    champion, challenger = trained(rows.take(np.arange(3000, 8000))), trained(rows)
    seen_until = np.datetime64(champion.model.spans["test_start"])
    assert (challenger.test.close_time < seen_until).any()

    found = compare(challenger, champion.predictor, CONFIG)

    assert found.champion is not None
    assert found.challenger is not None
    assert found.slices is not None
    assert np.datetime64(found.champion.first_close) >= seen_until
    assert found.champion.rows == found.challenger.rows < challenger.evaluation.rows
    assert found.slices[0].rows == found.champion.rows
    strict = CONFIG.model_copy(
        update={"split": CONFIG.split.model_copy(update={"min_test_rows": found.champion.rows + 1})}
    )
    assert compare(challenger, champion.predictor, strict) == Comparison(
        baseline="champion", challenger=None, slices=None
    )


@pytest.mark.parametrize(
    ("labels", "changed"),
    [
        ({"profit_take_atr": 0.7}, "profit_take_atr 0.7 instead of 1"),
        ({"horizon_bars": 24, "fee_bps": 4.0}, "horizon_bars 24 instead of 12, fee_bps 4 instead of 10"),
    ],
)
def test_a_champion_of_other_labels_cannot_be_compared_and_its_gates_fail(
    make_rows: MakeRows, labels: dict[str, float], changed: str
) -> None:
    rows = make_rows(6000)
    champion, challenger = trained(rows.take(np.arange(5500))), trained(rows)
    other = replace(challenger.model, labels=LabelConfig.model_validate(labels))

    found = compare(replace(challenger, model=other), champion.predictor, CONFIG)
    decision = decide(
        challenger.evaluation,
        found,
        0.0,
        CONFIG.gates,
        trial=Trial(number=1, alpha=1.0, accrued_days=90.0),
        probes=(),
    )

    assert (found.challenger, found.champion, found.gains, found.slices) == (None, None, None, None)
    gates = {gate.name: gate for gate in decision.gates}
    assert not gates["slices"].passed
    assert not gates["better_than_champion"].passed
    assert gates["better_than_champion"].detail == (
        f"the champion was trained with other labels ({changed}), so nothing can be compared: "
        "restore those labels, or promote by hand"
    )


def test_without_a_champion_slices_are_held_against_the_patterns(make_rows: MakeRows) -> None:
    challenger = trained(make_rows(4000))

    found = compare(challenger, None, CONFIG)

    assert (found.baseline, found.champion, found.gains) == ("patterns", None, None)
    assert found.slices is not None
    assert found.slices[0].baseline_brier == pytest.approx(challenger.evaluation.pattern_brier.value)
    assert found.slices[0].challenger_brier == pytest.approx(challenger.evaluation.brier.value)
