"""The average of fits: one booster that answers as their mean, used by a key only where it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from feeds import samples
from ml.artifact import booster_margin, load_booster, sha256_hex
from ml.calibration import fit_calibration
from ml.candles import resample
from ml.config import EnsembleConfig, TrainingConfig
from ml.dataset import build_rows
from ml.ensemble import EnsembleVerdict, average, choose, fit_ensemble
from ml.errors import TrainingRefused
from ml.evaluation import Estimate
from ml.keys import REGIMES, ModelKey
from ml.noise import clean
from ml.rows import SignalRows
from ml.training import FittedBooster, fit_booster, fit_key

MakeRows = Callable[..., SignalRows]

pytestmark = pytest.mark.training

ALL = ModelKey("BTCUSDT", "1h", "all")
TRENDING = ModelKey("BTCUSDT", "1h", "trending")
OPTIONS = {
    "bootstrap_samples": 200,
    "fit": {"n_estimators": 60, "threads": 1},
    "drift": {"null_months": 15},
}
THREE = TrainingConfig.from_mapping(OPTIONS | {"ensemble": {"members": 3, "span_ratio": 0.6}})
AS_OF = datetime(2021, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def bitcoin() -> SignalRows:
    """Signals of two years of real hourly candles."""
    candles = resample(samples.load("BTCUSDT", now=AS_OF), "1h")
    return build_rows(clean(candles).candles, symbol="BTCUSDT", config=THREE.labels)


def members_of(rows: SignalRows, config: TrainingConfig) -> list[FittedBooster]:
    ratio = config.ensemble.span_ratio
    return [
        fit_booster(rows, config, interval="1h", newest_share=ratio**number)
        for number in range(config.ensemble.members)
    ]


def margins(ubjson: bytes, rows: SignalRows) -> NDArray[np.float64]:
    return booster_margin(load_booster(ubjson), rows.features)


def test_the_averages_margin_is_the_mean_of_the_members_on_real_rows_with_missing_values(
    bitcoin: SignalRows,
) -> None:
    holes = np.random.default_rng(1).random(bitcoin.features.shape) < 0.1
    features = np.where(holes, np.float32(np.nan), bitcoin.features)
    rows = replace(bitcoin, features=features)
    members = members_of(bitcoin, THREE)

    found = margins(average([member.ubjson for member in members]), rows)

    each = np.array([margins(member.ubjson, rows) for member in members])
    assert np.abs(each[0] - each[1]).max() > 0.05  # they do differ
    # 180 sums in float32 of log-odds under 1, whose spacing is 6e-8.
    np.testing.assert_allclose(found, each.mean(axis=0), rtol=0, atol=2e-6)


def test_the_average_survives_being_stored_and_its_leaves_are_the_members_to_the_last_bit(
    make_rows: MakeRows,
) -> None:
    one, other = members_of(make_rows(3000), THREE)[:2]
    whole = average([one.ubjson, other.ubjson])

    again = load_booster(whole)

    assert again.num_boosted_rounds() == one.trees + other.trees
    leaves = [
        [float(line.split("leaf=")[1]) for tree in load_booster(body).get_dump() for line in leafs(tree)]
        for body in (one.ubjson, other.ubjson, whole)
    ]
    halves = np.array(leaves[0] + leaves[1], np.float32) / np.float32(2)
    assert np.array_equal(halves, np.array(leaves[2], np.float32))


def leafs(tree: str) -> list[str]:
    return [line for line in tree.splitlines() if "leaf=" in line]


def test_an_average_of_one_answers_as_that_one_and_is_kept_apart_from_it(make_rows: MakeRows) -> None:
    rows = make_rows(3000)
    fitted = fit_booster(rows, THREE, interval="1h")

    alone = average([fitted.ubjson])

    np.testing.assert_allclose(margins(alone, rows), margins(fitted.ubjson, rows), rtol=0, atol=1e-6)
    assert sha256_hex(alone) != fitted.sha256


def test_boosters_of_different_features_have_no_average(make_rows: MakeRows) -> None:
    rows = make_rows(3000)
    renamed = replace(rows, feature_names=tuple(reversed(rows.feature_names)))
    bodies = [fit_booster(table, THREE, interval="1h").ubjson for table in (rows, renamed)]

    with pytest.raises(ValueError, match="all of the same features"):
        average(bodies)
    with pytest.raises(ValueError, match="expected some"):
        average([])


def test_members_grow_on_ever_shorter_spans_with_one_end_and_are_averaged(make_rows: MakeRows) -> None:
    rows = make_rows(6000)
    members = members_of(rows, THREE)

    whole = fit_ensemble(members[0], rows, THREE)

    n = members[0].rows["fit"]
    assert whole.rows == {
        "fit": n,
        "early_stop": members[0].rows["early_stop"],
        "fit_1": int(np.ceil(0.6 * n)),
        "fit_2": int(np.ceil(0.36 * n)),
    }
    assert whole.ubjson == average([member.ubjson for member in members])
    assert whole.sha256 == sha256_hex(whole.ubjson)
    assert whole.trees == sum(member.trees for member in members)
    assert whole.times == members[0].times
    assert sum(whole.importance) == pytest.approx(1.0)
    expected = np.mean([member.importance for member in members], axis=0)
    np.testing.assert_allclose(whole.importance, expected, rtol=1e-12)


def test_a_shorter_member_knows_nothing_of_what_is_older_than_its_span(make_rows: MakeRows) -> None:
    rows = make_rows(6000)
    whole, half = members_of(rows, THREE)[:2]
    fit = np.flatnonzero(rows.close_time < whole.times.early_stop_start)
    changed = replace(rows, label=rows.label.copy())
    old = fit[: int(0.3 * len(fit))]
    changed.label[old] = 1 - changed.label[old]

    whole_again, half_again = members_of(changed, THREE)[:2]

    assert half_again.sha256 == half.sha256
    assert whole_again.sha256 != whole.sha256


def test_same_rows_give_the_same_bytes_whether_the_single_fit_was_stored_or_fresh(
    make_rows: MakeRows,
) -> None:
    rows = make_rows(4000)
    single = fit_booster(rows, THREE, interval="1h")
    stored = FittedBooster.from_json(single.to_json(), single.ubjson)

    one, other = fit_ensemble(single, rows, THREE), fit_ensemble(stored, rows, THREE)

    assert one == other
    assert fit_ensemble(single, rows, with_members(2)).sha256 != one.sha256


def with_members(members: int, ratio: float = 0.6) -> TrainingConfig:
    return THREE.model_copy(update={"ensemble": EnsembleConfig(members=members, span_ratio=ratio)})


def test_a_member_with_too_few_rows_ends_the_list_and_the_job_goes_on(make_rows: MakeRows) -> None:
    rows = make_rows(3000)
    single = fit_booster(rows, THREE, interval="1h")

    some = fit_ensemble(single, rows, with_members(8))
    none = fit_ensemble(single, rows, with_members(2, 0.1))

    # 1,529 rows x 0.6 and x 0.36 are over the 500 that a fit needs, x 0.216 is not.
    assert [name for name in some.rows if name.startswith("fit")] == ["fit", "fit_1", "fit_2"]
    assert (none.trees, set(none.rows)) == (single.trees, {"fit", "early_stop"})
    chosen, verdict = choose(ALL, rows, single, none, with_members(2, 0.1))
    assert (chosen, verdict.used, verdict.members) == (single, False, 1)


def test_progress_goes_through_all_further_members_and_may_stop_them(make_rows: MakeRows) -> None:
    rows = make_rows(3000)
    config = THREE.model_copy(update={"fit": THREE.fit.model_copy(update={"n_estimators": 3})})
    single, seen = fit_booster(rows, config, interval="1h"), []

    fit_ensemble(single, rows, config, on_round=lambda done, most: seen.append((done, most)))

    assert seen == [(done, 6) for done in range(1, 7)]

    def stop(done: int, most: int) -> None:
        raise TimeoutError(f"{done} of {most}")

    with pytest.raises(TimeoutError, match="1 of 6"):
        fit_ensemble(single, rows, config, on_round=stop)


def turned(rows: SignalRows) -> SignalRows:
    """The planted signal has the other sign in the older four fifths of the fit part."""
    features = rows.features.copy()
    features[: int(0.42 * len(rows)), 0] *= -1
    return replace(rows, features=features)


def both(rows: SignalRows, config: TrainingConfig) -> tuple[FittedBooster, FittedBooster]:
    single = fit_booster(rows, config, interval="1h")
    return single, fit_ensemble(single, rows, config)


def test_after_a_break_the_gate_takes_the_ensemble_and_it_is_better_on_the_test_rows(
    make_rows: MakeRows,
) -> None:
    rows = turned(make_rows(12_000, strength=0.8))
    config = with_members(3, 0.3)
    single, ensemble = both(rows, config)

    chosen, verdict = choose(ALL, rows, single, ensemble, config)

    assert chosen == ensemble
    assert verdict.used
    assert verdict.members == 3
    assert (verdict.brier_difference.low or 0) > 0
    before, after = (fit_key(ALL, rows, fit, config, as_of=AS_OF).evaluation for fit in (single, ensemble))
    assert (after.brier.value or 1) < (before.brier.value or 0)


@pytest.mark.parametrize("seed", range(3))
def test_without_a_break_the_single_fit_stays(make_rows: MakeRows, seed: int) -> None:
    """Shorter spans know less of what never changes, and nothing of what cannot be learned."""
    rows = make_rows(6000, strength=0.0, seed=seed)
    single, ensemble = both(rows, with_members(3, 0.3))

    chosen, verdict = choose(ALL, rows, single, ensemble, with_members(3, 0.3))

    assert chosen == single
    assert not verdict.used
    assert (verdict.brier_difference.low or 0) <= 0


def test_the_gate_reads_no_test_row_and_no_other_regimes_rows(make_rows: MakeRows) -> None:
    rows = turned(make_rows(9000, strength=0.8))
    config = with_members(2, 0.3)
    single, ensemble = both(rows, config)
    changed = replace(rows, label=rows.label.copy(), features=rows.features.copy())
    unread = (rows.close_time >= single.times.test_start) | (rows.regime != REGIMES.index("trending"))
    changed.features[unread] = 9.0
    changed.label[unread] = 1 - changed.label[unread]

    one, other = (choose(TRENDING, table, single, ensemble, config)[1] for table in (rows, changed))

    assert one == other
    assert one.rows < len(rows) * 0.15 / 3


@pytest.mark.parametrize("calibration", ["sigmoid", "isotonic"])
def test_each_half_of_the_calibrate_rows_is_judged_by_the_calibration_of_the_other(
    make_rows: MakeRows, calibration: Literal["sigmoid", "isotonic"]
) -> None:
    rows = turned(make_rows(9000, strength=0.8))
    config = with_members(2, 0.3).model_copy(update={"calibration": calibration})
    single, ensemble = both(rows, config)
    embargo = np.timedelta64(12, "h")
    known = rows.label_end <= single.times.test_start
    table = rows.take(
        (rows.close_time >= single.times.calibrate_start)
        & (rows.close_time < single.times.test_start)
        & (rows.label_end <= single.times.test_start - embargo)
    )
    middle = table.close_time[len(table) // 2]
    newer = table.close_time >= middle
    older = ~newer & (table.label_end <= middle - embargo)
    errors: list[NDArray[np.float64]] = []
    for fitted in (single, ensemble):
        margin = margins(fitted.ubjson, table)
        error = np.zeros(len(table))
        for judged, learned in ((older, newer), (newer, older)):
            by = fit_calibration(
                calibration,
                margin[learned],
                table.label[learned],
                table.uniqueness[learned],
                base_rate=float(rows.label[known].mean()),
            )
            error[judged] = (by.confidence(margin[judged]) - table.label[judged]) ** 2
        errors.append(error[older | newer])

    _, verdict = choose(ALL, rows, single, ensemble, config)

    assert verdict.rows == (older | newer).sum() < len(table)
    expected = errors[0].mean() - errors[1].mean()
    assert verdict.brier_difference.value == pytest.approx(expected, rel=1e-9)


def test_the_gate_cannot_be_passed_on_a_span_of_under_ten_blocks(make_rows: MakeRows) -> None:
    """480 hours are ten blocks of four horizons."""
    rows = turned(make_rows(12_000, strength=0.8))
    config = with_members(3, 0.3)
    single, ensemble = both(rows, config)
    start = single.times.calibrate_start
    few = (rows.close_time < start) | (rows.close_time >= single.times.test_start)
    few |= rows.close_time < start + np.timedelta64(470, "h")

    chosen, verdict = choose(ALL, rows.take(few), single, ensemble, config)

    assert chosen == single
    assert verdict.brier_difference.value is not None
    assert verdict.brier_difference.low is None


def test_a_key_with_too_few_rows_is_refused_as_its_fit_would_be(make_rows: MakeRows) -> None:
    rows = make_rows(2500)
    single, ensemble = both(rows, with_members(2))

    with pytest.raises(TrainingRefused, match="in the calibrate part, at least 150") as by_gate:
        choose(TRENDING, rows, single, ensemble, with_members(2))
    with pytest.raises(TrainingRefused) as by_fit:
        fit_key(TRENDING, rows, single, with_members(2), as_of=AS_OF)
    assert str(by_gate.value) == str(by_fit.value)


def test_a_verdict_is_written_with_its_numbers() -> None:
    verdict = EnsembleVerdict(
        used=False, members=3, rows=900, brier_difference=Estimate(0.001, -0.0005, 0.0025)
    )

    assert verdict.to_json() == {
        "used": False,
        "members": 3,
        "rows": 900,
        "brier_difference": {"value": 0.001, "low": -0.0005, "high": 0.0025},
    }


def test_with_one_member_the_options_are_what_they_were_before_there_were_ensembles() -> None:
    off = TrainingConfig.from_mapping({"ensemble": {"members": 1, "span_ratio": 0.7}})
    on = TrainingConfig.from_mapping({"ensemble": {"members": 2}})

    assert off.digest() == TrainingConfig().digest()
    assert on.digest() != TrainingConfig().digest()
    assert on.fit_digest() == TrainingConfig().fit_digest()
