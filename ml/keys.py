"""The name of a model: (symbol, interval, regime), and the vocabulary it is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from ml.errors import InputRejected, KeyRejected

__all__ = [
    "ALL_REGIMES",
    "INTERVALS",
    "MODEL_REGIMES",
    "REGIMES",
    "ModelKey",
    "check_note",
    "check_regime",
    "check_symbol",
    "interval_duration",
]

REGIMES = ("trending", "sideways", "volatile", "consolidation")
"""The four market regimes; a regime's code in arrays is its index here, -1 while the history is too short."""

ALL_REGIMES = "all"
"""The pseudo-regime of a symbol's model over every regime: the declared fallback."""

MODEL_REGIMES = (*REGIMES, ALL_REGIMES)

INTERVALS: dict[str, timedelta] = {
    "1m": timedelta(minutes=1),
    "5m": timedelta(minutes=5),
    "15m": timedelta(minutes=15),
    "30m": timedelta(minutes=30),
    "1h": timedelta(hours=1),
    "4h": timedelta(hours=4),
    "1d": timedelta(days=1),
}

NOTE_CHARACTERS = 200
_SYMBOL = re.compile(r"[A-Z0-9]{2,24}")


def check_note(field: str, note: object) -> str:
    """Return ``note`` if it is a short printable text, such as a job's reason; empty is fine.

    Raises:
        InputRejected: for anything else; names ``field``.
    """
    if not isinstance(note, str) or len(note) > NOTE_CHARACTERS or not (note.isprintable() or not note):
        raise InputRejected(field, note, f"printable text of at most {NOTE_CHARACTERS} characters")
    return note


def check_symbol(symbol: object) -> str:
    """Return ``symbol`` if it is 2 to 24 of A-Z and 0-9.

    Raises:
        KeyRejected: for anything else.
    """
    if not isinstance(symbol, str) or not _SYMBOL.fullmatch(symbol):
        raise KeyRejected("symbol", symbol, "2 to 24 of A-Z and 0-9, such as BTCUSDT")
    return symbol


def interval_duration(interval: object) -> timedelta:
    """Length of one candle.

    Raises:
        KeyRejected: ``interval`` is not one of ``INTERVALS``.
    """
    if not isinstance(interval, str) or interval not in INTERVALS:
        raise KeyRejected("interval", interval, "one of " + ", ".join(INTERVALS))
    return INTERVALS[interval]


def check_regime(regime: object) -> str:
    """Return ``regime`` if a model can be named after it.

    Raises:
        KeyRejected: it is not one of ``MODEL_REGIMES``.
    """
    if not isinstance(regime, str) or regime not in MODEL_REGIMES:
        raise KeyRejected("regime", regime, "one of " + ", ".join(MODEL_REGIMES))
    return regime


@dataclass(frozen=True, slots=True, order=True)
class ModelKey:
    """What a model answers for. Checked when made, so that a ModelKey in hand is a valid one.

    Raises:
        KeyRejected: a part is not of the vocabulary.
    """

    symbol: str
    interval: str
    regime: str

    def __post_init__(self) -> None:
        check_symbol(self.symbol)
        interval_duration(self.interval)
        check_regime(self.regime)

    def __str__(self) -> str:
        return f"{self.symbol} {self.interval} {self.regime}"

    @property
    def fallback(self) -> Self:
        """The key that answers where this one has no champion."""
        return type(self)(self.symbol, self.interval, ALL_REGIMES)
