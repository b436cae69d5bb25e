"""An exchange on this machine: speaks the part of Binance's spot REST API that a candle sync uses.

https://developers.binance.com/docs/binance-spot-api-docs/rest-api: ``/api/v3/time``, ``exchangeInfo`` and
``klines``. Like the real one it gives the candle that is still open, too, and skips over missing ones.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from ml.candles import OHLCV, Candles, to_datetime64

__all__ = ["BinanceServer", "Fault", "binance_server"]

MOST_CANDLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a klines request gets instead of its answer, or before it."""

    status: int = 200
    """Over 200: this status and ``body``."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    drop: bool = False
    """Reset the connection without an answer."""
    wait_seconds: float = 0.0


@dataclass
class BinanceServer:
    """The exchange's state, to be changed while it runs."""

    now: datetime
    """Its clock."""
    url: str = ""
    series: dict[tuple[str, str], Candles] = field(default_factory=dict)
    faults: deque[Fault] = field(default_factory=deque)
    """The next klines requests get one each."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """(path, query) of every request, in order."""
    released: threading.Event = field(default_factory=threading.Event)
    """Ends every wait, so that the server stops at once."""

    def offer(self, symbol: str, candles: Candles) -> None:
        """Offer the candles of a spot market; those that open after ``now`` are not shown yet."""
        self.series[symbol, candles.interval] = candles

    def klines_asked(self) -> list[dict[str, str]]:
        """The queries of the klines requests so far."""
        return [query for path, query in self.requests if path == "/api/v3/klines"]

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        """Status and JSON body."""
        if path == "/api/v3/time":
            return 200, {"serverTime": round(self.now.timestamp() * 1000)}
        if path == "/api/v3/exchangeInfo":
            symbols = sorted({symbol for symbol, _ in self.series})
            return 200, {"timezone": "UTC", "symbols": [_market(symbol) for symbol in symbols]}
        if path != "/api/v3/klines":
            return 404, {"code": -1, "msg": "no such path"}
        candles = self.series.get((query["symbol"], query["interval"]))
        if candles is None:
            return 400, {"code": -1121, "msg": "Invalid symbol."}
        return 200, self._klines(candles, query)

    def _klines(self, candles: Candles, query: dict[str, str]) -> list[list[Any]]:
        open_ms = candles.open_time.astype("datetime64[ms]").astype(np.int64)
        shown = candles.open_time <= to_datetime64(self.now)
        if "startTime" in query:
            shown &= open_ms >= int(query["startTime"])
        if "endTime" in query:
            shown &= open_ms <= int(query["endTime"])
        rows = np.flatnonzero(shown)
        limit = min(int(query.get("limit", 500)), MOST_CANDLES)
        rows = rows[:limit] if "startTime" in query else rows[-limit:]
        close_ms = candles.close_time.astype("datetime64[ms]").astype(np.int64) - 1
        return [
            [
                int(open_ms[row]),
                *(repr(float(getattr(candles, name)[row])) for name in OHLCV),
                int(close_ms[row]), "0", 0, "0", "0", "0",
            ]
            for row in rows
        ]  # fmt: skip


@contextmanager
def binance_server(now: datetime) -> Iterator[BinanceServer]:
    """A running server on a free port of 127.0.0.1."""
    state = BinanceServer(now=now)

    class Handler(_Handler):
        exchange = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    exchange: BinanceServer

    def do_GET(self) -> None:
        """Answer one request, after the fault that is next in line."""
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.exchange.requests.append((parts.path, query))
        fault = Fault()
        if parts.path == "/api/v3/klines" and self.exchange.faults:
            fault = self.exchange.faults.popleft()
        self.exchange.released.wait(fault.wait_seconds)
        if fault.drop:
            # Linger of 0 s: the client sees a reset, not an end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        status, body = self.exchange.answer(parts.path, query)
        text = json.dumps(body) if fault.body is None else fault.body
        self._send(max(status, fault.status), text, fault.headers)

    def _send(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        data = text.encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            self.close_connection = True  # the client gave up, or was killed

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests read ``requests``."""


def _market(symbol: str) -> dict[str, Any]:
    """As exchangeInfo describes a spot market, cut to what ccxt reads."""
    base, quote = symbol[:-4], symbol[-4:]
    return {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "permissions": ["SPOT"],
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000", "tickSize": "0.01"},
            {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000", "stepSize": "0.00001"},
        ],
    }
