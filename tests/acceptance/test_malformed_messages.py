"""Messages that no client of ours sends: none ends a worker, none comes back to end the next."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from client.messages import encode_request
from tests.predicting import NOW, SIGNAL, Caller, check_answer, recorded, wait_until
from tests.processes import RunningProcess

pytestmark = pytest.mark.inference

Change = Callable[[dict[str, Any]], object]


def body(value: object) -> Change:
    """The body is this instead of arguments, options and embed."""
    return lambda envelope: envelope.update(body=base64.b64encode(json.dumps(value).encode()).decode())


def header(name: str, value: object) -> Change:
    return lambda envelope: envelope["headers"].update({name: value})


CHANGES: dict[str, Change] = {
    "two parts": body([[SIGNAL], {}]),
    "no part": body([]),
    "a number": body(5),
    "null": body(None),
    "an object": body({"signal": SIGNAL}),
    "embed is text": body([[SIGNAL], {}, "embed"]),
    "options are a list": body([[SIGNAL], [], {}]),
    "arguments are text": body(["signal", {}, {}]),
    "not base64": lambda envelope: envelope.update(body="§§§"),
    "no id": lambda envelope: envelope["headers"].pop("id"),
    "id is a list": header("id", ["x"]),
    "task is a list": header("task", ["tasks.predict"]),
    "task is an object": header("task", {}),
    "no such task": header("task", "tasks.prophesy"),
    "timelimit is a number": header("timelimit", 3),
    "timelimit is short": header("timelimit", [1]),
    "timelimit is text": header("timelimit", "x"),
    "expires is an object": header("expires", {}),
    "expires is a list": header("expires", []),
    "expires is no time": header("expires", "soon"),
    "eta is an object": header("eta", {}),
    "stamped headers are a number": header("stamped_headers", 5),
    "pickle": lambda envelope: envelope.update({"content-type": "application/x-python-serialize"}),
}


def test_a_worker_outlives_every_malformed_message(
    trained_env: dict[str, str], worker_process: Callable[..., RunningProcess], caller: Caller
) -> None:
    worker = worker_process("inference", "--pool=solo", env=trained_env)
    for change in CHANGES.values():
        caller.redis.lpush("inference", malformed(change))
    wait_until(lambda: caller.redis.llen("inference") == 0, "the queue to be empty")

    check_answer(caller.answer(SIGNAL))

    assert worker.running
    log = worker.log.read_text(errors="replace")
    assert "Connection to broker lost" not in log
    # Nothing waits to be delivered again, and nothing was answered but the one request.
    wait_until(lambda: caller.redis.hlen("unacked") == 0, "no message to be held")
    assert len(recorded(caller.redis)) == 1


def test_a_request_too_large_for_numpy_is_refused_and_small_in_memory(
    trained_env: dict[str, str], worker_process: Callable[..., RunningProcess], caller: Caller
) -> None:
    worker_process("inference", "--pool=solo", env=trained_env)
    rows: list[list[object]] = [[1, 1, 1, 1, 1, 1] for _ in range(2048)]
    rows[0][0] = "x" * 3_000_000
    refused = caller.ask(SIGNAL | {"candles": rows})
    assert refused["error"]["field"] == "candles[0]"
    assert len(refused["error"]["value"]) <= 80
    check_answer(caller.answer(SIGNAL))


def test_a_bad_option_beside_a_good_reply_list_is_told_there(
    trained_env: dict[str, str], worker_process: Callable[..., RunningProcess], caller: Caller
) -> None:
    worker_process("inference", "--pool=solo", env=trained_env)
    for name, value in {"request_id": "a b", "self": 1, "signal": SIGNAL}.items():
        caller.send(SIGNAL, **{name: value})
        assert caller.receive()["error"]["field"] == name
    caller.send(SIGNAL, request_id="mine-1")
    assert caller.receive()["id"] == "mine-1"


def malformed(change: Change) -> bytes:
    envelope: dict[str, Any] = json.loads(
        encode_request(
            SIGNAL,
            request_id=str(uuid4()),
            reply_list=f"alphaplus:reply:{uuid4()}",
            timeout_seconds=3600,
            now=NOW.replace(year=2999),
        )
    )
    change(envelope)
    return json.dumps(envelope).encode()
