"""Candles through ccxt, from an exchange on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from feeds.exchange import PAGE_CANDLES, Backoff, Exchange
from ml.candles import OHLCV, Candles, to_datetime
from ml.errors import CandlesRejected, ConfigRejected, ExchangeUnavailable, KeyRejected
from tests.binance_server import BinanceServer, Fault, binance_server

pytestmark = pytest.mark.candles

START = datetime(2017, 10, 1, tzinfo=UTC)
NOW = datetime(2017, 11, 1, 0, 10, tzinfo=UTC)
"""31 days: 1,488 half-hours are closed, and one has been open for ten minutes."""


@pytest.fixture
def server(bitcoin: Candles) -> Iterator[BinanceServer]:
    with binance_server(NOW) as server:
        server.offer("BTCUSDT", bitcoin)
        yield server


@pytest.fixture
def waits() -> list[float]:
    """Seconds that the exchange was to wait, which nobody does here."""
    return []


@pytest.fixture
def exchange(server: BinanceServer, waits: list[float]) -> Iterator[Exchange]:
    with closing(Exchange("binance", url=server.url, timeout_seconds=2.0, sleep=waits.append)) as exchange:
        yield exchange


def test_page_holds_the_exchanges_candles_to_the_last_bit(exchange: Exchange, bitcoin: Candles) -> None:
    page = exchange.after("BTCUSDT", "30m", START, closed_by=NOW)
    assert len(page) == PAGE_CANDLES
    for name in ("open_time", *OHLCV):
        np.testing.assert_array_equal(getattr(page, name), getattr(bitcoin, name)[:PAGE_CANDLES])


def test_candle_that_is_still_open_is_left_out(exchange: Exchange, server: BinanceServer) -> None:
    page = exchange.after("BTCUSDT", "30m", NOW - timedelta(hours=2), closed_by=exchange.now())
    assert [to_datetime(time) for time in page.open_time] == [
        datetime(2017, 10, 31, 22, 30, tzinfo=UTC),
        datetime(2017, 10, 31, 23, 0, tzinfo=UTC),
        datetime(2017, 10, 31, 23, 30, tzinfo=UTC),
    ]
    server.now = datetime(2017, 11, 1, 0, 30, tzinfo=UTC)
    assert exchange.now() == server.now
    page = exchange.after("BTCUSDT", "30m", NOW - timedelta(minutes=10), closed_by=server.now)
    assert [to_datetime(time) for time in page.open_time] == [datetime(2017, 11, 1, tzinfo=UTC)]


def test_page_before_a_time_holds_the_last_candles_before_it(exchange: Exchange) -> None:
    end = START + timedelta(days=25)
    page = exchange.before("BTCUSDT", "30m", end, closed_by=NOW)
    assert len(page) == PAGE_CANDLES
    assert to_datetime(page.close_time[-1]) == end
    assert len(exchange.before("BTCUSDT", "30m", START, closed_by=NOW)) == 0


def test_requests_go_to_the_given_address_with_binances_parameters(
    exchange: Exchange, server: BinanceServer
) -> None:
    exchange.after("BTCUSDT", "30m", START, closed_by=NOW)
    exchange.after("BTCUSDT", "30m", START, closed_by=NOW)
    asked = {
        "symbol": "BTCUSDT", "interval": "30m", "limit": "1000", "startTime": "1506816000000",
    }  # fmt: skip
    assert server.klines_asked() == [asked, asked]
    assert [path for path, _ in server.requests].count("/api/v3/exchangeInfo") == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, body='{"code":-1003,"msg":"Too many requests."}'),
        Fault(status=418, body="{}"),
        Fault(status=500, body="Internal Server Error"),
        Fault(status=503, body='{"code":-1000,"msg":"An unknown error occurred."}'),
        Fault(status=502, body="<html>Bad Gateway</html>"),
        Fault(body="<html>Sign in to the hotel's network</html>"),
        Fault(body='[[1506816000000,"43'),
        Fault(body='[["a"]]'),
        Fault(body='{"unexpected": 1}'),
        Fault(drop=True),
        Fault(wait_seconds=30.0),
    ],
    ids=str,
)
def test_request_that_failed_is_made_again(
    exchange: Exchange, server: BinanceServer, waits: list[float], fault: Fault
) -> None:
    server.faults.append(fault)
    assert len(exchange.after("BTCUSDT", "30m", START, closed_by=NOW)) == PAGE_CANDLES
    assert len(server.klines_asked()) == 2
    assert len(waits) == 1
    assert 0.5 <= waits[0] <= 1.0


def test_exchange_that_says_how_long_to_wait_is_obeyed(
    exchange: Exchange, server: BinanceServer, waits: list[float]
) -> None:
    server.faults.append(Fault(status=429, headers={"Retry-After": "17"}, body="{}"))
    exchange.after("BTCUSDT", "30m", START, closed_by=NOW)
    assert waits == [17.0]


def test_exchange_that_wants_too_long_a_wait_is_left_alone(
    exchange: Exchange, server: BinanceServer, waits: list[float]
) -> None:
    server.faults.append(Fault(status=418, headers={"Retry-After": "3600"}, body="{}"))
    with pytest.raises(ExchangeUnavailable, match="binance failed 1 times"):
        exchange.after("BTCUSDT", "30m", START, closed_by=NOW)
    assert (waits, len(server.klines_asked())) == ([], 1)


def test_exchange_that_fails_six_times_is_unavailable_after_longer_and_longer_waits(
    exchange: Exchange, server: BinanceServer, waits: list[float]
) -> None:
    server.faults.extend([Fault(status=500, body="")] * 6)
    with pytest.raises(ExchangeUnavailable, match="binance failed 6 times, last ExchangeNotAvailable"):
        exchange.after("BTCUSDT", "30m", START, closed_by=NOW)
    assert len(server.klines_asked()) == 6
    assert [low <= wait <= 2 * low for wait, low in zip(waits, (0.5, 1, 2, 4, 8), strict=True)] == [True] * 5


def test_address_where_nobody_listens_is_unavailable() -> None:
    backoff = Backoff(attempts=2, first_seconds=0.01)
    exchange = Exchange("binance", url="http://127.0.0.1:9", backoff=backoff)
    with closing(exchange), pytest.raises(ExchangeUnavailable):
        exchange.now()


def test_market_or_interval_that_the_exchange_lacks_is_refused_by_name(exchange: Exchange) -> None:
    with pytest.raises(KeyRejected, match=r"symbol: 'NONEUSDT'.*a spot market of binance"):
        exchange.after("NONEUSDT", "30m", START, closed_by=NOW)
    with pytest.raises(KeyRejected, match="interval: '7m'"):
        exchange.after("BTCUSDT", "7m", START, closed_by=NOW)
    with pytest.raises(KeyRejected, match="symbol"):
        exchange.after("../../etc", "30m", START, closed_by=NOW)


def test_candles_that_break_the_contract_are_refused_by_candle_and_field(
    exchange: Exchange, server: BinanceServer
) -> None:
    rows = [[1506816000000, "5", "6", "4", "5", "1"], [1506817800000, "5", "3", "4", "5", "1"]]
    server.faults.append(Fault(body=str(rows).replace("'", '"')))
    with pytest.raises(CandlesRejected) as caught:
        exchange.after("BTCUSDT", "30m", START, closed_by=NOW)
    assert caught.value.field == "binance BTCUSDT 30m, candle 2017-10-01T00:30:00.000000Z, high"


@pytest.mark.parametrize("name", ["nosuchexchange", "base", "os", "../ccxt"])
def test_exchange_that_ccxt_does_not_know_is_a_wrong_setting(name: str) -> None:
    with pytest.raises(ConfigRejected, match="exchange"):
        Exchange(name)


def test_only_the_one_exchange_is_imported_and_ccxt_stays_whole_for_others() -> None:
    code = (
        "import sys; from feeds.exchange import Exchange; Exchange('binance').close();"
        "assert not any(name in ('ccxt', 'ccxt.kraken') for name in sys.modules);"
        "import ccxt; assert ccxt.kraken and ccxt.binance"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
