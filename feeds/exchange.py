"""Candles of an exchange, through ccxt: closed ones only, in pages, with failed requests tried again."""

from __future__ import annotations

import importlib
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import util
from types import ModuleType
from typing import Any, Final, TypeVar

import numpy as np
import structlog

from ml.candles import OHLCV, Candles
from ml.errors import CandlesRejected, ConfigRejected, ExchangeUnavailable, KeyRejected
from ml.keys import INTERVALS, check_symbol, interval_duration

__all__ = ["PAGE_CANDLES", "Backoff", "Exchange"]

PAGE_CANDLES: Final = 1000
"""What Binance gives at most for one request."""

_REASON_CHARACTERS: Final = 300
_Answer = TypeVar("_Answer")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between the attempts at one request: exponential, jitter over its upper half.

    With the defaults 0.5 to 1 s, then twice that each time: 6 attempts, at most 31 s of waiting. An
    exchange that says how long to wait (Retry-After) is obeyed up to ``cap_seconds``; one that wants more
    gets no further request, and the next run may have better luck.
    """

    attempts: int = 6
    first_seconds: float = 1.0
    cap_seconds: float = 60.0

    def seconds(self, failures: int, retry_after: float | None) -> float | None:
        """The wait after ``failures`` failed attempts (1, 2, …); None for no further attempt."""
        if failures >= self.attempts or (retry_after or 0.0) > self.cap_seconds:
            return None
        if retry_after is not None:
            return retry_after
        return min(self.cap_seconds, self.first_seconds * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)


_BACKOFF: Final = Backoff()


class Exchange:
    """One exchange's public market data. Close it after use.

    Args:
        name: as ccxt names it, such as ``binance``.
        url: replaces scheme, host and port of the exchange's own addresses.
        timeout_seconds: for one attempt.
        backoff: between attempts.
        sleep: does the waiting.

    Raises:
        ConfigRejected: ccxt knows no such exchange.
    """

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        timeout_seconds: float = 10.0,
        backoff: Backoff = _BACKOFF,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self._backoff = backoff
        self._sleep = sleep
        spot_only = {"defaultType": "spot", "fetchMarkets": {"types": ["spot"]}}
        self._client = _exchange_class(name)(
            {
                "enableRateLimit": True,
                "timeout": round(timeout_seconds * 1000),
                "enableLastResponseHeaders": True,
                "enableLastJsonResponse": True,
                "enableLastHttpResponse": True,
                "options": spot_only,
            }
        )
        if url is not None:
            self._client.urls["api"] = _with_address(self._client.urls["api"], url.rstrip("/"))

    def close(self) -> None:
        """Close its connections."""
        self._client.session.close()

    def now(self) -> datetime:
        """The exchange's own clock, UTC. Raises ExchangeUnavailable."""
        return datetime.fromtimestamp(self._ask(self._client.fetch_time) / 1000, UTC)

    def after(self, symbol: str, interval: str, start: datetime, *, closed_by: datetime) -> Candles:
        """The first candles that opened at ``start`` or later and closed by ``closed_by``, up to a page.

        Raises:
            KeyRejected: the exchange has no such spot market, or no candles of that interval.
            CandlesRejected: what it gave breaks the contract of ``Candles``.
            ExchangeUnavailable: it failed at every attempt.
        """
        return self._page(symbol, interval, closed_by, since=_milliseconds(start))

    def before(self, symbol: str, interval: str, end: datetime, *, closed_by: datetime) -> Candles:
        """The last candles that opened before ``end``, up to a page. Raises as ``after`` does."""
        page = self._page(symbol, interval, closed_by, params={"until": _milliseconds(end) - 1})
        return page.until(end)

    def _page(self, symbol: str, interval: str, closed_by: datetime, **request: Any) -> Candles:
        market = self._market(check_symbol(symbol))
        interval_duration(interval)
        offered = [name for name in INTERVALS if name in self._client.timeframes]
        if interval not in offered:
            raise KeyRejected("interval", interval, f"of {self.name} one of " + ", ".join(offered))
        rows = self._ask(lambda: self._rows(market, interval, **request))
        candles = _candles(interval, rows).until(closed_by)
        fault = candles.first_fault(now=closed_by)
        if fault is not None:
            where = f"{self.name} {symbol} {interval}, candle {candles.open_time[fault.row]}Z, {fault.field}"
            raise CandlesRejected(where, fault.value, fault.limit)
        return candles

    def _rows(self, market: str, interval: str, **request: Any) -> list[list[float | None]]:
        rows: list[list[float | None]] = self._client.fetch_ohlcv(
            market, interval, limit=PAGE_CANDLES, **request
        )
        # ccxt reads an answer that is no JSON, or holds no candles at all, as an empty list of candles: a
        # proxy's page would pass for "nothing new".
        if not rows and self._client.last_json_response != []:
            raise ValueError(f"no list of candles: {self._client.last_http_response!r}")
        return rows

    def _market(self, symbol: str) -> str:
        """ccxt's name of the spot market: ``BTC/USDT`` for BTCUSDT."""
        markets = self._ask(self._client.load_markets)
        for market in markets.values():
            if market["spot"] and f"{market['base']}{market['quote']}" == symbol:
                return str(market["symbol"])
        raise KeyRejected("symbol", symbol, f"a spot market of {self.name}")

    def _ask(self, request: Callable[[], _Answer]) -> _Answer:
        errors = importlib.import_module("ccxt.base.errors")
        failures = 0
        while True:
            try:
                return request()
            except errors.OperationFailed as error:  # network, time-out, rate limit, server trouble
                failure: Exception = error
            except errors.BaseError as error:
                raise ExchangeUnavailable(f"{self.name} refused: {error}") from error
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                failure = error  # an answer of another shape: ccxt trips over it, or we
            failures += 1
            limited = isinstance(failure, errors.RateLimitExceeded | errors.DDoSProtection)
            wait = self._backoff.seconds(failures, self._retry_after() if limited else None)
            if wait is None:
                reason = f"{type(failure).__name__}: {failure}"[:_REASON_CHARACTERS]
                raise ExchangeUnavailable(f"{self.name} failed {failures} times, last {reason}") from failure
            log.warning(
                "exchange_asked_again", exchange=self.name, failures=failures, error=str(failure), wait=wait
            )
            self._sleep(wait)

    def _retry_after(self) -> float | None:
        """Seconds that the last answer asks to wait."""
        value = (self._client.last_response_headers or {}).get("Retry-After", "")
        return float(value) if value.isdecimal() else None


