from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from ml.evaluation import Estimate
from ml.paired import PairedOutcomes, Regret, regret, rollback_test
from tests.unit.ml.real_outcomes import history, real_outcomes

pytestmark = pytest.mark.drift

Floats = NDArray[np.float64]
BLOCK = timedelta(hours=24)
BOOTSTRAP = timedelta(hours=48)
START = np.datetime64("2019-01-01", "us")


def paired(hours: Any, label: Any, new: Any, old: Any, **columns: Any) -> PairedOutcomes:
    """Signals at ``hours``; positive and accepted from 0.55 on; a hit earns 0.8, a miss loses 2.2."""
    n = len(hours)
    label, new, old = (np.broadcast_to(np.asarray(value, float), n) for value in (label, new, old))
    values: dict[str, Any] = {
        "signal_time": START + np.round(np.asarray(hours) * 3600e6).astype("timedelta64[us]"),
        "label": label,
        "net_return_atr": np.where(label == 1, 0.8, -2.2),
        "new_confidence": new,
        "old_confidence": old,
        "new_positive": new >= 0.55,
        "old_positive": old >= 0.55,
        "new_accepted": new >= 0.55,
        "old_accepted": old >= 0.55,
    }
    return PairedOutcomes(**values | columns)


def blocks(*parts: tuple[int, float, float, float]) -> PairedOutcomes:
    """Day by day (signals, label, new, old)."""
    hours = np.concatenate([24 * day + np.arange(part[0]) / 10 for day, part in enumerate(parts)])
    columns = [
        np.repeat([part[column] for part in parts], [part[0] for part in parts]) for column in (1, 2, 3)
    ]
    return paired(hours, *columns)


def test_rollback_capital_after_a_block_by_hand() -> None:
    # Day 0 settles the stakes: 0.5^2 - 0.4^2 = 0.09 is what the new model can gain on a signal at most.
    # Day 1: D = 0.6^2 - 0.5^2 = 0.11. A capital is 1 + b 0.11 / 0.09, their mean 1 + 0.516667 x 1.222222.
    found = rollback_test(
        blocks((30, 1, 0.6, 0.5), (4, 0, 0.6, 0.5), (1, 1, 0.6, 0.5)), block=BLOCK, alpha=0.7
    )

    assert found.e_value == pytest.approx(1.631481, abs=1e-6)
    # 31 signals with -0.09, 4 with 0.11: on the whole it is better, whatever the capital.
    assert found.mean_brier_difference == pytest.approx((31 * -0.09 + 4 * 0.11) / 35)
    assert not found.worse
    assert (found.rows, found.blocks, found.worse_after_rows) == (35, 2, 34)


def test_rollback_capital_of_two_blocks_is_a_product_for_each_bet() -> None:
    found = rollback_test(
        blocks((30, 0, 0.6, 0.5), (4, 0, 0.6, 0.5), (2, 0, 0.6, 0.5), (1, 0, 0.6, 0.5)),
        block=BLOCK,
        alpha=0.5,
    )

    factors = 1 + np.array([0.2, 0.45, 0.9]) * 0.11 / 0.09
    assert found.e_value == pytest.approx((factors**2).mean())
    assert found.worse
    assert found.worse_after_rows == 36
    assert found.mean_brier_difference == pytest.approx(0.11)


def test_a_block_with_more_at_stake_than_any_before_counts_as_the_record_before_it() -> None:
    # Day 1 could gain 0.5^2 - 0.1^2 = 0.24 a signal, and does lose 0.9^2 - 0.5^2 = 0.56: what is bet on is
    # 0.56 / 0.24, not 0.56 / 0.09. Day 2 has the new record to go by: 0.11 / 0.24.
    found = rollback_test(
        blocks((30, 1, 0.6, 0.5), (4, 0, 0.9, 0.5), (4, 0, 0.6, 0.5), (1, 1, 0.6, 0.5)),
        block=BLOCK,
        alpha=0.05,
    )
    bets = np.array([0.2, 0.45, 0.9])
    assert found.e_value == pytest.approx(((1 + bets * 0.56 / 0.24) * (1 + bets * 0.11 / 0.24)).mean())


def test_the_worst_that_can_happen_leaves_some_capital() -> None:
    gains = [(4, 1.0, 0.9, 0.5)] * 40
    losses = [(4, 0.0, 0.9, 0.5)] * 40
    found = rollback_test(
        blocks((30, 1, 0.9, 0.5), *gains, *losses, (1, 1, 0.9, 0.5)), block=BLOCK, alpha=0.05
    )
    assert found.worse  # 40 lost blocks of 0.56 / 0.24 make up for 40 that were won


