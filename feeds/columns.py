"""Which column of a table is which: header names in any order and case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ml.candles import OHLCV
from ml.errors import CandlesRejected

__all__ = ["find_columns"]

TIME_NAMES: Final = ("open_time", "opentime", "timestamp", "datetime", "time", "date", "unix", "ts")
"""Where a table has several of these, the first of this list is taken."""


def find_columns(header: Sequence[str], *, where: str) -> dict[str, int]:
    """Index into ``header`` of ``open_time``, ``open``, ``high``, ``low``, ``close`` and ``volume``.

    Case, surrounding space, and a prefix that ends in a dot (``BTC.open``) do not matter; columns of other
    names are left alone.

    Raises:
        CandlesRejected: a column is missing or there twice; ``where`` names the header's place.
    """
    names = [_plain(name) for name in header]
    found = {}
    for wanted in OHLCV:
        if names.count(wanted) > 1:
            raise CandlesRejected(f"{where}, column {wanted}", _listed(header), "one column of that name")
        if wanted in names:
            found[wanted] = names.index(wanted)
    time_name = next((name for name in TIME_NAMES if name in names), None)
    if time_name is not None:
        found["open_time"] = names.index(time_name)
    for wanted in ("open_time", *OHLCV):
        if wanted not in found:
            accepted = " or ".join(TIME_NAMES) if wanted == "open_time" else wanted
            raise CandlesRejected(f"{where}, column {wanted}", _listed(header), f"a column named {accepted}")
    return {wanted: found[wanted] for wanted in ("open_time", *OHLCV)}


def _plain(name: str) -> str:
    return name.strip().rpartition(".")[2].lower().replace(" ", "_")


def _listed(header: Sequence[str]) -> str:
    return ", ".join(name.strip() for name in header)