def _candles(interval: str, rows: Sequence[Sequence[float | None]]) -> Candles:
    """Of rows (open time in ms, open, high, low, close, volume); None becomes NaT or NaN."""
    times = np.array([row[0] for row in rows], dtype="datetime64[ms]")
    numbers = np.array([row[1:6] for row in rows], dtype=np.float64).reshape(len(rows), len(OHLCV))
    return Candles(interval, times, *numbers.T)


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _with_address(urls: Any, address: str) -> Any:
    """ccxt's tree of URLs with another scheme, host and port."""
    if isinstance(urls, dict):
        return {name: _with_address(url, address) for name, url in urls.items()}
    return re.sub(r"^https?://[^/]+", address, urls)


def _exchange_class(name: str) -> Any:
    """ccxt's class of one exchange.

    ``import ccxt`` imports all of its hundred exchanges: 2 s and 33 MB more than the one we need. So the
    module is imported below an empty package of that name, which is taken away again at once; whoever
    imports ccxt later gets all of it.
    """
    if not re.fullmatch(r"[a-z0-9]+", name):
        raise ConfigRejected("exchange", name, "an exchange's name in ccxt, such as binance")
    stand_in = None
    if "ccxt" not in sys.modules:
        spec = util.find_spec("ccxt")
        assert spec is not None
        stand_in = ModuleType("ccxt")
        stand_in.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["ccxt"] = stand_in
    try:
        return getattr(importlib.import_module(f"ccxt.{name}"), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigRejected("exchange", name, "an exchange's name in ccxt, such as binance") from error
    finally:
        if stand_in is not None:
            del sys.modules["ccxt"]
