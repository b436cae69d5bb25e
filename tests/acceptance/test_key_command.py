"""`alphaplus key add | list | freeze | thaw` on real servers, with an exchange of the test's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from celery import Celery
from sqlalchemy.engine import Engine

from db import audit, candles, keys
from db.session import transaction
from ml.candles import Candles, to_datetime64
from ml.keys import MODEL_REGIMES, ModelKey
from tests.binance_server import BinanceServer, binance_server
from tests.predicting import wait_until
from tests.processes import CommandResult, RunningProcess
from worker.cli import main

pytestmark = pytest.mark.drift

Cli = Callable[..., CommandResult]
NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def hourly(count: int) -> Candles:
    """The newest ``count`` hours, up to ``NOW``."""
    open_time = to_datetime64(NOW) - np.arange(count, 0, -1) * np.timedelta64(1, "h")
    price = 100 + np.arange(count, dtype=np.float64)
    return Candles("1h", open_time, price, price + 2, price - 2, price + 1, price)


@pytest.fixture
def exchange() -> Iterator[BinanceServer]:
    with binance_server(NOW) as server:
        server.offer("SOLUSDT", hourly(60))
        yield server


@pytest.fixture
def cli(run_cli: Cli, exchange: BinanceServer) -> Cli:
    def run(*args: str, **env: str) -> CommandResult:
        return run_cli(*args, env={"ALPHAPLUS_EXCHANGE_URL": exchange.url} | env)

    return run


@pytest.fixture
def run_main(
    settings_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    """As ``run_cli``, in this process: for commands that need no Celery application."""

    def run(*args: str) -> CommandResult:
        for name, value in settings_env.items():
            if name.startswith("ALPHAPLUS_"):
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["alphaplus", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        return CommandResult(int(ended.value.code or 0), *capsys.readouterr())

    return run


def schedule(cli: Cli) -> dict[str, str]:
    entries = json.loads(cli("schedule", "list", "--json").stdout)
    return {entry["name"]: entry["cron"] for entry in entries if "SOLUSDT" in entry["name"]}


def test_added_key_is_synced_and_scheduled_and_adding_it_again_changes_nothing(
    cli: Cli,
    engine: Engine,
    exchange: BinanceServer,
    redis_url: str,
    worker_process: Callable[..., RunningProcess],
) -> None:
    done = cli("key", "add", "SOLUSDT", "--interval", "1h")
    assert done.exit_code == 0, done.stderr
    assert "SOLUSDT 1h is added. What happens next:" in done.stdout
    assert "within a minute two years of them, from binance" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    wanted = {
        "train-SOLUSDT-trending": "0 9 * * *",
        "train-SOLUSDT-sideways": "0 10 * * *",
        "train-SOLUSDT-volatile": "0 11 * * *",
        "train-SOLUSDT-consolidation": "0 12 * * *",
        "train-SOLUSDT-all": "0 13 * * 0",
    }
    assert schedule(cli) == wanted

    again = cli("key", "add", "SOLUSDT", "--interval", "1h", "--cron", "0 7 * * *")
    assert (again.exit_code, again.stdout) == (0, "SOLUSDT 1h was added before: nothing changed.\n")
    assert schedule(cli) == wanted
    with transaction(engine) as session:
        (row,) = audit.recent(session, 10)
        assert (row.action, row.subject) == ("key_add", "SOLUSDT 1h")
        assert keys.added(session) == [("SOLUSDT", "1h")]

    # No restart, no setting: the next fan-out sends for it.
    worker_process(
        "maintenance",
        "--pool=solo",
        env={"ALPHAPLUS_EXCHANGE_URL": exchange.url, "ALPHAPLUS_SYMBOLS": "BTCUSDT"},
    )
    with Celery("sender", broker=redis_url, backend=redis_url, set_as_current=False) as sender:
        sent = sender.send_task("tasks.sync_all_candles", queue="maintenance")
        assert sent.get(timeout=60) == ["BTCUSDT", "SOLUSDT"]

    def synced() -> bool:
        with transaction(engine) as session:
            series = candles.find_series(session, "SOLUSDT", "1h")
            return series is not None and series.rows == 60

    wait_until(synced, "the candles of SOLUSDT", 30)
    listed = cli("key", "list")
    assert max(map(len, listed.stdout.splitlines())) <= 100
    until = f"{NOW - timedelta(hours=1):%Y-%m-%d %H:%M}"
    assert f"SOLUSDT 1h trending added - 0 9 * * * {until}" in " ".join(listed.stdout.split())


def test_symbol_that_the_exchange_has_not_is_refused_and_nothing_is_written(cli: Cli, engine: Engine) -> None:
    for symbol, told in (("SOLUSTD", "a spot market of binance"), ("sol/usdt", "2 to 24 of A-Z and 0-9")):
        result = cli("key", "add", symbol)
        assert result.exit_code == 2
        assert told in " ".join(result.stderr.split())
    assert cli("key", "add", "SOLUSDT", "--cron", "0 25 * * *").exit_code == 2
    assert schedule(cli) == {}
    with transaction(engine) as session:
        assert keys.rows(session) == []
        assert audit.recent(session, 1) == []


def test_exchange_that_is_away_leaves_a_doubt_and_the_interval_goes_into_the_entries(cli: Cli) -> None:
    done = cli(
        "key", "add", "SOLUSDT", "--interval", "4h", "--cron", "30 22 * * 1-5", "--json",
        ALPHAPLUS_EXCHANGE_URL="http://127.0.0.1:1/",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert (done.exit_code, report["added"]) == (0, [f"SOLUSDT 4h {regime}" for regime in MODEL_REGIMES])
    assert "binance could not be asked" in report["doubt"]
    assert schedule(cli) == {
        "train-SOLUSDT-trending-4h": "30 22 * * 1-5",
        "train-SOLUSDT-sideways-4h": "30 23 * * 1-5",
        "train-SOLUSDT-volatile-4h": "30 0 * * 2,3,4,5,6",
        "train-SOLUSDT-consolidation-4h": "30 1 * * 2,3,4,5,6",
        "train-SOLUSDT-all-4h": "30 2 * * 0",
    }


def test_broker_that_is_away_is_said_before_anything_is_written(run_cli: Cli, engine: Engine) -> None:
    result = run_cli("key", "add", "SOLUSDT", env={"ALPHAPLUS_REDIS_URL": "redis://127.0.0.1:1/0"})
    assert result.exit_code == 4
    with transaction(engine) as session:
        assert keys.rows(session) == []


def test_key_is_frozen_and_thawed_once_each_with_its_reason(
    run_main: Cli, run_cli: Cli, engine: Engine
) -> None:
    of = ("BTCUSDT", "trending")
    frozen = run_main("key", "freeze", *of, "--reason", "the exchange halts")
    assert "BTCUSDT 1h trending is frozen (by cli:" in frozen.stdout
    assert "the exchange halts" in frozen.stdout
    again = json.loads(run_main("key", "freeze", *of, "--reason", "another", "--json").stdout)
    assert again["changed"] is False
    assert "the exchange halts" in again["frozen"]
    listed = json.loads(run_cli("key", "list", "--json").stdout)
    assert [one["key"] for one in listed if one["frozen"]] == ["BTCUSDT 1h trending"]
    assert len(listed) == 10  # two symbols of the settings
    assert run_main("key", "thaw", *of, "--reason", "over").stdout == "BTCUSDT 1h trending is thawed.\n"
    assert "is not frozen: nothing changed" in run_main("key", "thaw", *of, "--reason", "over").stdout
    assert run_main("key", "freeze", *of, "--reason", " ").exit_code == 2
    with transaction(engine) as session:
        assert keys.frozen(session, ModelKey("BTCUSDT", "1h", "trending")) is None
        assert [row.action for row in audit.recent(session, 10)] == ["thaw", "freeze"]
