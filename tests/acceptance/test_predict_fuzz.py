"""Ten thousand mutated requests to a real worker: each is answered or refused by name, and it lives on."""

from __future__ import annotations

import base64
import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.features import FEATURE_NAMES
from tests.predicting import STREAM, Caller, at, check_answer, ohlcv_rows
from tests.processes import RunningProcess

pytestmark = pytest.mark.inference

REQUESTS = 10_000
TOGETHER = 20
"""Sent before the first reply is read."""

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["BTCUSDT", "1h", "long", "2019-10-01T00:00:00", "2019-10-01T00:00:00Z", "NaN"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)

BASES: list[dict[str, Any]] = [
    {"symbol": "BTCUSDT", "direction": 1},
    {"symbol": "BTCUSDT", "direction": -1, "patterns": ["CDLDOJI"], "confidence": 0.5, "id": "a",
     "time": at(0)},
    {"symbol": "ETHUSDT", "interval": "1h", "direction": 1, "patterns": ["CDLHAMMER", "CDLENGULFING"]},
    {"symbol": "NEWUSDT", "direction": 1, "candles": ohlcv_rows(count=20)},
    {"symbol": "NEWUSDT", "direction": 1,
     "candles": base64.b64encode(np.array(ohlcv_rows(count=20), "<f8").tobytes()).decode()},
    {"symbol": "BTCUSDT", "direction": 1, "time": at(0), "patterns": ["CDLDOJI"],
     "features": dict.fromkeys(FEATURE_NAMES, 0.5)},
]  # fmt: skip


def mutated(choose: random.Random, junk: list[Any]) -> Any:
    """A request with up to three changes anywhere in it: replaced, removed, added, doubled, wrapped."""
    value: Any = {"signal": copy.deepcopy(choose.choice(BASES))}
    for chosen in choose.choices(junk, k=choose.randrange(4)):
        thing = copy.deepcopy(chosen)
        parent: Any = value
        key: Any = "signal"
        while isinstance(parent[key], dict | list) and parent[key] and choose.random() < 0.75:
            parent = parent[key]
            key = choose.choice(list(parent) if isinstance(parent, dict) else list(range(len(parent))))
        match choose.randrange(5):
            case 0:
                parent[key] = thing
            case 1 if parent is not value:
                del parent[key]
            case 2 if isinstance(parent, dict) and parent is not value:
                parent[str(thing)[:9]] = thing
            case 3 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case _:
                parent[key] = [parent[key]]
    return value["signal"]


def check_refusal(reply: dict[str, Any]) -> None:
    """Typed, with field, value and limit, none of them long."""
    assert set(reply) == {"id", "error"}
    error = reply["error"]
    assert set(error) == {"type", "field", "value", "limit"}
    assert error["type"] in {"InputRejected", "KeyRejected", "CandlesRejected"}
    assert all(isinstance(part, str) and len(part) < 600 for part in error.values())
    assert error["limit"]


@pytest.mark.timeout(600)
def test_ten_thousand_mutated_requests_are_answered_or_refused_by_name(
    trained_env: dict[str, str], worker_process: Callable[..., RunningProcess], caller: Caller
) -> None:
    worker = worker_process("inference", "--pool=solo", env=trained_env)
    told = {"answers": 0, "error": 0}

    @settings(
        max_examples=REQUESTS // TOGETHER,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**32), junk=st.lists(JSON, min_size=3, max_size=8))
    def ask(seed: int, junk: list[Any]) -> None:
        choose = random.Random(seed)
        before = caller.redis.xlen(STREAM)
        sent = {caller.send(mutated(choose, junk)) for _ in range(TOGETHER)}
        replies = [caller.receive() for _ in range(TOGETHER)]
        assert {reply["id"] for reply in replies} == sent
        answered = [reply for reply in replies if "answers" in reply]
        refused = [reply for reply in replies if "answers" not in reply]
        for reply in answered:
            for answer in reply["answers"]:
                check_answer(answer)
        for reply in refused:
            check_refusal(reply)
        assert caller.redis.xlen(STREAM) == before + len(answered)
        told["answers"] += len(answered)
        told["error"] += len(refused)

    ask()

    # Both kinds in numbers, or the mutations test nothing.
    assert told["answers"] > REQUESTS / 5
    assert told["error"] > REQUESTS / 5
    assert worker.running
    lines = worker.log.read_text(errors="replace").splitlines()
    assert [line[:2000] for line in lines if "prediction_failed" in line or "Traceback" in line][:1] == []
