"""Asking the inference workers from the command line, and saying what is amiss where none answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import redis

from client import PredictionClient
from ml.errors import AnswerTimeout
from runtime.queues import INFERENCE

__all__ = ["ask"]

LOOK_SECONDS = 2.0


def ask(
    client: PredictionClient,
    signals: Sequence[Mapping[str, Any]],
    *,
    redis_url: str,
    request_id: str | None = None,
) -> list[dict[str, Any]]:
    """The answers to the signals, in order.

    Args:
        client: asks.
        signals: of the wire's form.
        redis_url: the client's own, where its queue is looked at after a timeout.
        request_id: asking again under the same one records the answers once.

    Raises:
        InputRejected, Busy, BrokerUnavailable: as ``PredictionClient.predict``.
        AnswerTimeout: with what the queue says of the reason.
    """
    try:
        return client.predict(signals, request_id=request_id)
    except AnswerTimeout as error:
        raise AnswerTimeout(f"no answer in time: {_reason(redis_url)}") from error


def _reason(redis_url: str) -> str:
    """A request that is still in the queue was seen by no worker."""
    try:
        with redis.Redis.from_url(redis_url, socket_timeout=LOOK_SECONDS) as server:
            waiting = server.llen(INFERENCE)
    except redis.RedisError as error:
        return f"Redis does not answer either ({error}); see that it runs"
    if waiting:
        wait = "1 request waits" if waiting == 1 else f"{waiting} requests wait"
        return (
            f"{wait}: the inference workers are behind, or none runs; start one with "
            "`alphaplus worker inference`"
        )
    return (
        "a worker took the request and has not answered; it is slow (try a longer --timeout) or was killed "
        "(then ask again)"
    )
