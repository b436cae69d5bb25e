"""Arrow's columns as NumPy arrays.

Arrow's own ``to_numpy`` does the same, but imports pandas for it: half a second of every import command.
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

    return _plain(column.cast(pa.float64()), np.nan)


def to_integers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """(n,) of a column of whole numbers; 0 where a cell is null."""
    import pyarrow as pa

    return _plain(column.cast(pa.int64()), 0)


def to_times(column: pa.ChunkedArray) -> NDArray[np.datetime64]:
    """(n,) ``datetime64[us]``, UTC, of a column of timestamps or dates; NaT where a cell is null."""
    import pyarrow as pa

    zone = getattr(column.type, "tz", None)
    microseconds = column.cast(pa.timestamp("us", zone)).cast(pa.int64())
    return _plain(microseconds, np.datetime64("NaT").astype(np.int64).item()).view("datetime64[us]")


def _plain(column: pa.ChunkedArray, null: float) -> NDArray[Any]:
    filled = column.fill_null(null) if column.null_count else column  # making the scalar imports pandas, too
    chunks = [np.from_dlpack(chunk) for chunk in filled.chunks]
    return np.concatenate(chunks) if chunks else np.empty(0)
