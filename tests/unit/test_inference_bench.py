"""The benchmark of the answers: its percentiles, and the time to which it moves real candles."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from benchmarks.champions import ending_now
from benchmarks.inference import percentile
from ml.candles import to_datetime
from tests.real_candles import real_candles

pytestmark = pytest.mark.inference


@pytest.mark.parametrize(("share", "value"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)])
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], share) == value


def test_moved_candles_end_at_the_last_full_hour_with_their_gaps() -> None:
    candles = real_candles()
    now = datetime(2026, 11, 23, 14, 59, 59, tzinfo=UTC)
    moved = ending_now(candles, now)
    assert to_datetime(moved.close_time[-1]) == datetime(2026, 11, 23, 14, tzinfo=UTC)
    np.testing.assert_array_equal(np.diff(moved.open_time), np.diff(candles.open_time))
    np.testing.assert_array_equal(moved.close, candles.close)
    assert to_datetime(ending_now(candles, now + timedelta(seconds=1)).close_time[-1]) == now + timedelta(
        seconds=1
    )
