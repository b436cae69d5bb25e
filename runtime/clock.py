"""One clock. Every task takes its ``now`` from here: the wall, or a replay that walks through stored candles.

Leases, heartbeats and timeouts are not data: they use the database server's own clock.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

__all__ = ["Clock", "ReplayClock", "WallClock", "check_aware", "data_cut"]


class Clock(Protocol):
    """Source of ``now``."""

    def now(self) -> datetime:
        """The current time, aware, UTC."""
        ...


class WallClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """The wall time, UTC."""
        return datetime.now(UTC)


class ReplayClock:
    """Stands at ``start`` until ``position`` says otherwise, so that old candles behave as if they were new.

    Args:
        start: where the replay begins.
        position: reads the replay's shared position (None while nobody has moved it).
    """

    def __init__(self, start: datetime, position: Callable[[], datetime | None]) -> None:
        self._start = check_aware(start)
        self._position = position

    def now(self) -> datetime:
        """The replay's position, never before its start."""
        position = self._position()
        return self._start if position is None else max(self._start, check_aware(position))


def check_aware(moment: datetime) -> datetime:
    """Return ``moment`` in UTC.

    Raises:
        ValueError: it has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; expected an aware datetime")
    return moment.astimezone(UTC)


def data_cut(now: datetime, *, hour: int = 0) -> datetime:
    """The last ``hour`` o'clock UTC at or before ``now``: training reads nothing that was known later."""
    now = check_aware(now)
    cut = now.replace(hour=hour, minute=0, second=0, microsecond=0)
    return cut if cut <= now else cut - timedelta(days=1)
