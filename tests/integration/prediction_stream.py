"""The prediction log in tests: requests into it, drains of it, what waits there."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import redis
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db.models import Prediction
from db.session import transaction
from tasks import prediction_log
from tasks.prediction_log import GROUP, STREAM, Drained, PredictionLog, drain

LIMIT = 100_000
Records = list[dict[str, Any]]


def log_requests(client: redis.Redis, requests: list[Records]) -> None:
    log = PredictionLog(client)
    for records in requests:
        assert log.record(json.dumps(records), None, "", 60, LIMIT)


def store(client: redis.Redis, engine: Engine, **options: Any) -> Drained:
    return drain(client, begin(engine), consumer="test", **options)


def begin(engine: Engine) -> Callable[[], AbstractContextManager[Session]]:
    return lambda: transaction(engine)


def stored(engine: Engine) -> list[str]:
    with transaction(engine) as session:
        return sorted(str(one) for one in session.scalars(sa.select(Prediction.id)))


def ids(requests: list[Records]) -> list[str]:
    return sorted(one["id"] for records in requests for one in records)


def waiting(client: redis.Redis) -> tuple[int, int]:
    """Entries of the stream, and those of them that a drain has taken."""
    pending: Any = client.xpending(STREAM, GROUP)
    return int(client.xlen(STREAM)), pending["pending"]


def let_taken_entries_age(client: redis.Redis) -> None:
    """As if the drains that have them had been silent for longer than a take-over waits."""
    taken: Any = client.xpending_range(STREAM, GROUP, "-", "+", 1000)
    for entry in taken:
        client.xclaim(
            STREAM, GROUP, entry["consumer"], 0, [entry["message_id"]],
            idle=prediction_log.TAKE_OVER_MS + 1, justid=True,
        )  # fmt: skip