@pytest.mark.parametrize(
    ("parts", "closed"),
    [
        ([], 0),
        ([(1, 1, 0.6, 0.5)], 0),
        # 29 signals before it: the second block is not bet on.
        ([(29, 0, 0.6, 0.5), (40, 0, 0.6, 0.5)], 1),
        ([(29, 0, 0.6, 0.5), (40, 0, 0.6, 0.5), (1, 0, 0.6, 0.5)], 2),
        # Two models that never differed.
        ([(40, 0, 0.5, 0.5), (40, 0, 0.9, 0.1), (1, 0, 0.5, 0.5)], 2),
    ],
)
def test_nothing_is_bet_before_thirty_signals_nor_on_a_block_that_is_still_open(
    parts: list[tuple[int, float, float, float]], closed: int
) -> None:
    outcomes = blocks(*parts) if parts else paired(np.array([]), [], [], [])
    found = rollback_test(outcomes, block=BLOCK, alpha=0.05)

    assert (found.e_value, found.worse, found.blocks) == (1.0, False, closed)


def test_what_was_found_does_not_change_as_signals_come_in() -> None:
    whole = bad_model(np.full(len(real_outcomes().label), 0.9), np.arange(3000))
    found = rollback_test(whole, block=BLOCK, alpha=0.05)
    assert found.worse_after_rows is not None

    for rows in (found.worse_after_rows, found.worse_after_rows + 1, 2000):
        part = PairedOutcomes(**{name: getattr(whole, name)[:rows] for name in whole.__slots__})
        so_far = rollback_test(part, block=BLOCK, alpha=0.05)
        assert so_far.worse == (rows > found.worse_after_rows)
        assert so_far.worse_after_rows == (found.worse_after_rows if so_far.worse else None)


def bad_model(worse: Floats, rows: NDArray[np.intp], day: Floats | None = None) -> PairedOutcomes:
    """The real model was replaced by one that says ``worse``."""
    known = real_outcomes()
    hours = (known.time[rows] - known.time[0]) / np.timedelta64(1, "h") if day is None else 24 * day
    return paired(
        hours,
        known.label[rows],
        worse[rows],
        known.confidence[rows],
        net_return_atr=known.net_return_atr[rows],
    )


def opponents() -> dict[str, Floats]:
    """What the worse model says."""
    confidence = real_outcomes().confidence
    draw = np.random.default_rng(0)
    return {
        "inverted": 2 * confidence.mean() - confidence,
        "shuffled": draw.permutation(confidence),
        "noisy": np.clip(confidence + draw.normal(0, 0.05, len(confidence)), 0.01, 0.99),
        "always 0.9": np.full(len(confidence), 0.9),
    }


