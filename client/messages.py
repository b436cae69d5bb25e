"""What goes over the wire, without any I/O: the request as bytes, the reply as an outcome.

The request is a task message as Celery itself would send it (protocol 2) in the envelope of kombu's Redis
transport, so that a worker cannot tell the two apart:
https://docs.celeryq.dev/en/stable/internals/protocol.html
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final
from uuid import uuid4

from ml.errors import (
    AlphaPlusError,
    Busy,
    CandlesRejected,
    ConfigRejected,
    InputRejected,
    KeyRejected,
    RetryLater,
)

__all__ = [
    "QUEUE",
    "TASK",
    "Outcome",
    "checked_request_id",
    "checked_timeout",
    "encode_request",
    "new_reply_list",
    "read_reply",
]

QUEUE: Final = "inference"
TASK: Final = "tasks.predict"
REPLY_PREFIX: Final = "alphaplus:reply:"
MAX_TIMEOUT_SECONDS: Final = 3600.0
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9-]{1,100}")

REJECTIONS: Final[dict[str, type[InputRejected]]] = {
    kind.__name__: kind for kind in (InputRejected, KeyRejected, CandlesRejected, ConfigRejected)
}
WORKER_FAILED: Final = "WorkerFailed"
"""The type of an error that is the worker's own: a bug, or a server that went away under it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: its answers, or the error to raise."""

    request_id: str
    answers: list[dict[str, Any]]
    error: AlphaPlusError | None = None

    def unwrap(self) -> list[dict[str, Any]]:
        """The answers, in the order of the signals.

        Raises:
            InputRejected: or one of its kinds, as the worker named it.
            Busy: the worker shed the request.
            RetryLater: the worker failed.
        """
        if self.error is not None:
            raise self.error
        return self.answers


def new_reply_list() -> str:
    """The key of a list that only one client reads."""
    return f"{REPLY_PREFIX}{uuid4()}"


def checked_request_id(request_id: str | None) -> str:
    """The caller's id of the request, or a new one.

    Raises:
        InputRejected: not 1 to 100 letters, digits and hyphens.
    """
    if request_id is None:
        return str(uuid4())
    if not (isinstance(request_id, str) and REQUEST_ID.fullmatch(request_id)):
        raise InputRejected("request_id", request_id, "1 to 100 of A-Z, a-z, 0-9 and -")
    return request_id


def checked_timeout(timeout_seconds: float) -> float:
    """The timeout, if it is one.

    Raises:
        ConfigRejected: not a number over 0 and up to an hour.
    """
    if not (isinstance(timeout_seconds, int | float) and 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS):
        raise ConfigRejected(
            "timeout_seconds", timeout_seconds, f"over 0 and at most {MAX_TIMEOUT_SECONDS:g}"
        )
    return float(timeout_seconds)


def encode_request(
    signal: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    request_id: str,
    reply_list: str,
    timeout_seconds: float,
    now: datetime,
) -> bytes:
    """The bytes to LPUSH on the list ``inference``.

    Args:
        signal: one signal or a list of them; what the fields mean is the worker's to judge.
        request_id: comes back in the reply; the same for a request that is asked again.
        reply_list: where the worker shall push the reply.
        timeout_seconds: after which no worker shall begin to compute it.
        now: aware; the sender's wall clock.

    Raises:
        InputRejected: ``signal`` cannot be written as JSON (NaN, a datetime, a numpy integer).
    """
    one_or_many = _packed(signal) if isinstance(signal, Mapping) else signal
    if not isinstance(signal, Mapping | str):
        one_or_many = [_packed(one) for one in signal]
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    try:
        options = {"reply_to": reply_list, "request_id": request_id}
        body = json.dumps([[one_or_many], options, embed], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputRejected("signal", str(error), "JSON: text, finite numbers, true, false, null") from error
    # Of each message its own: a worker that met an expired one takes no other of its id.
    task_id = str(uuid4())
    expires = now + timedelta(seconds=timeout_seconds)
    envelope = {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": _headers(task_id, expires.astimezone(UTC).isoformat()),
        "properties": {
            "correlation_id": task_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            # The worker's list of unacknowledged messages is by this tag.
            "delivery_tag": str(uuid4()),
        },
    }
    return json.dumps(envelope).encode()


def _packed(signal: Any) -> Any:
    """The signal with its rows of candles as base64 of float64: to write and to read a thousand of them as
    JSON takes 3 ms. What does not fit goes as it is, for the worker to name what is wrong."""
    rows = signal.get("candles") if isinstance(signal, Mapping) else None
    if not isinstance(rows, list):
        return signal
    try:
        if set(map(len, rows)) != {6}:
            return signal
        packed = struct.pack(f"<{6 * len(rows)}d", *chain.from_iterable(rows))
    except (TypeError, OverflowError, struct.error):
        return signal
    return {**signal, "candles": base64.b64encode(packed).decode("ascii")}


def read_reply(raw: bytes | str) -> Outcome | None:
    """What a worker pushed on a reply list; None for what no worker writes, which is nobody's answer."""
    try:
        reply = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(reply, dict) or not isinstance(reply.get("id"), str):
        return None
    request_id, answers = reply["id"], reply.get("answers")
    if isinstance(answers, list):
        return Outcome(request_id, answers)
    if isinstance(reply.get("busy"), dict):
        return Outcome(request_id, [], _busy(reply["busy"]))
    if isinstance(reply.get("error"), dict):
        return Outcome(request_id, [], _failure(reply["error"]))
    return None


def _headers(task_id: str, expires: str) -> dict[str, Any]:
    return {
        "lang": "py",
        "task": TASK,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "eta": None,
        "expires": expires,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "",  # shown by Flower; a request may hold 100 kB of candles
        "kwargsrepr": "",
        "origin": "alphaplus-client",
        "ignore_result": True,
    }


def _failure(error: Mapping[str, Any]) -> AlphaPlusError:
    if error.get("type") == WORKER_FAILED:
        return RetryLater(f"the worker failed at request {error.get('value')}; {error.get('limit')}")
    kind = REJECTIONS.get(str(error.get("type")), InputRejected)
    return kind(str(error.get("field", "")), error.get("value"), str(error.get("limit", "")))


def _busy(busy: Mapping[str, Any]) -> Busy:
    value = "" if busy.get("value") is None else f" at {busy['value']}"
    what = f"{busy.get('reason')}{value}, limit {busy.get('limit')}"
    return Busy(f"the inference workers are busy: {what}; try later")
