"""Candles in and out. Every version stays, with the time at which it was known.

The first version of a candle was known at its close, whenever it was imported; a correction from the
moment at which it was written. Reading as of a moment therefore gives the same candles for ever.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import psycopg2.extensions
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models import CandleSeries
from ml.candles import OHLCV, Candles, to_datetime
from ml.errors import CandlesRejected
from ml.keys import check_symbol, interval_duration

__all__ = [
    "Series",
    "Written",
    "find_series",
    "fingerprint",
    "latest_open_time",
    "read",
    "series",
    "symbols",
    "write",
]

# COPY's binary format: https://www.postgresql.org/docs/current/sql-copy.html
_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)
_EPOCH = np.datetime64("2000-01-01", "us")
_RECORD = np.dtype(
    [("fields", ">i2"), ("open_time_size", ">i4"), ("open_time", ">i8")]
    + [item for name in OHLCV for item in ((f"{name}_size", ">i4"), (name, ">f8"))]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of the candles given."""

    inserted: int
    revised: int
    unchanged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What is stored of one symbol and interval."""

    symbol: str
    interval: str
    source: str
    rows: int
    """Candles, each counted once."""
    revisions: int
    first_open: datetime
    last_open: datetime


def write(
    session: Session, *, symbol: str, interval: str, candles: Candles, source: str, now: datetime
) -> Written:
    """Add what is new or different. Writing the same candles again changes nothing.

    Writers of one series wait for each other. ``candles`` must hold its contract (``validate``).

    Args:
        symbol: as in ``ml.keys``.
        interval: the candles' own.
        candles: n candles.
        source: who gave them, such as ``binance``.
        now: when a correction became known; no earlier than the version before it.

    Raises:
        KeyRejected: symbol or interval.
        CandlesRejected: the candles are of another interval.
    """
    check_symbol(symbol)
    duration = interval_duration(interval)
    if candles.interval != interval:
        raise CandlesRejected("interval", candles.interval, f"candles of {interval}")
    if len(candles) == 0:
        return Written(inserted=0, revised=0, unchanged=0)
    first, last = to_datetime(candles.open_time[0]), to_datetime(candles.open_time[-1])
    _lock_series(session, symbol, interval, first)
    _stage(session, candles)
    merged = session.execute(
        _MERGE,
        {
            "symbol": symbol,
            "interval": interval,
            "duration": duration,
            "source": source,
            "now": now,
            "first": first,
            "last": last,
        },
    ).one()
    if merged.inserted or merged.revised:
        session.execute(
            sa.update(CandleSeries)
            .where(CandleSeries.symbol == symbol, CandleSeries.interval == interval)
            .values(
                rows=CandleSeries.rows + merged.inserted + merged.revised,
                revisions=CandleSeries.revisions + merged.revised,
                first_open=sa.func.least(CandleSeries.first_open, first),
                last_open=sa.func.greatest(CandleSeries.last_open, last),
                content=CandleSeries.content + merged.content,
                sources=sa.case(
                    (sa.literal(source) == CandleSeries.sources.any_(), CandleSeries.sources),
                    else_=sa.func.array_append(CandleSeries.sources, source),
                ),
            )
        )
    return Written(
        inserted=merged.inserted,
        revised=merged.revised,
        unchanged=len(candles) - merged.inserted - merged.revised,
    )


def read(
    session: Session,
    symbol: str,
    interval: str,
    *,
    known_at: datetime,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Candles:
    """The candles as they were known at ``known_at``: closed by then, each in its newest version of then.

    Args:
        symbol: as in ``ml.keys``.
        interval: as in ``ml.keys``.
        known_at: aware.
        start: from this open time on, itself included.
        end: up to this open time, itself excluded.

    Returns:
        n candles, sorted; n is 0 where nothing is stored.
    """
    cursor = _cursor(session)
    query = cursor.mogrify(
        _READ,
        {
            "symbol": check_symbol(symbol),
            "interval": interval,
            "known_at": known_at,
            "start": start or "-infinity",
            "end": end or "infinity",
        },
    )
    buffer = io.BytesIO()
    cursor.copy_expert(query, buffer)
    count = (buffer.tell() - len(_HEADER) - len(_TRAILER)) // _RECORD.itemsize
    newest_first = np.frombuffer(buffer.getbuffer(), _RECORD, count, len(_HEADER))
    records = newest_first[::-1]
    columns = {name: records[name].astype(np.float64) for name in OHLCV}
    return Candles(interval, records["open_time"].astype("timedelta64[us]") + _EPOCH, **columns)


def series(session: Session) -> list[Series]:
    """Every series stored, by symbol and interval."""
    rows = session.scalars(sa.select(CandleSeries).order_by(CandleSeries.symbol, CandleSeries.interval))
    return [_series(row) for row in rows]


def symbols(session: Session, interval: str) -> list[str]:
    """Symbols of which candles of this interval are stored, sorted."""
    return [one.symbol for one in series(session) if one.interval == interval]


def find_series(session: Session, symbol: str, interval: str) -> Series | None:
    """One series, or None where nothing is stored of it."""
    found = session.get(CandleSeries, (symbol, interval))
    return None if found is None else _series(found)


def fingerprint(session: Session, interval: str, *, known_at: datetime) -> dict[str, str]:
    """For each symbol a short text that changes when what ``read`` gives as of ``known_at`` changes.

    It is a sum over the rows' hashes, kept while they are written; only the rows that became known
    after ``known_at`` are looked at, to take them away again. Equal rows in another database have an
    equal fingerprint. Symbols with nothing known by then are left out.
    """
    rows = session.execute(_FINGERPRINT, {"interval": interval, "known_at": known_at})
    return {row.symbol: f"{row.rows}-{int(row.content) % 2**64:016x}" for row in rows if row.rows}


def latest_open_time(session: Session, symbol: str, interval: str) -> datetime | None:
    """Open time of the newest candle stored, or None."""
    found = session.get(CandleSeries, (symbol, interval))
    return None if found is None else found.last_open


def _series(row: CandleSeries) -> Series:
    return Series(
        symbol=row.symbol,
        interval=row.interval,
        source=", ".join(row.sources),
        rows=row.rows - row.revisions,
        revisions=row.revisions,
        first_open=row.first_open,
        last_open=row.last_open,
    )


def _lock_series(session: Session, symbol: str, interval: str, first: datetime) -> None:
    """Hold the series' row to the end of the transaction; make it first where there is none."""
    session.execute(
        insert(CandleSeries)
        .values(
            symbol=symbol,
            interval=interval,
            sources=[],
            rows=0,
            revisions=0,
            first_open=first,
            last_open=first,
            content=0,
        )
        .on_conflict_do_nothing()
    )
    session.execute(
        sa.select(CandleSeries.symbol)
        .where(CandleSeries.symbol == symbol, CandleSeries.interval == interval)
        .with_for_update()
    )