@pytest.mark.parametrize("name", ["inverted", "shuffled", "noisy"])
@pytest.mark.parametrize("days", [7, 30])
def test_of_two_models_that_are_equally_good_at_most_one_in_twenty_is_called_worse(
    name: str, days: int
) -> None:
    known, other, runs = real_outcomes(), opponents()[name], 200
    draw = np.random.default_rng(days)
    called = 0
    for _ in range(runs):
        rows, day = history(known.time, days=180, block=timedelta(days=days), draw=draw)
        both = bad_model(other, rows, day)
        # Who is new is tossed anew each two days: neither is better, and each knows more for a while.
        swapped = (draw.random(90) < 0.5)[(day // 2).astype(int)]
        fair = replace(
            both,
            new_confidence=np.where(swapped, both.old_confidence, both.new_confidence),
            old_confidence=np.where(swapped, both.new_confidence, both.old_confidence),
        )
        # The e-value is the highest there ever was, as if it was looked at after every signal; and without
        # the mean difference, which could only take alarms away.
        called += rollback_test(fair, block=BLOCK, alpha=0.05).worse_after_rows is not None

    assert called / runs <= 0.05


@pytest.mark.parametrize(("name", "signals"), [("always 0.9", 600), ("inverted", 4500), ("shuffled", 4500)])
def test_a_model_that_is_clearly_worse_is_found(name: str, signals: int) -> None:
    known, other = real_outcomes(), opponents()[name]
    draw, after = np.random.default_rng(2), []
    for _ in range(60):
        rows, day = history(known.time, days=200, block=timedelta(days=14), draw=draw)
        found = rollback_test(bad_model(other, rows, day), block=BLOCK, alpha=0.05)
        after.append(found.worse_after_rows if found.worse else np.inf)

    assert np.median(np.array(after, dtype=np.float64)) <= signals


def test_the_better_model_is_never_taken_back() -> None:
    known = real_outcomes()
    everything = np.arange(len(known.label))
    for name, other in opponents().items():
        worse = bad_model(other, everything)
        better = replace(worse, new_confidence=worse.old_confidence, old_confidence=worse.new_confidence)
        found = rollback_test(better, block=BLOCK, alpha=0.05)
        assert not found.worse, name
        assert found.worse_after_rows is None, name


def test_a_block_without_length_and_an_alpha_that_is_none_are_refused() -> None:
    one = blocks((2, 1, 0.6, 0.5))
    with pytest.raises(ValueError, match="alpha"):
        rollback_test(one, block=timedelta(0), alpha=0.05)
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match="alpha"):
            rollback_test(one, block=BLOCK, alpha=alpha)


def test_unpaired_outcomes_are_refused() -> None:
    good = blocks((3, 1, 0.6, 0.5))
    with pytest.raises(ValueError, match="sorted"):
        replace(good, signal_time=good.signal_time[::-1])
    with pytest.raises(ValueError, match="one length"):
        replace(good, new_accepted=good.new_accepted[:2])
    with pytest.raises(ValueError, match="outcome"):
        replace(good, label=np.array([1.0, np.nan, 0.0]))


def test_regrets_figures_are_those_of_plain_arithmetic() -> None:
    known = real_outcomes()
    outcomes = bad_model(opponents()["shuffled"], np.arange(2000))
    found = judged(outcomes)
    label, new, old = outcomes.label, outcomes.new_confidence, outcomes.old_confidence

    def auc(score: Floats) -> float:
        wins = mannwhitneyu(score[label == 1], score[label == 0]).statistic
        return float(wins / ((label == 1).sum() * (label == 0).sum()))

    assert found.rows == 2000
    assert found.first_signal == str(known.time[0] - known.time[0] + START)
    assert found.base_rate == pytest.approx(label.mean())
    new_brier, old_brier = ((new - label) ** 2).mean(), ((old - label) ** 2).mean()
    assert found.new_brier == pytest.approx(new_brier)
    assert found.old_brier == pytest.approx(old_brier)
    assert found.brier_difference.value == pytest.approx(old_brier - new_brier)
    assert found.auc_difference.value == pytest.approx(auc(new) - auc(old))
    net = known.net_return_atr[:2000]
    assert found.net_return_difference.value == pytest.approx(
        net[new >= 0.55].mean() - net[old >= 0.55].mean()
    )


def judged(outcomes: PairedOutcomes, seed: int = 1) -> Regret:
    return regret(outcomes, block=BOOTSTRAP, samples=500, seed=seed)


def test_regret_says_whether_the_promotion_paid() -> None:
    known = real_outcomes()
    worse = bad_model(opponents()["always 0.9"], np.arange(2000))
    better = replace(worse, new_confidence=worse.old_confidence, old_confidence=worse.new_confidence)
    twin = replace(worse, new_confidence=np.clip(known.confidence[:2000] + 1e-3, 0, 1))
    other_twin = replace(twin, new_confidence=twin.old_confidence, old_confidence=twin.new_confidence)

    did_not, did, unknown = judged(worse), judged(better), judged(twin)

    assert [found.verdict for found in (did_not, did, unknown)] == ["did_not_pay", "paid", "not_known"]
    assert judged(other_twin).verdict == "not_known"  # one of the twins is better, and not for sure
    assert did_not.brier_difference.value == pytest.approx(-(did.brier_difference.value or 0))
    assert did_not.brier_difference.high is not None
    assert did_not.brier_difference.high < 0
    assert did.brier_difference.low is not None
    assert did.brier_difference.low > 0
    assert unknown.brier_difference.low is not None
    assert unknown.brier_difference.high is not None
    assert unknown.brier_difference.low <= 0 <= unknown.brier_difference.high


@pytest.mark.parametrize(
    "hours",
    [
        np.arange(29) * 48.0,  # too few, though in blocks enough
        np.arange(300) * 1.5,  # 449 hours: ten blocks of 48 hold them, the last one cut
        np.arange(287) * 1.5,  # 429 hours: nine blocks
    ],
    ids=["29 signals", "10 blocks", "9 blocks"],
)
def test_few_signals_or_blocks_are_counted_and_nothing_is_known(hours: Floats) -> None:
    n = len(hours)
    found = judged(paired(hours, np.arange(n) % 2, 0.9, 0.5))

    assert found.rows == n
    if n == 300:
        assert found.verdict == "did_not_pay"
    else:
        assert found.verdict == "not_known"
        # A hit gains 0.25 - 0.01, a miss loses 0.81 - 0.25.
        expected = 0.24 * (n // 2) / n - 0.56 * (n - n // 2) / n
        assert found.brier_difference.value == pytest.approx(expected)
        assert (found.brier_difference.low, found.brier_difference.high) == (None, None)


def test_regret_of_nothing_is_not_known() -> None:
    nothing = Estimate(None, None, None)
    assert judged(paired(np.array([]), [], [], [])) == Regret(
        verdict="not_known",
        rows=0,
        first_signal=None,
        last_signal=None,
        base_rate=None,
        new_brier=None,
        old_brier=None,
        brier_difference=nothing,
        auc_difference=nothing,
        net_return_difference=nothing,
    )


def test_a_model_that_accepted_nothing_has_no_mean_return_and_the_rest_stands() -> None:
    found = judged(paired(np.arange(600) * 1.0, np.arange(600) % 2, 0.5, 0.9))

    assert found.net_return_difference == Estimate(None, None, None)
    assert found.verdict == "paid"


def test_regret_survives_json_and_the_same_seed_gives_it_again() -> None:
    outcomes = bad_model(opponents()["shuffled"], np.arange(1000))
    found = judged(outcomes)

    assert Regret.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert judged(outcomes) == found
    assert judged(outcomes, seed=2) != found
