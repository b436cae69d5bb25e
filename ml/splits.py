"""Splits in time, purged by label end and embargoed.

A row's outcome is known at its ``label_end``, not at its signal. A row whose outcome reaches into the next
part would carry that part's prices into the earlier one, so it is dropped (*purge*), and so is one whose
outcome ends within the *embargo* before the next part, because features of neighbouring rows overlap
(López de Prado, *Advances in Financial Machine Learning*, 2018, ch. 7).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ml.config import SplitConfig
from ml.errors import TrainingRefused
from ml.rows import SignalRows

__all__ = ["Split", "SplitTimes", "split", "split_times", "walk_forward"]


@dataclass(frozen=True, slots=True)
class SplitTimes:
    """Where the parts begin: the same for every key that shares the fit. ``datetime64[us]``, UTC."""

    early_stop_start: np.datetime64
    calibrate_start: np.datetime64
    test_start: np.datetime64

    def to_json(self) -> dict[str, str]:
        """ISO-8601 texts."""
        return {name: str(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: dict[str, str]) -> Self:
        """The inverse of ``to_json``."""
        return cls(**{name: np.datetime64(value[name], "us") for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Split:
    """Row indices of each part, ascending. No row is in two parts; purged rows are in none.

    ``fit`` trees grow on, ``early_stop`` says how many, ``calibrate`` gives calibration and threshold,
    ``test`` judges.
    """

    fit: NDArray[np.intp]
    early_stop: NDArray[np.intp]
    calibrate: NDArray[np.intp]
    test: NDArray[np.intp]


def split_times(rows: SignalRows, config: SplitConfig) -> SplitTimes:
    """Boundaries at quantiles of the labelled rows' close times.

    Raises:
        TrainingRefused: ``too_few_rows``, no row has a known outcome.
    """
    times = rows.close_time[rows.labelled]
    if len(times) == 0:
        raise TrainingRefused(
            "too_few_rows",
            f"0 signals with a known outcome; at least {config.min_fit_rows} are needed to fit",
        )
    fit_share = 1 - config.calibrate_share - config.test_share
    shares = (fit_share * (1 - config.early_stop_share), fit_share, 1 - config.test_share)
    return SplitTimes(*(times[int(share * len(times))] for share in shares))


def split(rows: SignalRows, times: SplitTimes, *, embargo: timedelta) -> Split:
    """Assign rows to parts by close time; a part ends where the next one begins.

    A row belongs to the part with ``start <= close_time < next start`` and is kept if
    ``label_end <= next start - embargo``. The test part has no end: its rows need only a known outcome.
    """
    starts = (times.early_stop_start, times.calibrate_start, times.test_start)
    parts = [
        _between(rows, start, end, embargo)
        for start, end in zip((None, *starts), (*starts, None), strict=True)
    ]
    return Split(*parts)


def walk_forward(
    rows: SignalRows, *, folds: int, embargo: timedelta, first_share: float = 0.5
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield ``folds`` pairs (past, next): the past grows, each next part follows it, purged and embargoed.

    Args:
        rows: signals, sorted by close time.
        folds: how many pairs.
        embargo: kept free between the past's last known outcome and the next part's first signal.
        first_share: share of the labelled rows that the first past holds.

    Raises:
        ValueError: ``folds`` is below 1, or ``first_share`` is not between 0 and 1.
    """
    if folds < 1 or not 0 < first_share < 1:
        raise ValueError(
            f"folds={folds}, first_share={first_share}; expected folds >= 1, 0 < first_share < 1"
        )
    times = rows.close_time[rows.labelled]
    edges = [times[int((first_share + (1 - first_share) * i / folds) * len(times))] for i in range(folds)]
    for start, end in zip(edges, (*edges[1:], None), strict=True):
        yield _between(rows, None, start, embargo), _between(rows, start, end, timedelta(0))


def _between(
    rows: SignalRows, start: np.datetime64 | None, end: np.datetime64 | None, embargo: timedelta
) -> NDArray[np.intp]:
    keep = rows.labelled.copy()
    if start is not None:
        keep &= rows.close_time >= start
    if end is not None:
        # A close before `end` follows from the label's end before it.
        keep &= rows.label_end <= end - np.timedelta64(embargo)
        keep &= rows.close_time < end
    return np.flatnonzero(keep)
