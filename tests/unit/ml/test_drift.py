"""Drift: the statistic is scipy's, the index is worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from ml.drift import MAX_SAMPLE, drift_score, ks_statistic, make_reference, population_stability_index

pytestmark = pytest.mark.drift

samples = st.lists(st.integers(-5, 5).map(lambda i: i / 2), min_size=2, max_size=60)


@settings(max_examples=200, deadline=None)
@given(samples, samples)
def test_ks_statistic_is_scipys_ties_included(one: list[float], other: list[float]) -> None:
    expected = ks_2samp(one, other, method="asymp").statistic

    assert ks_statistic(np.sort(one), np.sort(other)) == pytest.approx(expected, abs=1e-12)


def test_ks_statistic_counts_missing_values_as_the_largest() -> None:
    # At 2.0 three quarters of the one lie below, all of the other do.
    assert ks_statistic(np.array([1.0, 2.0, 2.0, np.nan]), np.array([1.0, 2.0])) == 0.25
    assert ks_statistic(np.array([1.0, 2.0]), np.array([np.nan, np.nan])) == 1.0


def test_ks_statistic_refuses_an_empty_sample() -> None:
    with pytest.raises(ValueError, match="one is empty"):
        ks_statistic(np.array([]), np.array([1.0]))


def test_population_stability_index_is_the_sum_over_the_references_bins() -> None:
    reference = make_reference(np.arange(100, dtype=np.float32)[:, None], ("x",), np.array([1.0])).features[0]
    # Ten bins of 0.1 each; the current sample lies in the first two, half and half.
    current = np.array([0.0, 15.0], dtype=np.float32)

    found = population_stability_index(reference, current)

    two = 2 * (0.5 - 0.1) * np.log(0.5 / 0.1)
    eight_empty = 8 * (1e-4 - 0.1) * np.log(1e-4 / 0.1)
    assert len(reference.edges) == 9
    assert found == pytest.approx(two + eight_empty, rel=1e-12)
    assert population_stability_index(reference, np.arange(100, dtype=np.float32)) == 0.0


def test_a_feature_of_few_values_gets_as_many_bins_and_none_is_empty() -> None:
    flags = np.array([0] * 70 + [1] * 30, dtype=np.float32)[:, None]

    reference = make_reference(flags, ("flag",), np.array([1.0])).features[0]

    assert reference.edges.tolist() == [0.0]
    assert reference.shares.tolist() == [0.7, 0.3]


def test_reference_keeps_a_sample_evenly_spaced_in_rank() -> None:
    values = np.random.default_rng(0).permutation(10_001).astype(np.float32)

    reference = make_reference(values[:, None], ("x",), np.array([1.0]))

    sample = reference.features[0].sample
    assert reference.rows == 10_001
    assert sample.shape == (MAX_SAMPLE,)
    assert (sample[0], sample[-1]) == (0.0, 10_000.0)
    assert ks_statistic(sample, np.sort(values)) < 1 / 2000


def test_drift_score_weighs_features_by_importance() -> None:
    draw = np.random.default_rng(0)
    was = draw.normal(size=(3000, 3)).astype(np.float32)
    now = was[:1000] + np.array([0, 1, 5], dtype=np.float32)
    reference = make_reference(was, ("same", "moved", "unused"), np.array([0.75, 0.25, 0.0]))

    score = drift_score(reference, now)

    expected = [ks_2samp(was[:, i], now[:, i]).statistic for i in range(2)]
    assert score == pytest.approx(0.75 * expected[0] + 0.25 * expected[1], abs=1e-12)
    assert drift_score(reference, now[:0]) is None
