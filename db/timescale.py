"""Hypertables and compression where the server has TimescaleDB; plain tables elsewhere.

TimescaleDB 2.18 and later: https://docs.timescale.com/api/latest/hypercore/
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

__all__ = ["Hypertable", "has_timescaledb", "make_hypertable"]


@dataclass(frozen=True, slots=True)
class Hypertable:
    """How one time-series table is cut and compressed."""

    table: str
    time_column: str
    chunk: timedelta
    segment_by: str
    """Columns that each compressed batch has one value of."""
    order_by: str


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


def make_hypertable(connection: sa.Connection, hypertable: Hypertable, *, compress_after: timedelta) -> None:
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
        {"table": hypertable.table, "after": compress_after},
    )
