"""Hypertables and compression where the server has TimescaleDB; plain tables elsewhere.

TimescaleDB 2.18 and later: https://docs.timescale.com/api/latest/hypercore/
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

__all__ = ["HYPERTABLES", "Hypertable", "has_timescaledb", "make_hypertable"]

LONGEST_HORIZON = timedelta(days=40)
"""Label horizons end within this: 500 bars (``LabelConfig.horizon_bars``) of 1h are 21 days; of longer
intervals the default 12 bars."""
STATED_OUTAGE = timedelta(days=20)
"""The longest time for which outcomes may stay unresolved because something was down."""
COMPRESS_AFTER = LONGEST_HORIZON + STATED_OUTAGE


@dataclass(frozen=True, slots=True)
class Hypertable:
    """How one time-series table is cut and compressed."""

    table: str
    time_column: str
    chunk: timedelta
    segment_by: str
    """Columns that each compressed batch has one value of."""
    order_by: str


HYPERTABLES = (
    # A chunk of a year: an hourly series has 8,760 rows in it, and training reads every chunk there is.
    Hypertable(
        "candles", "open_time", timedelta(days=364), "symbol, interval", "open_time DESC, known_at DESC"
    ),
    Hypertable(
        "ml_performance_tracking",
        "signal_time",
        timedelta(days=28),
        "symbol, interval",
        "signal_time DESC, id",
    ),
    Hypertable("ml_eval_history", "as_of", timedelta(days=364), "symbol, interval, regime", "as_of DESC, id"),
    Hypertable("ml_drift_alerts", "as_of", timedelta(days=91), "symbol, interval, regime", "as_of DESC, id"),
    Hypertable("ml_drift_details", "as_of", timedelta(days=91), "feature", "as_of DESC, alert_id"),
)


def has_timescaledb(connection: sa.Connection) -> bool:
    """Whether this database has the extension, or the server is ready to make it here.

    A server that has its files but did not preload its library ends the connection on
    ``CREATE EXTENSION``; there the tables stay plain.
    """
    installed = sa.text("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')")
    preloaded = sa.text("SELECT current_setting('shared_preload_libraries') LIKE '%timescaledb%'")
    if connection.scalar(installed):
        return True
    if connection.scalar(preloaded):
        connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS timescaledb"))
        return True
    return False


def make_hypertable(connection: sa.Connection, hypertable: Hypertable) -> None:
    """Turn an empty table into a hypertable with a compression policy and no retention.

    A late row or outcome may still be written to a compressed chunk; it is only slower.
    """
    connection.execute(
        sa.text(
            "SELECT create_hypertable(CAST(:table AS regclass), by_range(CAST(:column AS name), "
            "CAST(:chunk AS interval)), create_default_indexes => false)"
        ),
        {"table": hypertable.table, "column": hypertable.time_column, "chunk": hypertable.chunk},
    )
    # Storage options take no bound parameters; these are this module's own constants.
    connection.execute(
        sa.DDL(  # type: ignore[no-untyped-call]
            "ALTER TABLE %(table)s SET (timescaledb.enable_columnstore, "
            "timescaledb.segmentby = '%(segment_by)s', timescaledb.orderby = '%(order_by)s')",
            context={
                "table": hypertable.table,
                "segment_by": hypertable.segment_by,
                "order_by": hypertable.order_by,
            },
        )
    )
    connection.execute(
        sa.text("CALL add_columnstore_policy(CAST(:table AS regclass), after => CAST(:after AS interval))"),
        {"table": hypertable.table, "after": COMPRESS_AFTER},
    )
