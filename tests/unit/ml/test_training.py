"""Training: what can be learned is learned, what cannot is refused or fails the gates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from feeds import samples
from ml.artifact import Model, sha256_hex, to_bytes
from ml.candles import resample
from ml.comparison import compare
from ml.config import TrainingConfig
from ml.dataset import build_rows
from ml.errors import TrainingRefused
from ml.fallback import unfit_regimes
from ml.keys import REGIMES, ModelKey
from ml.noise import clean
from ml.promotion import Decision, decide
from ml.rows import SignalRows
from ml.training import Challenger, FittedBooster, fit_booster, fit_key, own_rows, pool_rows

MakeRows = Callable[..., SignalRows]

pytestmark = pytest.mark.training

CONFIG = TrainingConfig.from_mapping(
    {
        "bootstrap_samples": 300,
        "fit": {"n_estimators": 150, "threads": 1},
        "drift": {"null_months": 15},
    }
)
AS_OF = datetime(2021, 1, 1, tzinfo=UTC)
ALL = ModelKey("BTCUSDT", "1h", "all")
TRENDING = ModelKey("BTCUSDT", "1h", "trending")


def trained(rows: SignalRows, key: ModelKey = ALL) -> Challenger:
    return fit_key(key, rows, fit_booster(rows, CONFIG, interval="1h"), CONFIG, as_of=AS_OF)


def decided(challenger: Challenger) -> Decision:
    """Where the key has no champion, by what the rows say."""
    compared = compare(challenger, None, CONFIG)
    return decide(
        challenger.evaluation, compared, challenger.drift.test_score, CONFIG.gates, trial=None, probes=()
    )


def learned(challenger: Challenger) -> Model:
    """The model but for the patterns' live hit rates, which are the symbol's and of every known outcome, and
    for the regimes that it turned out unfit for on its test rows."""
    return replace(challenger.model, pattern_hit_rates={}, unfit_regimes=())


def test_a_planted_signal_passes_every_gate(make_rows: MakeRows) -> None:
    challenger = trained(make_rows(6000, strength=0.8))

    decision = decided(challenger)

    assert decision.promote, decision.reasons
    # The one feature that matters carries the model, and was compared most.
    importance = {feature.name: feature.importance for feature in challenger.drift.reference.features}
    assert importance["feature_0"] > 0.5
    assert sum(importance.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_fail_the_skill_gates(make_rows: MakeRows, seed: int) -> None:
    rows = make_rows(6000, strength=0.8, seed=seed)
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = replace(rows, label=rows.label[order], gross_return_atr=rows.gross_return_atr[order])

    challenger = trained(shuffled)

    gates = {gate.name: gate.passed for gate in decided(challenger).gates}
    assert not (gates["min_auc_lower"] and gates["min_brier_skill_lower"])


def test_a_key_is_calibrated_and_judged_on_its_own_rows_only(make_rows: MakeRows) -> None:
    rows = make_rows(6000)
    fitted = fit_booster(rows, CONFIG, interval="1h")
    changed = replace(rows, label=rows.label.copy())
    elsewhere = rows.regime != REGIMES.index("trending")
    changed.label[elsewhere] = 1 - changed.label[elsewhere]

    one, other = (fit_key(TRENDING, table, fitted, CONFIG, as_of=AS_OF) for table in (rows, changed))

    assert learned(one) == learned(other)
    assert one.evaluation == other.evaluation
    own = own_rows(TRENDING, rows)
    assert one.evaluation.rows == (own.close_time >= fitted.times.test_start).sum()
    known = own.label_end <= fitted.times.test_start
    assert one.evaluation.known_base_rate == own.label[known].mean()


def test_what_is_learned_does_not_depend_on_the_test_rows(make_rows: MakeRows) -> None:
    rows = make_rows(6000)
    changed = replace(rows, label=rows.label.copy(), features=rows.features.copy())
    test = rows.close_time >= fit_booster(rows, CONFIG, interval="1h").times.test_start
    changed.label[test] = 0.0
    changed.label[np.flatnonzero(test)[0]] = 1.0
    changed.features[test] = 9.0

    one, other = trained(rows), trained(changed)

    assert learned(one) == learned(other)
    assert one.evaluation != other.evaluation


def test_the_fallback_names_the_regimes_in_which_the_patterns_know_better(make_rows: MakeRows) -> None:
    """In volatile test rows the model's odds are turned round, and the patterns' are not."""
    rows = make_rows(6000, strength=1.5)
    fitted = fit_booster(rows, CONFIG, interval="1h")
    volatile = (rows.regime == REGIMES.index("volatile")) & (rows.close_time >= fitted.times.test_start)
    changed = replace(rows, label=np.where(volatile, 1 - rows.label, rows.label))

    def unfit(table: SignalRows, key: ModelKey = ALL, config: TrainingConfig = CONFIG) -> tuple[str, ...]:
        return fit_key(key, table, fitted, config, as_of=AS_OF).model.unfit_regimes

    assert unfit(rows) == ()
    assert unfit(changed) == ("volatile",)
    # A regime's own model answers for itself alone; its gates are there to refuse it.
    assert unfit(changed, ModelKey("BTCUSDT", "1h", "volatile")) == ()
    # Where the patterns are worse still, the model is the better of two.
    certain = replace(changed, pattern_confidence=np.where(volatile, 1 - changed.label, 0.57))
    assert unfit(certain) == ()
    # Too few rows in the slice show nothing.
    split = CONFIG.split.model_copy(update={"min_test_rows": int(volatile.sum()) + 1})
    assert unfit(changed, config=CONFIG.model_copy(update={"split": split})) == ()


def test_a_regime_seen_for_a_few_days_only_is_not_called_unfit(make_rows: MakeRows) -> None:
    rows = make_rows(2000)
    confidence = np.where(rows.label == 1, 0.1, 0.9)

    def unfit(table: SignalRows, said: NDArray[np.float64]) -> tuple[str, ...]:
        block = timedelta(hours=48)
        return unfit_regimes(table, said, least_rows=30, block=block, samples=100, seed=7)

    assert unfit(rows, confidence) == REGIMES
    few_days = rows.close_time < rows.close_time[0] + np.timedelta64(10 * 48 - 1, "h")
    assert unfit(rows.take(few_days), confidence[few_days]) == ()


def test_a_stored_fit_gives_the_model_that_the_fresh_one_gives(make_rows: MakeRows) -> None:
    rows = make_rows(3000)
    fitted = fit_booster(rows, CONFIG, interval="1h")

    stored = FittedBooster.from_json(json.loads(json.dumps(fitted.to_json())), fitted.ubjson)

    assert stored == fitted
    one, other = (fit_key(ALL, rows, fit, CONFIG, as_of=AS_OF) for fit in (fitted, stored))
    assert to_bytes(one.model) == to_bytes(other.model)


IN_ANOTHER_PROCESS = """
import sys
from datetime import UTC, datetime
from feeds import samples
from ml.artifact import Model, sha256_hex, to_bytes
from ml.candles import resample
from ml.config import TrainingConfig
from ml.keys import ModelKey
from ml.training import fit_booster, fit_key
columns = dict(__import__("numpy").load(sys.argv[1]))
from ml.rows import SignalRows
rows = SignalRows(symbols=("BTCUSDT",), feature_names=tuple(f"feature_{i}" for i in range(6)), **columns)
config = TrainingConfig.model_validate_json(sys.argv[2])
fitted = fit_booster(rows, config, interval="1h")
made = fit_key(ModelKey("BTCUSDT", "1h", "all"), rows, fitted, config, as_of=datetime(2021, 1, 1, tzinfo=UTC))
print(fitted.sha256, sha256_hex(to_bytes(made.model)))
"""


def test_same_rows_and_seed_give_the_same_bytes_in_two_processes(make_rows: MakeRows, tmp_path: Path) -> None:
    rows = make_rows(3000)
    columns = {
        name: getattr(rows, name)
        for name in SignalRows.__slots__
        if isinstance(getattr(rows, name), np.ndarray)
    }
    np.savez(tmp_path / "rows.npz", **columns)
    fitted = fit_booster(rows, CONFIG, interval="1h")
    expected = (
        f"{fitted.sha256} {sha256_hex(to_bytes(fit_key(ALL, rows, fitted, CONFIG, as_of=AS_OF).model))}"
    )

    found = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, tmp_path / "rows.npz", CONFIG.model_dump_json()],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        # The kernels of another processor: the same bytes must come out on a mixed set of machines.
        env=os.environ | {"OPENBLAS_CORETYPE": "Nehalem"},
    ).stdout.strip()

    assert found == expected
    other_seed = CONFIG.model_copy(update={"fit": CONFIG.fit.model_copy(update={"seed": 8})})
    assert fit_booster(rows, other_seed, interval="1h").sha256 != fitted.sha256


def test_progress_is_told_tree_by_tree_and_may_stop_the_fit(make_rows: MakeRows) -> None:
    rows = make_rows(3000)
    config = TrainingConfig.from_mapping({"fit": {"n_estimators": 5}})
    seen: list[tuple[int, int]] = []

    fitted = fit_booster(rows, config, interval="1h", on_round=lambda done, most: seen.append((done, most)))

    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert fitted.trees <= 5

    def stop(done: int, most: int) -> None:
        raise TimeoutError(f"{done} of {most}")

    with pytest.raises(TimeoutError, match="1 of 5"):
        fit_booster(rows, config, interval="1h", on_round=stop)


def test_pools_are_the_keys_the_symbols_and_everyones_rows(make_rows: MakeRows) -> None:
    bitcoin, ether = make_rows(300), make_rows(200, seed=1, symbol="ETHUSDT")

    found = {pool: pool_rows(TRENDING, [bitcoin, ether], pool) for pool in ("key", "symbol", "all")}

    assert len(found["all"]) == 500
    assert len(found["symbol"]) == 300
    assert len(found["key"]) == (bitcoin.regime == 0).sum()
    assert set(found["key"].regime) == {0}
    assert np.array_equal(own_rows(ModelKey("ETHUSDT", "1h", "all"), found["all"]).label, ether.label)
    assert len(own_rows(ModelKey("SOLUSDT", "1h", "all"), found["all"])) == 0


def refusal(rows: SignalRows, key: ModelKey = ALL) -> tuple[str, str]:
    with pytest.raises(TrainingRefused) as refused:
        trained(rows, key)
    return refused.value.reason, refused.value.detail


def test_too_few_rows_to_fit_are_refused_with_count_and_limit(make_rows: MakeRows) -> None:
    reason, detail = refusal(make_rows(800))

    assert reason == "too_few_rows"
    assert "signals of pool 'all' in the fit part, at least 500 are needed" in detail


def test_a_key_with_too_few_rows_of_its_own_names_who_serves_it(make_rows: MakeRows) -> None:
    reason, detail = refusal(make_rows(2500), key=TRENDING)

    assert reason == "too_few_rows"
    assert "signals of BTCUSDT 1h trending in the calibrate part, at least 150" in detail
    assert detail.endswith("served by BTCUSDT all")


def test_an_all_key_with_too_few_rows_promises_no_other(make_rows: MakeRows) -> None:
    rows = make_rows(3000)
    rows.symbol_code[:2900] = 1
    two = replace(rows, symbols=("BTCUSDT", "ETHUSDT"))

    reason, detail = refusal(two)

    assert reason == "too_few_rows"
    assert "served by" not in detail


def test_one_outcome_only_is_refused_in_the_fit_and_in_a_keys_own_part(make_rows: MakeRows) -> None:
    rows = make_rows(3000)
    rows.label[:] = 1.0
    assert refusal(rows)[0] == "one_class"

    mixed = make_rows(6000)
    mixed.label[mixed.regime == REGIMES.index("trending")] = 0.0
    reason, detail = refusal(mixed, key=TRENDING)
    assert reason == "one_class"
    assert "calibrate part of BTCUSDT 1h trending missed" in detail


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_feature_that_is_mostly_missing_is_refused_by_name(make_rows: MakeRows, share: float) -> None:
    rows = make_rows(3000)
    rows.features[np.arange(3000) % 10 < share * 10, 3] = np.nan

    reason, detail = refusal(rows)

    assert reason == "missing_features"
    assert detail.startswith(f"feature feature_3 is missing in {share * 100:.0f}.")
    assert "at most 20.0% is allowed" in detail


def test_a_feature_that_never_changes_is_refused_by_name_but_the_regimes_own_may(make_rows: MakeRows) -> None:
    rows = make_rows(3000)
    rows.features[:, 4] = 1.5
    rows.features[::10, 4] = np.nan

    reason, detail = refusal(rows)

    assert reason == "constant_features"
    assert "feature_4" in detail
    names = (*rows.feature_names[:4], "regime_trending", rows.feature_names[5])
    assert trained(replace(rows, feature_names=names)).evaluation.rows > 0


@pytest.fixture(scope="module")
def bitcoin() -> SignalRows:
    """Signals of two years of real hourly candles."""
    candles = resample(samples.load("BTCUSDT", now=AS_OF), "1h")
    return build_rows(clean(candles).candles, symbol="BTCUSDT", config=CONFIG.labels)


def test_real_candles_teach_something_and_shuffled_outcomes_of_them_nothing(bitcoin: SignalRows) -> None:
    order = np.random.default_rng(5).permutation(np.flatnonzero(bitcoin.labelled))
    label, gross = bitcoin.label.copy(), bitcoin.gross_return_atr.copy()
    label[np.sort(order)], gross[np.sort(order)] = label[order], gross[order]

    real = trained(bitcoin).evaluation
    shuffled = trained(replace(bitcoin, label=label, gross_return_atr=gross)).evaluation

    assert real.rows > 4000
    assert real.auc.low is not None
    assert real.auc.low > 0.52
    assert real.brier_skill.low is not None
    assert real.brier_skill.low > 0
    skill = (shuffled.auc.low or 0) > 0.5 and (shuffled.brier_skill.low or -1) > 0
    assert not skill
    # After fees the average signal loses: its hit rate is below what breaks even.
    assert real.net_return_atr.high is not None
    assert real.net_return_atr.high < 0
    assert real.base_rate < (real.break_even_hit_rate.value or 0)
