"""Arrow's columns as NumPy arrays.

Arrow's own ``to_numpy`` does the same, but imports pandas for it: half a second of every import command.
A cast imports ``pyarrow.compute``, a tenth: it is made only where the type is another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["to_floats", "to_integers", "to_times"]


def to_floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """(n,) of a column of numbers of any kind; NaN where a cell is null."""
    import pyarrow as pa

    return _plain(_as(column, pa.float64()), np.nan)


def to_integers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """(n,) of a column of whole numbers; 0 where a cell is null."""
    import pyarrow as pa

    return _plain(_as(column, pa.int64()), 0)


def to_times(column: pa.ChunkedArray) -> NDArray[np.datetime64]:
    """(n,) ``datetime64[us]``, UTC, of a column of timestamps or dates; NaT where a cell is null."""
    import pyarrow as pa

    column = _as(column, pa.timestamp("us", getattr(column.type, "tz", None)))
    numbers = pa.chunked_array([chunk.view(pa.int64()) for chunk in column.chunks], pa.int64())
    return _plain(numbers, np.datetime64("NaT").astype(np.int64).item()).view("datetime64[us]")


def _as(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


def _plain(column: pa.ChunkedArray, null: float) -> NDArray[Any]:
    filled = column.fill_null(null) if column.null_count else column
    chunks = [np.from_dlpack(chunk) for chunk in filled.chunks]
    return np.concatenate(chunks) if chunks else np.empty(0)
