"""Candles into PostgreSQL and back, beside what pandas does with the same file and server."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from benchmarks.measurement import Measurement, median_seconds
from db import candles as store
from db.schema import upgrade
from db.session import create_engine, transaction
from feeds import files
from ml.candles import Candles

__all__ = ["measure"]

DATABASE = "candles_benchmark"
IMPORT_LIMIT_SECONDS = 2.0
READ_LIMIT_MILLISECONDS = 150.0
RUNS = 5
PEER_RUNS = 3


def measure(candles: Candles, engine: Engine, *, folder: Path, comparable: bool) -> list[Measurement]:
    """Import and read back, in a database of their own on the engine's server.

    Args:
        candles: written to a csv.gz first, and imported from there.
        engine: names the server.
        folder: for the file.
        comparable: whether the candles are as many as the limits are stated for.
    """
    path = folder / "candles.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=6) as file:
        candles.to_frame().to_csv(file, index=False, date_format="%Y-%m-%dT%H:%M:%SZ")
    with _database(engine) as own:
        return [
            *_imports(path, candles, own, comparable=comparable),
            _read_back(candles, own, comparable=comparable),
        ]


def _imports(path: Path, candles: Candles, engine: Engine, *, comparable: bool) -> list[Measurement]:
    symbols = (f"BENCH{number}" for number in count())
    now = datetime.now(UTC)

    def command(symbol: str) -> None:
        script = Path(sys.executable).parent / "alphaplus"
        argv = [
            str(script),
            "candles",
            "import",
            str(path),
            "--symbol",
            symbol,
            "--interval",
            candles.interval,
        ]
        url = engine.url.render_as_string(hide_password=False)
        subprocess.run(
            argv, check=True, capture_output=True, env=os.environ | {"ALPHAPLUS_DATABASE_URL": url}
        )

    def work(symbol: str) -> None:
        loaded = files.read(path, candles.interval, now=now)
        with transaction(engine) as session:
            store.write(
                session, symbol=symbol, interval=candles.interval, candles=loaded, source="benchmark", now=now
            )

    def peer() -> None:
        frame = pd.read_csv(path, parse_dates=["open_time"])
        # The quickest of pandas' ways: method="multi" took three times as long.
        frame.to_sql("peer", engine, if_exists="replace", index=False)

    limit = IMPORT_LIMIT_SECONDS if comparable else None
    peer_seconds = median_seconds(peer, runs=PEER_RUNS)
    size = f"{path.stat().st_size / 1e6:.1f} MB csv.gz"
    rows = f"{len(candles):,} candles"
    peer_name = "pandas read_csv + to_sql, no key, no versions"
    return [
        Measurement(
            f"import {rows}, the whole command",
            median_seconds(lambda: command(next(symbols)), runs=RUNS),
            "s",
            limit,
            RUNS,
            note=f"{size}, process start included",
        ),
        Measurement(
            f"import {rows}, in a running process",
            median_seconds(lambda: work(next(symbols)), runs=RUNS),
            "s",
            limit,
            RUNS,
            peer=peer_seconds,
            peer_name=peer_name,
        ),
        Measurement(
            f"import {rows} again, nothing new",
            median_seconds(lambda: work("BENCH0"), runs=RUNS),
            "s",
            limit,
            RUNS,
        ),
    ]


def _read_back(candles: Candles, engine: Engine, *, comparable: bool) -> Measurement:
    now = datetime.now(UTC)

    def read() -> None:
        with transaction(engine) as session:
            assert len(store.read(session, "BENCH0", candles.interval, known_at=now)) == len(candles)

    def peer() -> None:
        assert len(pd.read_sql_table("peer", engine)) == len(candles)

    return Measurement(
        f"read {len(candles):,} candles as arrays",
        median_seconds(read, runs=RUNS) * 1000,
        "ms",
        READ_LIMIT_MILLISECONDS if comparable else None,
        RUNS,
        peer=median_seconds(peer, runs=PEER_RUNS) * 1000,
        peer_name="pandas read_sql_table, unsorted, no versions",
    )


@contextmanager
def _database(engine: Engine) -> Iterator[Engine]:
    """A database of our own, migrated, dropped at the end: pooled fits must not find these symbols."""
    url = engine.url.set(database=DATABASE)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"))
        connection.execute(sa.text(f"CREATE DATABASE {DATABASE}"))
        text = url.render_as_string(hide_password=False)
        upgrade(text)
        own = create_engine(text, application_name="benchmark")
        try:
            yield own
        finally:
            own.dispose()
            connection.execute(sa.text(f"DROP DATABASE {DATABASE} WITH (FORCE)"))
