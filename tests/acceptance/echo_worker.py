"""A real Celery worker that answers as a test tells it to: ``celery -A tests.acceptance.echo_worker worker``.

Its tasks.predict speaks the reply's format and nothing more. What to do stands in the first signal's
``symbol``: ECHO, or one of what a client must bear and no healthy worker does on request.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import Celery

from tests.acceptance.echo import COMPUTED, REPLIES

app = Celery("echo", broker=os.environ["ALPHAPLUS_REDIS_URL"], backend=os.environ["ALPHAPLUS_REDIS_URL"])
app.conf.worker_prefetch_multiplier = 8
app.conf.broker_connection_retry_on_startup = True
app.conf.broker_connection_max_retries = None
server = redis.Redis.from_url(os.environ["ALPHAPLUS_REDIS_URL"])


@app.task(name="tasks.predict", bind=True)
def predict(self: Any, signals: Any, reply_to: str, request_id: str) -> None:
    """Push what the first signal asks for; a number of seconds in ``wait`` comes first."""
    listed = signals if isinstance(signals, list) else [signals]
    first = listed[0]
    server.incr(COMPUTED)
    time.sleep(first.get("wait", 0))
    reply = REPLIES.get(first["symbol"]) or {"answers": [{"signal_id": one["id"]} for one in listed]}
    text = json.dumps({"id": request_id, **reply})
    copies = {"SILENT": [], "TWICE": [text, text], "NOISE": ["no json", "[1]", '{"id": "other"}', text]}
    for copy in copies.get(first["symbol"], [text]):
        server.lpush(reply_to, copy)
    server.expire(reply_to, 60)
