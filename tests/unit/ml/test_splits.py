"""Splits: no outcome of an earlier part reaches into a later one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.config import SplitConfig
from ml.errors import TrainingRefused
from ml.rows import SignalRows
from ml.splits import SplitTimes, split, split_times, walk_forward

MakeRows = Callable[..., SignalRows]

pytestmark = pytest.mark.training

HOUR = timedelta(hours=1)


def test_boundaries_are_the_quantiles_of_labelled_close_times(make_rows: MakeRows) -> None:
    rows = make_rows(1000)
    config = SplitConfig(calibrate_share=0.15, test_share=0.25, early_stop_share=0.1)

    times = split_times(rows, config)

    # fit 0.60, of which the newest tenth stops the fit: rows 540, 600 and 750 begin the parts
    assert times == SplitTimes(rows.close_time[540], rows.close_time[600], rows.close_time[750])
    assert SplitTimes.from_json(times.to_json()) == times


def test_rows_without_an_outcome_move_no_boundary_and_are_in_no_part(make_rows: MakeRows) -> None:
    rows = make_rows(1000)
    rows.label[::2] = np.nan
    rows.label_end[::2] = np.datetime64("NaT")
    known = rows.take(rows.labelled)

    times = split_times(rows, SplitConfig())
    parts = split(rows, times, embargo=12 * HOUR)

    assert times == split_times(known, SplitConfig())
    assert all(
        rows.labelled[part].all() for part in (parts.fit, parts.early_stop, parts.calibrate, parts.test)
    )
    assert len(parts.test) == 125


def test_no_row_with_an_outcome_is_refused_with_the_number_needed(make_rows: MakeRows) -> None:
    rows = make_rows(10).take(np.arange(0))

    with pytest.raises(TrainingRefused, match=r"too_few_rows: 0 signals .* at least 500"):
        split_times(rows, SplitConfig())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(20, 400),
    horizon=st.integers(1, 200),
    embargo_hours=st.integers(0, 48),
)
def test_every_outcome_is_known_an_embargo_before_the_next_part(
    make_rows: MakeRows, seed: int, n: int, horizon: int, embargo_hours: int
) -> None:
    rows = make_rows(n, seed=seed)
    draw = np.random.default_rng(seed)
    rows.label_end[:] = rows.close_time + draw.integers(1, horizon + 1, n).astype("timedelta64[h]")
    times = split_times(rows, SplitConfig())

    parts = split(rows, times, embargo=embargo_hours * HOUR)

    embargo = np.timedelta64(embargo_hours, "h")
    starts = [times.early_stop_start, times.calibrate_start, times.test_start]
    earlier = [parts.fit, parts.early_stop, parts.calibrate]
    for part, begin, end in zip(earlier, [rows.close_time[0], *starts[:-1]], starts, strict=True):
        inside = (rows.close_time >= begin) & (rows.close_time < end)
        kept = np.isin(np.arange(n), part)
        assert not kept[~inside].any()
        # Exactly those are dropped whose outcome comes too late, no more.
        assert np.array_equal(kept[inside], (rows.label_end <= end - embargo)[inside])
    assert np.array_equal(parts.test, np.flatnonzero(rows.close_time >= times.test_start))


def test_walk_forward_grows_the_past_and_leaves_no_next_row_out(make_rows: MakeRows) -> None:
    rows = make_rows(1000)

    folds = list(walk_forward(rows, folds=4, embargo=12 * HOUR, first_share=0.5))

    assert len(folds) == 4
    for past, following in folds:
        start = rows.close_time[following[0]]
        assert (rows.label_end[past] <= start - np.timedelta64(12, "h")).all()
    lengths = [len(past) for past, _ in folds]
    assert lengths == sorted(lengths)
    # Next parts do not overlap, and only rows whose outcome crosses a boundary are in none.
    nexts = np.concatenate([following for _, following in folds])
    assert len(np.unique(nexts)) == len(nexts)
    assert 480 <= len(nexts) <= 500


@pytest.mark.parametrize(("folds", "first_share"), [(0, 0.5), (3, 0.0), (3, 1.0)])
def test_walk_forward_refuses_what_cannot_be_split(
    make_rows: MakeRows, folds: int, first_share: float
) -> None:
    with pytest.raises(ValueError, match="expected folds >= 1"):
        next(walk_forward(make_rows(50), folds=folds, embargo=HOUR, first_share=first_share))
