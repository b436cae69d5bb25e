"""What the echo worker is told and what it answers; see `echo_worker`."""

from __future__ import annotations

from typing import Any

import redis

__all__ = ["COMPUTED", "REPLIES", "Json", "connections", "echo"]

Json = dict[str, Any]

COMPUTED = "computed"
"""A key that counts what was computed."""

REPLIES: dict[str, Any] = {
    "BUSY": {"busy": {"reason": "queue", "value": 1200, "limit": 1000}},
    "FULL": {"busy": {"reason": "records", "limit": 100_000}},
    "FAILED": {"error": {"type": "WorkerFailed", "field": "request", "value": "r-1", "limit": "see the log"}},
    "GARBAGE": {"answers": "none"},
    **{
        kind: {"error": {"type": kind, "field": "direction", "value": "3", "limit": "1 or -1"}}
        for kind in ("InputRejected", "KeyRejected", "CandlesRejected", "ConfigRejected", "NewerRejected")
    },
}


def echo(name: str, symbol: str = "ECHO", wait: float = 0) -> Json:
    """A signal for the echo worker, which waits so many seconds before it answers."""
    return {"symbol": symbol, "id": name, "wait": wait}


def connections(server: redis.Redis) -> list[Json]:
    """Those of clients whose URL names them: ``?client_name=ours``."""
    return [one for one in server.client_list() if one["name"] == "ours"]