def _stage(session: Session, candles: Candles) -> None:
    records = np.empty(len(candles), _RECORD)
    records["fields"] = 1 + len(OHLCV)
    records["open_time_size"] = 8
    records["open_time"] = (candles.open_time - _EPOCH).astype(np.int64)
    for name in OHLCV:
        records[f"{name}_size"] = 8
        records[name] = getattr(candles, name)
    session.execute(_STAGING)
    session.execute(sa.text("TRUNCATE staged_candles"))
    _cursor(session).copy_expert(
        "COPY staged_candles FROM STDIN (FORMAT binary)", io.BytesIO(_HEADER + records.tobytes() + _TRAILER)
    )


def _cursor(session: Session) -> psycopg2.extensions.cursor:
    """The driver's own cursor, in the session's transaction: SQLAlchemy knows no COPY."""
    raw = session.connection().connection.driver_connection
    assert isinstance(raw, psycopg2.extensions.connection)
    return raw.cursor()


_STAGING = sa.text("""
    CREATE TEMPORARY TABLE IF NOT EXISTS staged_candles (
        open_time timestamptz, open float8, high float8, low float8, close float8, volume float8
    ) ON COMMIT DELETE ROWS
""")

_MERGE = sa.text("""
    WITH known AS (
        SELECT DISTINCT ON (open_time) open_time, known_at, open, high, low, close, volume
        FROM candles
        WHERE symbol = :symbol AND interval = :interval AND open_time BETWEEN :first AND :last
        ORDER BY open_time DESC, known_at DESC
    ), added AS (
        INSERT INTO candles
            (symbol, interval, open_time, known_at, open, high, low, close, volume, source)
        SELECT :symbol, :interval, new.open_time,
               CASE WHEN known.open_time IS NULL THEN new.open_time + CAST(:duration AS interval)
                    ELSE greatest(:now, known.known_at + interval '1 microsecond') END,
               new.open, new.high, new.low, new.close, new.volume, :source
        FROM staged_candles AS new LEFT JOIN known USING (open_time)
        WHERE known.open_time IS NULL
           OR (known.open, known.high, known.low, known.close, known.volume)
              IS DISTINCT FROM (new.open, new.high, new.low, new.close, new.volume)
        ORDER BY new.open_time
        RETURNING known_at = open_time + CAST(:duration AS interval) AS is_first,
                  hash_record_extended(ROW(open_time, known_at, open, high, low, close, volume), 0) AS content
    )
    SELECT count(*) FILTER (WHERE is_first) AS inserted, count(*) FILTER (WHERE NOT is_first) AS revised,
           sum(content) AS content
    FROM added
""")

_FINGERPRINT = sa.text("""
    SELECT series.symbol, series.rows - later.rows AS rows, series.content - later.content AS content
    FROM candle_series AS series CROSS JOIN LATERAL (
        SELECT count(*) AS rows, coalesce(sum(hash_record_extended(
                   ROW(open_time, known_at, open, high, low, close, volume), 0)), 0) AS content
        FROM candles
        WHERE symbol = series.symbol AND interval = series.interval AND known_at > :known_at
    ) AS later
    WHERE series.interval = :interval
    ORDER BY series.symbol
""")

_READ = """
    COPY (
        SELECT DISTINCT ON (open_time) open_time, open, high, low, close, volume
        FROM candles
        WHERE symbol = %(symbol)s AND interval = %(interval)s AND known_at <= %(known_at)s
          AND open_time >= %(start)s AND open_time < %(end)s
        ORDER BY open_time DESC, known_at DESC
    ) TO STDOUT (FORMAT binary)
"""
