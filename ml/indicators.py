"""TA-Lib's functions as they are in C: ``ta.RSI(close, 14)`` of contiguous float64 arrays.

The package wraps each in a search for pandas and polars among its arguments, which on the candles of a live
request takes longer than most of the functions.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import talib

__all__ = ["ta"]

ta = SimpleNamespace(
    **{name: inspect.unwrap(getattr(talib, name)) for name in talib.__all__ if name.isupper()}
)
