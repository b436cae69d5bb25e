"""Drift: KS is scipy's, PSI a second implementation's, on real features too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from ml.drift import (
    CONFIDENCE,
    MAX_SAMPLE,
    PSI_FLOOR,
    compare,
    ks_statistic,
    make_reference,
    population_stability_index,
)
from tests.real_rows import KEYS, trained_rows

pytestmark = pytest.mark.drift

Values = NDArray[np.float32]

samples = st.lists(st.integers(-5, 5).map(lambda i: i / 2), min_size=2, max_size=200)


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


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 3000), st.integers(1, 2000), st.floats(0, 2))
def test_ks_statistic_is_scipys_where_stretches_are_passed_over(
    seed: int, rows: int, more: int, shift: float
) -> None:
    draw = np.random.default_rng(seed)
    one, other = np.sort(draw.normal(size=rows)), np.sort(np.round(draw.normal(shift, size=more), 2))

    expected = ks_2samp(one, other, method="asymp").statistic
    assert ks_statistic(one, other) == pytest.approx(expected, abs=1e-12)


def test_every_real_feature_has_scipys_statistic_and_an_independent_index() -> None:
    key = trained_rows(KEYS[0])
    learned, current = key.trained.features, key.test.features[:300]
    reference = make_reference(learned, key.names, key.importance, max_sample=None)

    ks, psi = compare(reference, current)

    for column, feature in enumerate(reference.features):
        was, now = learned[:, column], current[:, column]
        expected = ks_2samp(was, now, method="asymp").statistic
        assert ks[column] == pytest.approx(expected, abs=1e-12)
        assert psi[column] == pytest.approx(_index(was, now, feature.edges), abs=1e-12)
        assert population_stability_index(feature, now) == psi[column]


def _index(was: Values, now: Values, edges: Values) -> float:
    """The index by another way: each value is put into its bin, and the bins are counted."""
    bins = [
        np.maximum(np.bincount(np.digitize(x, edges, right=True), minlength=len(edges) + 1) / len(x), 1e-4)
        for x in (was, now)
    ]
    return float(sum((c - r) * np.log(c / r) for r, c in zip(*bins, strict=True)))


def test_the_confidence_is_kept_like_a_feature() -> None:
    said = np.random.default_rng(0).uniform(0.3, 0.7, 500)

    reference = make_reference(np.zeros((10, 1), np.float32), ("x",), np.ones(1), confidence=said)

    assert reference.confidence is not None
    assert (reference.confidence.name, reference.confidence.importance) == (CONFIDENCE, 1.0)
    assert reference.confidence.sample.tolist() == np.sort(said.astype(np.float32)).tolist()
    assert (len(reference.confidence.edges), reference.rows) == (9, 10)
    assert reference.confidence.shares == pytest.approx([0.1] * 10)


def test_a_feature_that_goes_missing_has_moved_all_the_way() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 1)).astype(np.float32)
    reference = make_reference(values, ("x",), np.ones(1))

    ks, psi = compare(reference, np.full((300, 1), np.nan, np.float32))

    empty = 9 * (PSI_FLOOR - 0.1) * np.log(PSI_FLOOR / 0.1)
    assert ks.tolist() == [1.0]
    assert psi == pytest.approx([0.9 * np.log(10) + empty], abs=1e-12)


def test_nothing_is_compared_with_no_rows() -> None:
    reference = make_reference(np.zeros((10, 1), np.float32), ("x",), np.ones(1))

    with pytest.raises(ValueError, match="one is empty"):
        compare(reference, np.empty((0, 1), np.float32))
