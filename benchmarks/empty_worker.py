"""A Celery worker whose tasks.predict does nothing: what Celery, Redis and the caller cost by themselves.

Started as ``celery --app benchmarks.empty_worker worker`` with the options of an inference worker and its
Redis in ``BENCHMARK_REDIS_URL``; of the settings of ``worker.celery`` it has those that cost or save time.
"""

from __future__ import annotations

import json
import os
from typing import Any

import redis
from celery import Celery

__all__ = ["URL_VARIABLE", "app"]

URL_VARIABLE = "BENCHMARK_REDIS_URL"
REPLY_SECONDS = 60

app = Celery("empty")
app.conf.update(
    broker_url=os.environ[URL_VARIABLE],
    result_backend=os.environ[URL_VARIABLE],
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    task_acks_late=True,
    result_expires=3600,
    broker_connection_retry_on_startup=True,
    timezone="UTC",
)
server = redis.Redis.from_url(os.environ[URL_VARIABLE])


@app.task(name="tasks.predict", bind=True)  # type: ignore[untyped-decorator]
def predict(
    self: Any, _signals: object, reply_to: str | None = None, request_id: str | None = None
) -> dict[str, Any] | None:
    """Reply with no answers: as the result, or on the list ``reply_to``."""
    reply: dict[str, Any] = {"id": request_id or self.request.id, "answers": []}
    if reply_to is None:
        return reply
    with server.pipeline(transaction=False) as pipeline:
        pipeline.lpush(reply_to, json.dumps(reply))
        pipeline.expire(reply_to, REPLY_SECONDS)
        pipeline.execute()
    return None
