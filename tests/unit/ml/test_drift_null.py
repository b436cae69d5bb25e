"""The alarms of features on real rows: how often they are wrong, what they find; what a null is made of."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest

from benchmarks.drift_power import RETRAINED, Learned, alarm_rate, shifted_windows, smallest_shift
from ml.alarms import BUDGET_SHARES, triggered
from ml.config import DriftConfig
from ml.drift import compare, make_reference
from ml.drift_null import FeatureNull, feature_null
from ml.drift_simulation import SimulatedTime, draw_days
from ml.keys import ModelKey
from tests.real_rows import KEYS, trained_rows

pytestmark = pytest.mark.drift

CONFIG = DriftConfig()
OTHER_SEED = 1234
HOURS = np.timedelta64(1, "h")


@cache
def learned(key: ModelKey) -> Learned:
    own = trained_rows(key)
    return Learned.of(own.trained, own.importance, CONFIG, seed=7)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_years_without_drift_keep_to_the_budget(key: ModelKey) -> None:
    share = CONFIG.false_retrainings_per_month * BUDGET_SHARES["features"]

    for block_days in (7.0, 30.0):
        rate = alarm_rate(learned(key), block_days=block_days, months=120, seed=OTHER_SEED)

        assert rate.months > 110
        assert rate.upper <= 1.5 * share, (block_days, rate)
        assert rate.count > 0  # an alarm that never rings keeps to any budget


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_shift_of_one_sigma_in_three_features_is_high_or_critical(key: ModelKey) -> None:
    windows = shifted_windows(learned(key), 1.0, window_rows=200, runs=100, seed=OTHER_SEED)

    assert sum(learned(key).severity(window) in RETRAINED for window in windows) >= 95


def test_the_smallest_shift_found_is_under_one_sigma_and_over_none() -> None:
    key = learned(KEYS[0])

    found = smallest_shift(key, window_rows=200, runs=20, seed=OTHER_SEED)

    assert found is not None and 0.05 < found < 1.0
    still = shifted_windows(key, 0.0, window_rows=200, runs=20, seed=OTHER_SEED)
    assert sum(key.severity(window) in RETRAINED for window in still) <= 10


@pytest.mark.parametrize("rows", [200, 250])
def test_windows_without_drift_are_over_the_level_as_rarely_with_the_least_rows(rows: int) -> None:
    key = learned(KEYS[5])

    windows = shifted_windows(key, 0.0, window_rows=rows, runs=200, seed=OTHER_SEED)

    assert sum(key.severity(window) in RETRAINED for window in windows) <= 0.1 * 200


def test_a_simulated_check_is_the_check_of_its_window() -> None:
    own = trained_rows(KEYS[1])
    features, time = own.trained.features, own.trained.close_time
    reference = own.reference()

    simulated = SimulatedTime(features, time, reference, months=2, window_rows=200, block_days=14.0, seed=3)
    checks = simulated.checks(simulated.ends())

    at = (time - time[0]) / np.timedelta64(1, "D")
    days = 2 * 30.44 + 2 * 200 * at[-1] / len(at) + 14.0
    rows, day = draw_days(at, days=days, block_days=14.0, generator=np.random.default_rng(3))
    assert len(checks.day) == len(rows) - 199  # a check with each row
    for number in (0, 1, len(checks.day) - 1):
        ks, psi = compare(reference, features[rows[number : number + 200]])
        assert checks.ks[number] == pytest.approx(ks, abs=1e-12)
        assert checks.psi[number] == pytest.approx(psi, abs=1e-12)
        assert checks.day[number] == day[number + 199]


def test_following_a_statistic_finds_the_alarms_of_every_rows_check() -> None:
    key = learned(KEYS[1])
    time = SimulatedTime(
        key.rows.features,
        key.rows.close_time,
        key.reference,
        months=36,
        window_rows=250,
        block_days=14.0,
        seed=OTHER_SEED,
    )
    statistic, day = time.follow(key.null.excess.of)

    every, of = time.checks(time.ends()), key.null.excess.of
    levels = [key.null.levels.at(budget) for budget in (0.2, 0.3, 0.5, 0.75, 1.0)]
    found, all_there, coarse = (
        sum(triggered(values > level, days, cooldown_days=7) for level in levels)
        for values, days in (
            (statistic, day),
            (of(every), every.day),
            (of(time.coarse), time.coarse.day),
        )
    )
    assert (np.diff(day) >= 0).all()
    assert len(day) < len(every.day) / 2
    assert found == pytest.approx(all_there, rel=0.02)
    assert coarse < 0.9 * all_there  # it is worth the work


def test_blocks_keep_the_order_and_the_time_between_rows() -> None:
    at = np.sort(np.random.default_rng(0).uniform(0, 400, 3000))
    at -= at[0]

    rows, day = draw_days(at, days=4000, block_days=14, generator=np.random.default_rng(1))

    assert (np.diff(day) >= 0).all()
    inside = np.floor(day[1:] / 14) == np.floor(day[:-1] / 14)
    follows = (rows[1:] - rows[:-1]) % len(at)
    assert (follows[inside] == 1).all()
    assert 2 * inside.mean() > 1.9
    gaps = np.diff(day)[inside & (rows[1:] > 0)]
    assert gaps == pytest.approx(np.diff(at)[rows[:-1][inside & (rows[1:] > 0)]], abs=1e-9)
    # As many rows a day as there were, and each about as often.
    assert len(rows) / 4000 == pytest.approx(len(at) / at[-1], rel=0.05)
    assert (np.bincount(rows, minlength=len(at)) > 0).all()


def test_the_same_seed_gives_the_same_null_and_json_gives_it_back() -> None:
    own = trained_rows(KEYS[2])
    config = DriftConfig(null_months=24)
    made = [
        feature_null(
            own.trained.features, own.trained.close_time, own.importance, own.reference(), config, seed=seed
        )
        for seed in (1, 1, 2)
    ]

    assert made[0] == made[1] != made[2]
    assert FeatureNull.from_json(json.loads(json.dumps(made[0].to_json()))) == made[0]
    assert made[0].names == own.names


def test_p_values_of_no_drift_checks_are_uniform() -> None:
    own, null = trained_rows(KEYS[0]), learned(KEYS[0]).null
    checks = SimulatedTime(
        own.trained.features,
        own.trained.close_time,
        own.reference(),
        months=120,
        window_rows=CONFIG.window_rows,
        block_days=CONFIG.block_days,
        seed=OTHER_SEED,
    ).coarse

    statistic = null.excess.of(checks)
    extreme = null.excess.extremeness(checks.ks, checks.psi).max(axis=1)

    for alpha in (0.05, 0.2, 0.5):
        assert np.mean([null.p_value(value) <= alpha for value in statistic]) == pytest.approx(alpha, rel=0.4)
        assert (null.family_wise(extreme) <= alpha).mean() == pytest.approx(alpha, rel=0.4)


def test_fewer_rows_than_a_window_are_enough_to_draw_from() -> None:
    own = trained_rows(KEYS[0])
    few = own.trained.take(np.arange(160))
    reference = make_reference(few.features, own.names, own.importance)

    null = feature_null(few.features, few.close_time, own.importance, reference, CONFIG, seed=1)

    assert null.window_rows == CONFIG.window_rows
    assert null.levels.at(0.5) > 0


@pytest.mark.parametrize("broken", ["reversed", "at once", "one row"])
def test_rows_without_order_or_time_are_refused(broken: str) -> None:
    features = np.random.default_rng(0).normal(size=(300, 1)).astype(np.float32)
    reference = make_reference(features, ("x",), np.ones(1))
    hours = {"reversed": np.arange(300)[::-1], "at once": np.zeros(300, int), "one row": np.arange(1)}[broken]
    time = np.datetime64("2020-01-01", "us") + hours * HOURS

    with pytest.raises(ValueError, match="sorted by close_time"):
        feature_null(features[: len(time)], time, np.ones(1), reference, CONFIG, seed=1)
