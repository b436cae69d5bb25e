"""The clock that the settings ask for."""

from __future__ import annotations

from runtime.clock import Clock, ReplayClock, WallClock
from runtime.settings import Settings

__all__ = ["make_clock"]


def make_clock(settings: Settings) -> Clock:
    """The wall's, or where a replay's start is set that replay's, shared through Redis."""
    if settings.clock == "wall" or settings.replay_start is None:
        return WallClock()
    from worker.replay import replay_position

    return ReplayClock(settings.replay_start, replay_position(settings.required_redis_url))
