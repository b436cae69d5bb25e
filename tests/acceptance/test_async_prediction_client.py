"""The asyncio client against a real worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis

from client import AsyncPredictionClient
from ml.errors import AnswerTimeout, Busy
from tests.acceptance.echo import Json, connections, echo
from tests.processes import RunningProcess

pytestmark = pytest.mark.inference

WAIT_SECONDS = 60.0
"""Far over what anything here takes: a call without an answer shall fail its test, not hang it."""
REPLY_LISTS = "alphaplus:reply:*"

StartEcho = Callable[[str], RunningProcess]


def test_two_hundred_calls_at_once_on_one_event_loop(
    server: redis.Redis, redis_url: str, start_echo: StartEcho
) -> None:
    start_echo(redis_url)

    async def ask() -> list[list[Json]]:
        url = f"{redis_url}?client_name=ours"
        async with AsyncPredictionClient(url, timeout_seconds=WAIT_SECONDS) as client:
            answers = await asyncio.gather(*(client.predict(echo(str(call))) for call in range(200)))
            assert len(connections(server)) == 2
            return answers

    assert asyncio.run(ask()) == [[{"signal_id": str(call)}] for call in range(200)]
    assert server.keys(REPLY_LISTS) == []
    assert connections(server) == []


def test_an_async_call_times_out_is_cancelled_is_refused_and_the_client_goes_on(
    server: redis.Redis, redis_url: str, start_echo: StartEcho
) -> None:
    start_echo(redis_url)

    async def scenario() -> None:
        async with AsyncPredictionClient(redis_url, timeout_seconds=WAIT_SECONDS) as client:
            with pytest.raises(AnswerTimeout, match=r"no answer within 0[.]3 s"):
                await client.predict(echo("late", wait=0.6), timeout_seconds=0.3)
            assert await client.predict(echo("next")) == [{"signal_id": "next"}]
            with pytest.raises(Busy):
                await client.predict(echo("busy", "BUSY"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.predict(echo("cancelled", "SILENT"))
            many = [asyncio.create_task(client.predict(echo(f"{call}"))) for call in range(20)]
            await asyncio.sleep(0)
            for task in many[::2]:
                task.cancel()  # also while one of them is sending
            await asyncio.wait(many)
            assert [task.result() for task in many[1::2]] == [
                [{"signal_id": f"{call}"}] for call in range(1, 20, 2)
            ]

    asyncio.run(scenario())


def test_closing_an_async_client_ends_its_waiting_calls(redis_url: str) -> None:
    client = AsyncPredictionClient(redis_url, timeout_seconds=WAIT_SECONDS)

    async def scenario() -> None:
        waiting = [asyncio.create_task(client.predict(echo(str(call)))) for call in range(5)]
        await asyncio.sleep(0.2)
        await client.close()
        await client.close()
        for task in waiting:
            with pytest.raises(AnswerTimeout, match="closed"):
                await task
        with pytest.raises(RuntimeError, match="closed"):
            await client.predict(echo("after"))

    asyncio.run(scenario())


def test_an_async_client_refuses_another_event_loop(redis_url: str, start_echo: StartEcho) -> None:
    start_echo(redis_url)
    client = AsyncPredictionClient(redis_url, timeout_seconds=WAIT_SECONDS)
    with asyncio.Runner() as runner:
        assert runner.run(client.predict(echo("one"))) == [{"signal_id": "one"}]
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(client.predict(echo("two")))
        runner.run(client.close())
