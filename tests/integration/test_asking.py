"""What a command says where no answer came: it sees the queue, and no worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from client import PredictionClient
from ml.errors import AnswerTimeout
from worker.asking import ask

pytestmark = pytest.mark.inference

SIGNAL = {"symbol": "BTCUSDT", "direction": 1}
MEANING = ": the inference workers are behind, or none runs; start one with `alphaplus worker inference`"


def reason(redis_url: str) -> str:
    with (
        PredictionClient(redis_url, timeout_seconds=0.2) as client,
        pytest.raises(AnswerTimeout) as caught,
    ):
        ask(client, [SIGNAL], redis_url=redis_url)
    return str(caught.value).removeprefix("no answer in time: ")


def test_requests_that_wait_may_have_workers_that_are_behind(redis_url: str) -> None:
    assert reason(redis_url) == f"1 request waits{MEANING}"
    assert reason(redis_url) == f"2 requests wait{MEANING}"


def test_a_request_that_left_the_queue_has_met_a_worker(redis_url: str) -> None:
    with (
        redis.Redis.from_url(redis_url) as server,
        PredictionClient(redis_url, timeout_seconds=5.0) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        asked = threads.submit(ask, client, [SIGNAL], redis_url=redis_url)
        assert server.brpop(["inference"], timeout=30)
        with pytest.raises(AnswerTimeout, match="a worker took the request"):
            asked.result()
