"""What live answers do to the weights of the rows that trees grow on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from ml.config import LiveConfig, TrainingConfig
from ml.live_weights import ServedConfidence, Signal, live_weights
from ml.rows import SignalRows
from ml.splits import split_times
from ml.training import fit_booster

MakeRows = Callable[..., SignalRows]

pytestmark = pytest.mark.inference

FIT = {"n_estimators": 20, "threads": 1}
OFF = TrainingConfig.from_mapping({"fit": FIT})
ON = TrainingConfig.from_mapping({"fit": FIT, "live": {"error_weight": 1.0, "min_outcomes": 50}})
FEW = LiveConfig(error_weight=0.5, min_outcomes=2)


def signals(rows: SignalRows) -> list[Signal]:
    micros = rows.close_time.astype(np.int64).tolist()
    return [
        (rows.symbols[code], micro, side)
        for code, micro, side in zip(rows.symbol_code, micros, rows.direction.tolist(), strict=True)
    ]


def served(rows: SignalRows, confidence: Sequence[float]) -> ServedConfidence:
    return ServedConfidence(dict(zip(signals(rows), confidence, strict=True)))


def test_only_served_rows_are_weighted_and_by_hand_it_is_so(make_rows: MakeRows) -> None:
    rows = make_rows(6)
    rows = replace(rows, label=np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]))
    answered = served(rows.take(np.array([1, 2])), [0.9, 0.9])

    weights = live_weights(rows, answered, FEW)

    # Squared errors 0.81 and 0.01, mean 0.41: half of the way from 1 to 0.81/0.41 and to 0.01/0.41.
    expected = [1, 1 + 0.5 * (0.81 / 0.41 - 1), 1 + 0.5 * (0.01 / 0.41 - 1), 1, 1, 1]
    assert weights.factor.tolist() == pytest.approx(expected)
    assert weights.factor.sum() == pytest.approx(6)
    assert weights.outcomes == 2


def test_an_answer_counts_for_its_own_symbol_time_and_direction_only(make_rows: MakeRows) -> None:
    rows = make_rows(4)
    symbol, micros, side = signals(rows)[0]
    near = {
        ("ETHUSDT", micros, side): 0.1,
        (symbol, micros + 1, side): 0.2,
        (symbol, micros, -side): 0.3,
        signals(rows)[2]: 0.4,
    }

    found = ServedConfidence(near).of_rows(rows)

    assert np.isnan(found).tolist() == [True, True, False, True]
    assert found[2] == 0.4


def test_a_pool_of_symbols_is_joined_by_name_whatever_their_order(make_rows: MakeRows) -> None:
    one, other = make_rows(5, symbol="BTCUSDT"), make_rows(5, seed=1, symbol="ETHUSDT")
    answered = served(other, [0.1, 0.2, 0.3, 0.4, 0.5])

    for pooled in (SignalRows.concatenate([one, other]), SignalRows.concatenate([other, one])):
        found = answered.of_rows(pooled)
        theirs = pooled.symbol_code == pooled.symbols.index("ETHUSDT")
        assert found[theirs].tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
        assert np.isnan(found[~theirs]).all()


@pytest.mark.parametrize("error_weight", [0.0, 1.0])
def test_too_few_outcomes_or_the_option_off_change_nothing(make_rows: MakeRows, error_weight: float) -> None:
    rows = make_rows(10)
    config = LiveConfig(error_weight=error_weight, min_outcomes=11)

    weights = live_weights(rows, served(rows, [0.6] * 10), config)

    assert weights.factor.tolist() == [1.0] * 10
    assert weights.outcomes == 0


def test_answers_that_were_all_right_to_the_last_bit_leave_the_weights_finite(make_rows: MakeRows) -> None:
    rows = make_rows(10)

    weights = live_weights(rows, served(rows, rows.label.tolist()), FEW)

    assert weights.factor.tolist() == [1.0] * 10


@pytest.mark.parametrize("error_weight", [0.1, 1.0])
def test_no_weight_is_below_zero(make_rows: MakeRows, error_weight: float) -> None:
    rows = make_rows(500)
    confidence = np.random.default_rng(1).uniform(0, 1, 500).tolist()

    factor = live_weights(rows, served(rows, confidence), LiveConfig(error_weight=error_weight)).factor

    assert factor.min() >= 0
    assert factor.mean() == pytest.approx(1)


def test_the_digest_is_of_every_entry_and_of_no_order() -> None:
    one: dict[Signal, float] = {("BTCUSDT", 1, 1): 0.5, ("BTCUSDT", 2, -1): 0.6}
    digest = ServedConfidence(one).digest()

    assert ServedConfidence(dict(reversed(one.items()))).digest() == digest
    changed: list[dict[Signal, float]] = [
        {},
        {("BTCUSDT", 1, 1): 0.5},
        one | {("BTCUSDT", 2, -1): 0.6000000000000001},
        {("BTCUSDT", 1, -1): 0.5, ("BTCUSDT", 2, -1): 0.6},
        one | {("BTCUSDT", 3, 1): 0.5},
    ]
    assert len({digest, *(ServedConfidence(of).digest() for of in changed)}) == 6


def test_off_the_trees_are_the_same_bytes_and_nothing_says_that_anything_was_served(
    make_rows: MakeRows,
) -> None:
    rows = make_rows(2000)
    plain = fit_booster(rows, OFF, interval="1h")

    off = fit_booster(rows, OFF, interval="1h", served=served(rows, [0.9] * 2000))

    assert off == plain
    assert list(plain.rows) == ["fit", "early_stop"]


def test_on_the_trees_differ_and_only_answers_in_the_fit_part_count(make_rows: MakeRows) -> None:
    rows = make_rows(2000)
    plain = fit_booster(rows, OFF, interval="1h")
    confidence = np.random.default_rng(2).uniform(0.4, 0.8, 2000)
    times = split_times(rows, OFF.split)
    in_fit, later = rows.close_time < times.early_stop_start, rows.close_time >= times.early_stop_start

    whole = fit_booster(rows, ON, interval="1h", served=served(rows, confidence.tolist()))
    early = fit_booster(
        rows, ON, interval="1h", served=served(rows.take(in_fit), confidence[in_fit].tolist())
    )
    late = fit_booster(rows, ON, interval="1h", served=served(rows.take(later), confidence[later].tolist()))

    assert whole.ubjson != plain.ubjson
    assert whole == early
    assert whole.rows["served"] == whole.rows["fit"]
    assert late.ubjson == plain.ubjson
    assert late.rows["served"] == 0


def test_the_option_counts_in_the_digests_only_where_it_is_on() -> None:
    off = TrainingConfig.from_mapping({"fit": FIT, "live": {"error_weight": 0, "min_outcomes": 7}})
    on = TrainingConfig.from_mapping({"fit": FIT, "live": {"error_weight": 0.5}})

    assert (off.digest(), off.fit_digest()) == (OFF.digest(), OFF.fit_digest())
    assert on.digest() != OFF.digest()
    assert on.fit_digest() not in {OFF.fit_digest(), ON.fit_digest()}


def test_outcomes_weigh_nothing_by_default() -> None:
    assert not TrainingConfig().live.weighs
