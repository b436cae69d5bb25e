"""What both clients share about Redis: its time limits, and what its errors mean to a caller."""

from __future__ import annotations

from typing import Any, Final

from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, RedisError

from client.messages import Outcome
from ml.errors import AnswerTimeout, BrokerUnavailable, Busy, RetryLater

__all__ = ["POP_SECONDS", "backoff_seconds", "closed", "connection_options", "missed", "not_sent"]

POP_SECONDS: Final = 1.0
"""One BRPOP at most. A connection that broke unseen holds its BRPOP on the server this long, and may swallow
an answer meanwhile."""
STALL_SECONDS: Final = 1.0
"""What the server gets beyond a command's own waiting before the connection counts as broken."""
MAX_BACKOFF_SECONDS: Final = 1.0
FIRST_BACKOFF_SECONDS: Final = 0.05


def connection_options(retry_class: type[Any]) -> dict[str, Any]:
    """Arguments of a connection pool, sync or async, whose ``Retry`` is ``retry_class``.

    The library's own retries are off: they sleep for seconds, whatever the caller's timeout.
    """
    return {
        "socket_timeout": POP_SECONDS + STALL_SECONDS,
        "socket_connect_timeout": POP_SECONDS + STALL_SECONDS,
        "socket_keepalive": True,
        "retry": retry_class(NoBackoff(), 0),
    }


def backoff_seconds(failures: int) -> float:
    """The pause before connecting again after so many failures in a row; none after the first.

    A server that was restarted answers at the first try; one that is away is asked once a second.
    """
    if failures <= 1:
        return 0.0
    return float(min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(failures - 2, 10)))


def not_sent(error: RedisError) -> RetryLater:
    """The error of a request that Redis did not take."""
    if isinstance(error, OutOfMemoryError):
        return Busy(f"Redis has no memory left: {error}; nothing was sent")
    return BrokerUnavailable(f"Redis did not take the request: {error}")


def missed(failure: RedisError | None, request_id: str, timeout_seconds: float) -> RetryLater:
    """The error of a request that was sent, and whose time is over.

    Args:
        failure: of the last look for replies; None when Redis answered.
        request_id: of the request.
        timeout_seconds: its time.
    """
    if failure is not None:
        return BrokerUnavailable(f"request {request_id}: Redis went away while waiting: {failure}")
    return AnswerTimeout(
        f"request {request_id}: no answer within {timeout_seconds:g} s; no inference worker runs, all are "
        "behind, or the one that had the request ended"
    )


def closed(request_id: str) -> Outcome:
    """What a call gets that waited while its client was closed."""
    return Outcome(request_id, [], AnswerTimeout("the client was closed before the answer came"))
