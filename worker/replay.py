"""The replay's shared position: one key in Redis, moved forward only."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import redis

from ml.errors import BrokerUnavailable
from runtime.clock import check_aware

__all__ = ["POSITION_KEY", "move_replay", "replay_position"]

POSITION_KEY = "alphaplus:replay:now"

# Compared as text: ISO-8601 in UTC with the same width sorts as time does.
_MOVE_FORWARD = """
local old = redis.call('GET', KEYS[1])
if not old or old < ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
return redis.call('GET', KEYS[1])
"""


def replay_position(redis_url: str) -> Callable[[], datetime | None]:
    """A reader of the position; None while nobody has moved it. The reader raises BrokerUnavailable."""
    client = redis.Redis.from_url(
        redis_url, socket_timeout=10, socket_connect_timeout=5, decode_responses=True
    )

    def read() -> datetime | None:
        try:
            text = client.get(POSITION_KEY)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
            raise BrokerUnavailable(f"cannot read the replay's position: {error}") from error
        return None if text is None else datetime.fromisoformat(str(text))

    return read


def move_replay(redis_url: str, moment: datetime) -> datetime:
    """Move the position forward to ``moment`` (aware) and return where it stands: it never goes back."""
    text = check_aware(moment).isoformat(timespec="microseconds")
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        return datetime.fromisoformat(str(client.eval(_MOVE_FORWARD, 1, POSITION_KEY, text)))
