"""Real candles, and files of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from feeds import samples
from ml.candles import OHLCV, Candles
from tests.unit.feeds.candle_files import NOW


@pytest.fixture(scope="session")
def bitcoin() -> Candles:
    """The 35,019 half-hours of BTCUSDT."""
    return samples.load("BTCUSDT", now=NOW)


@pytest.fixture(scope="session")
def day(bitcoin: Candles) -> Candles:
    """The first 48 of them: a day without gaps."""
    return bitcoin.slice(0, 48)


@pytest.fixture(scope="session")
def day_cells(day: Candles) -> list[list[str]]:
    """``day`` as the cells of a CSV file, header first; line 1 is the header, line n + 2 is candle n."""
    rows = [
        [f"{time}Z", *(repr(float(getattr(day, name)[index])) for name in OHLCV)]
        for index, time in enumerate(day.open_time.astype("datetime64[s]"))
    ]
    return [["open_time", *OHLCV], *rows]


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write a CSV file of this content."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "candles.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
