"""The prediction log: every answer is in a Redis stream before its caller has it.

A worker puts the records of a request into the stream and its answer on the caller's reply list in one
Lua script, so there is neither an answer without its record nor a wait for PostgreSQL.
"""

from __future__ import annotations

import re
from typing import Final

import redis

from ml.errors import Busy, InputRejected

__all__ = ["GROUP", "REPLY_PREFIX", "STREAM", "PredictionLog", "check_reply_key"]

STREAM: Final = "alphaplus:predictions"
GROUP: Final = "store"
FIELD: Final = "records"
"""Of an entry: a JSON array of records, those of one request."""

REPLY_PREFIX: Final = "alphaplus:reply:"
_REPLY_KEY = re.compile(re.escape(REPLY_PREFIX) + "[A-Za-z0-9-]{8,64}")

_RECORD = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then
    return 0
end
redis.call('XADD', KEYS[1], '*', ARGV[2], ARGV[3])
if KEYS[2] then
    redis.call('LPUSH', KEYS[2], ARGV[4])
    redis.call('EXPIRE', KEYS[2], ARGV[5])
end
return 1
"""


def check_reply_key(key: object) -> str:
    """Return ``key`` if a worker may write a reply there; any other key could be anybody's data.

    Raises:
        InputRejected: it is not the prefix and 8 to 64 of A-Z, a-z, 0-9 and "-".
    """
    if not isinstance(key, str) or not _REPLY_KEY.fullmatch(key):
        raise InputRejected("reply_to", key, f"{REPLY_PREFIX} and 8 to 64 of A-Z, a-z, 0-9 and -")
    return key


class PredictionLog:
    """The writing end of the stream.

    Args:
        client: of this process; used for nothing until the first record.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._record = client.register_script(_RECORD)

    def record(
        self, records_json: str, reply_key: str | None, reply_json: str, reply_seconds: int, limit: int
    ) -> bool:
        """Log the records of one request and push its reply, both or neither, in one round trip.

        Where the connection breaks, redis-py sends again, and so may log and reply twice: the second
        record has the first one's ids and is dropped on its way into the table.

        Args:
            records_json: JSON array of 1 to 256 records, keyed by the columns of ``ml_performance_tracking``.
            reply_key: as ``check_reply_key`` accepts it; None pushes nothing.
            reply_json: the reply; unused without ``reply_key``.
            reply_seconds: how long the reply list is kept.
            limit: no more requests than this wait in the stream.

        Returns:
            False if the stream is full: then nothing was logged and nothing pushed.

        Raises:
            Busy: Redis has no memory left; nothing was logged and nothing pushed.
        """
        keys = [STREAM] if reply_key is None else [STREAM, reply_key]
        try:
            recorded = self._record(keys, [limit, FIELD, records_json, reply_json, reply_seconds])
        except redis.exceptions.OutOfMemoryError as error:
            raise Busy(f"memory: {error}") from error
        return bool(recorded)
