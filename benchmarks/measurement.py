"""A row of the benchmarks' table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Measurement", "median_seconds"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured, against its limit and beside its peer."""

    name: str
    median: float
    """In ``unit``; of ``runs`` runs."""
    unit: str
    limit: float | None
    """In ``unit``; None where the row is there to be read, not to be kept."""
    runs: int
    note: str = ""
    peer: float | None = None
    """The same done by another library, in ``unit``."""
    peer_name: str = ""
    at_least: bool = False
    """True where ``limit`` is a floor (a throughput) and not a ceiling."""

    @property
    def verdict(self) -> str:
        """``ok``, ``MISSED``, or empty where there is no limit. A value at its limit is ok."""
        if self.limit is None:
            return ""
        kept = self.median >= self.limit if self.at_least else self.median <= self.limit
        return "ok" if kept else "MISSED"


def median_seconds(work: Callable[[], object], *, runs: int, warm_up: int = 1) -> float:
    """Median wall time of ``work()`` over ``runs`` calls, after ``warm_up`` calls that do not count."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
