"""A parquet file into ``Candles``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feeds.arrow import to_floats, to_integers, to_times
from feeds.columns import find_columns
from feeds.limits import Limits
from feeds.times import ZONE_LIMIT, epoch_times
from ml.candles import OHLCV, Candles
from ml.errors import CandlesRejected

if TYPE_CHECKING:
    import pyarrow as pa


__all__ = ["read_parquet"]


def read_parquet(path: Path, interval: str, *, now: datetime, assume_utc: bool, limits: Limits) -> Candles:
    """All candles of a parquet file. Times are timestamps or whole numbers, prices numbers of any width.

    Raises:
        CandlesRejected: names the first bad row, counted from 1, its column, value and limit.
        OSError: the file cannot be opened.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            limits.check_rows(file.metadata.num_rows)
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            limits.check_bytes(sum(group.total_byte_size for group in groups))
            header = file.schema_arrow.names
            columns = find_columns(header, where="the schema")
            for name in OHLCV:
                _check_number(file.schema_arrow.field(columns[name]))
            table = file.read(
                columns=[header[index] for index in columns.values()], use_pandas_metadata=False
            )
        times = _times(table.column(header[columns["open_time"]]), assume_utc=assume_utc)
        values = [to_floats(table.column(header[columns[name]])) for name in OHLCV]
    except pa.ArrowInvalid as error:
        raise CandlesRejected("file", str(path), f"a whole parquet file: {error}") from error
    candles = Candles(interval, times, *values)
    fault = candles.first_fault(now=now)
    if fault is not None:
        name = header[columns[fault.field]]
        raise CandlesRejected(f"row {fault.row + 1}, column {name}", fault.value, fault.limit)
    if not len(candles):
        raise CandlesRejected("file", "no candles", "at least one row")
    return candles


def _times(column: pa.ChunkedArray, *, assume_utc: bool) -> NDArray[np.datetime64]:
    """(n,) ``datetime64[us]``, NaT where the cell is null or a number of no known unit."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_integer(kind):
        return epoch_times(to_integers(column))
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise CandlesRejected("column open_time", str(kind), "a column of timestamps or whole numbers")
    if getattr(kind, "tz", None) is None and not assume_utc:
        raise CandlesRejected("column open_time", str(kind), ZONE_LIMIT)
    return to_times(column)


def _check_number(field: pa.Field) -> None:
    import pyarrow as pa

    kind = field.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise CandlesRejected(f"column {field.name}", str(kind), "a column of numbers")
