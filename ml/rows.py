"""The table that models learn from: one row per pattern signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["SignalRows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRows:
    """Signals of one or more symbols of one interval, with features and meta-labels.

    Every array has shape (n,), but ``features`` (n, F). Rows are sorted by
    (close_time, symbol_code, direction). Times are ``datetime64[us]``, UTC.
    """

    symbols: tuple[str, ...]
    """Names; ``symbol_code`` indexes it."""
    feature_names: tuple[str, ...]
    symbol_code: NDArray[np.int16]
    close_time: NDArray[np.datetime64]
    """When the signal was known: its candle's close."""
    direction: NDArray[np.int8]
    """+1 long, -1 short."""
    regime: NDArray[np.int8]
    """Index into ``REGIMES``; rows without a regime are not kept."""
    patterns: NDArray[np.uint64]
    """Bit i: pattern i of ``PATTERN_NAMES`` fired in this direction."""
    pattern_confidence: NDArray[np.float64]
    """Point-in-time hit rate of the row's patterns, shrunk to the base rate; in [0, 1]."""
    features: NDArray[np.float32]
    """(n, F), columns as ``feature_names``; NaN only where a feature is undefined."""
    entry_price: NDArray[np.float64]
    atr: NDArray[np.float64]
    """Average true range at the signal, in price units."""
    label: NDArray[np.float64]
    """1.0 profit-take first, 0.0 stop or vertical barrier first, NaN not known."""
    label_end: NDArray[np.datetime64]
    """When the outcome became known; NaT where ``label`` is NaN."""
    gross_return_atr: NDArray[np.float64]
    """Signed return from entry to exit in ATR units before costs; NaN where ``label`` is NaN."""
    cost_atr: NDArray[np.float64]
    """Round-trip fees and slippage in ATR units."""
    uniqueness: NDArray[np.float64]
    """Average uniqueness of the label among those of its symbol, in (0, 1]; NaN where ``label`` is NaN."""

    def __len__(self) -> int:
        return len(self.close_time)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(n,) True where the outcome is known."""
        return ~np.isnan(self.label)

    def take(self, where: NDArray[Any]) -> Self:
        """Rows selected by a boolean mask or an index array of shape (m,), in the given order."""
        chosen = {
            field.name: getattr(self, field.name)[where]
            for field in fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        return replace(self, **chosen)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """One table of several single- or multi-symbol ones, codes renumbered, sorted again.

        Raises:
            ValueError: no part, or parts with different ``feature_names``.
        """
        if not parts:
            raise ValueError("concatenate needs at least one table")
        if len({part.feature_names for part in parts}) > 1:
            raise ValueError("parts have different feature_names")
        symbols = tuple(dict.fromkeys(name for part in parts for name in part.symbols))
        columns: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            if field.name == "symbol_code":
                values = [
                    np.array([symbols.index(name) for name in part.symbols], dtype=np.int16)[part.symbol_code]
                    for part in parts
                ]
            if isinstance(values[0], np.ndarray):
                columns[field.name] = np.concatenate(values)
        whole = cls(symbols=symbols, feature_names=parts[0].feature_names, **columns)
        order = np.lexsort((whole.direction, whole.symbol_code, whole.close_time))
        return whole.take(order)
