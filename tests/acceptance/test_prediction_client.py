"""The prediction client against real workers: who gets which answer, and what the client bears."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from celery import Celery

from client import AsyncPredictionClient, PredictionClient
from ml.errors import (
    AnswerTimeout,
    BrokerUnavailable,
    Busy,
    InputRejected,
    KeyRejected,
)
from tests.acceptance.echo import COMPUTED, Json, connections, echo
from tests.processes import RunningProcess

pytestmark = pytest.mark.inference

WAIT_SECONDS = 60.0
"""Far over what anything here takes: a call without an answer shall fail its test, not hang it."""
REPLY_LISTS = "alphaplus:reply:*"

StartEcho = Callable[[str], RunningProcess]


@pytest.fixture
def client(redis_url: str) -> Iterator[PredictionClient]:
    url = f"{redis_url}?client_name=ours"
    with PredictionClient(url, timeout_seconds=WAIT_SECONDS) as client:
        yield client


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waiting for {what}"
        time.sleep(0.02)


def envelope(server: redis.Redis) -> Json:
    """The newest request in the queue, taken out of it."""
    text = server.lpop("inference")
    assert isinstance(text, str)
    found: Json = json.loads(text)
    return found


def test_sixteen_threads_on_one_client_get_each_its_own_answers(
    client: PredictionClient, server: redis.Redis, redis_url: str, start_echo: StartEcho
) -> None:
    """Two workers, and every third answer is slow: replies come in another order than requests."""
    start_echo(redis_url)
    start_echo(redis_url)

    def ask(thread: int) -> list[list[Json]]:
        return [client.predict(echo(f"{thread}-{call}", wait=0 if call % 3 else 0.005)) for call in range(50)]

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(16)))
    assert answers == [[[{"signal_id": f"{t}-{call}"}] for call in range(50)] for t in range(16)]
    assert len(connections(server)) == 2
    client.close()
    wait_until(lambda: not connections(server), "the connections' end")


def test_a_list_is_answered_in_its_order(
    client: PredictionClient, redis_url: str, start_echo: StartEcho
) -> None:
    start_echo(redis_url)
    names = ["b", "a", "c"]
    assert client.predict([echo(name) for name in names]) == [{"signal_id": name} for name in names]
    assert client.predict(tuple(echo(name) for name in names)) == [{"signal_id": name} for name in names]


def test_what_nobody_waits_for_any_more_is_not_computed(
    client: PredictionClient, server: redis.Redis, redis_url: str, start_echo: StartEcho
) -> None:
    with pytest.raises(AnswerTimeout, match=r"no answer within 0[.]2 s"):
        client.predict(echo("early"), timeout_seconds=0.2)
    assert server.llen("inference") == 1
    start_echo(redis_url)
    assert client.predict(echo("now")) == [{"signal_id": "now"}]
    assert server.llen("inference") == 0
    assert server.get(COMPUTED) == "1"


def test_a_late_reply_a_second_copy_and_noise_are_nobodys_answers(
    client: PredictionClient, server: redis.Redis, redis_url: str, start_echo: StartEcho
) -> None:
    start_echo(redis_url)
    with pytest.raises(AnswerTimeout):
        client.predict(echo("late", wait=0.5), timeout_seconds=0.25)
    assert client.predict(echo("next")) == [{"signal_id": "next"}]
    assert client.predict(echo("twice", "TWICE")) == [{"signal_id": "twice"}]
    assert client.predict(echo("noise", "NOISE")) == [{"signal_id": "noise"}]
    with pytest.raises(AnswerTimeout):
        client.predict(echo("garbage", "GARBAGE"), timeout_seconds=0.5)
    assert client.predict(echo("last")) == [{"signal_id": "last"}]
    assert server.get(COMPUTED) == "6"
    assert server.keys(REPLY_LISTS) == []


def test_refusals_arrive_and_the_client_goes_on(
    client: PredictionClient, redis_url: str, start_echo: StartEcho
) -> None:
    start_echo(redis_url)
    with pytest.raises(KeyRejected) as rejected:
        client.predict(echo("wrong", "KeyRejected"))
    assert (rejected.value.field, rejected.value.value, rejected.value.limit) == ("direction", "3", "1 or -1")
    with pytest.raises(Busy):
        client.predict(echo("busy", "BUSY"))
    with pytest.raises(InputRejected, match="not JSON compliant"):
        client.predict({"symbol": "ECHO", "id": "nan", "wait": float("nan")})
    assert client.predict(echo("right")) == [{"signal_id": "right"}]


def test_a_caller_that_gives_up_leaves_the_others_their_answers(
    client: PredictionClient, redis_url: str, start_echo: StartEcho
) -> None:
    """The first to wait reads for all; when its time is over, another one reads on."""
    start_echo(redis_url)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(client.predict, echo("first", "SILENT"), timeout_seconds=0.5)
        second = threads.submit(client.predict, echo("second", "SILENT"), timeout_seconds=0.8)
        third = threads.submit(client.predict, echo("third", wait=1.2))
        for gave_up in (first, second):
            with pytest.raises(AnswerTimeout):
                gave_up.result()
        assert third.result() == [{"signal_id": "third"}]


def test_close_ends_the_waiting_calls_and_removes_the_list(
    client: PredictionClient, server: redis.Redis, redis_url: str
) -> None:
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(client.predict, echo(str(call))) for call in range(4)]
        wait_until(lambda: server.llen("inference") == 4, "four requests")
        reply_list = json.loads(base64.b64decode(envelope(server)["body"]))[1]["reply_to"]
        started = time.monotonic()
        client.close()
        for call in calls:
            with pytest.raises(AnswerTimeout, match="closed"):
                call.result()
    assert time.monotonic() - started < WAIT_SECONDS / 2
    server.lpush(reply_list, "late")
    client.close()
    assert server.keys(REPLY_LISTS) == [reply_list]
    with pytest.raises(RuntimeError, match="closed"):
        client.predict(echo("after"))


def test_replies_that_nobody_read_go_with_the_client(
    client: PredictionClient, server: redis.Redis, redis_url: str, start_echo: StartEcho
) -> None:
    worker = start_echo(redis_url)
    with pytest.raises(AnswerTimeout):
        client.predict(echo("late", wait=0.6), timeout_seconds=0.3)
    worker.wait_for(lambda: server.keys(REPLY_LISTS) != [], "a late reply")
    client.close()
    assert server.keys(REPLY_LISTS) == []


def test_two_waiting_calls_cannot_share_an_id(
    client: PredictionClient, server: redis.Redis, redis_url: str, start_echo: StartEcho
) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.predict, echo("one"), request_id="mine-1")
        wait_until(lambda: server.llen("inference") == 1, "the first request")
        with pytest.raises(InputRejected, match="no other call is waiting"):
            client.predict(echo("two"), request_id="mine-1")
        start_echo(redis_url)
        assert waiting.result() == [{"signal_id": "one"}]
    assert client.predict(echo("two"), request_id="mine-1") == [{"signal_id": "two"}]


def test_a_fork_has_its_own_list_and_leaves_the_parents_alone(
    client: PredictionClient, redis_url: str, start_echo: StartEcho
) -> None:
    start_echo(redis_url)
    assert client.predict(echo("before")) == [{"signal_id": "before"}]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        answers.put([client.predict(echo(f"child-{call}")) for call in range(20)])
        client.close()

    process = context.Process(target=child)
    process.start()
    parents = [client.predict(echo(f"parent-{call}")) for call in range(20)]
    process.join(WAIT_SECONDS)
    assert process.exitcode == 0
    assert answers.get() == [[{"signal_id": f"child-{call}"}] for call in range(20)]
    assert parents == [[{"signal_id": f"parent-{call}"}] for call in range(20)]
    assert client.predict(echo("after")) == [{"signal_id": "after"}]


def test_the_same_clients_work_again_after_redis_was_killed(
    start_valkey: Callable[[], tuple[RunningProcess, str]], start_echo: StartEcho
) -> None:
    valkey, url = start_valkey()
    start_echo(url)

    async def ask(client: AsyncPredictionClient, name: str, seconds: float) -> list[Json]:
        return await client.predict(echo(name), timeout_seconds=seconds)

    with PredictionClient(url) as client, asyncio.Runner() as runner:
        aclient = AsyncPredictionClient(url)
        assert client.predict(echo("one"), timeout_seconds=WAIT_SECONDS) == [{"signal_id": "one"}]
        assert runner.run(ask(aclient, "two", WAIT_SECONDS)) == [{"signal_id": "two"}]
        with ThreadPoolExecutor(2) as threads:
            waiting = [
                threads.submit(client.predict, echo(name, "SILENT"), timeout_seconds=3) for name in "ab"
            ]
            with redis.Redis.from_url(url) as server:
                wait_until(lambda: server.get(COMPUTED) == b"4", "the silent requests")
            valkey.kill()
            for call in waiting:
                with pytest.raises(BrokerUnavailable, match="went away while waiting"):
                    call.result()
        with pytest.raises(BrokerUnavailable, match="did not take the request"):
            client.predict(echo("away"))
        with pytest.raises(BrokerUnavailable, match="did not take the request"):
            runner.run(ask(aclient, "away", 5))
        start_valkey()
        assert client.predict(echo("back"), timeout_seconds=WAIT_SECONDS) == [{"signal_id": "back"}]
        assert runner.run(ask(aclient, "again", WAIT_SECONDS)) == [{"signal_id": "again"}]
        runner.run(aclient.close())


def test_connections_that_redis_dropped_meanwhile_cost_no_call(
    client: PredictionClient, server: redis.Redis, redis_url: str, start_echo: StartEcho
) -> None:
    start_echo(redis_url)
    for name in ("one", "two"):
        assert client.predict(echo(name)) == [{"signal_id": name}]
        for connection in connections(server):
            server.client_kill_filter(_id=connection["id"])


def test_a_redis_that_restarts_while_calls_wait_costs_no_answer(
    start_valkey: Callable[[], tuple[RunningProcess, str]], start_echo: StartEcho
) -> None:
    """The request is in the append-only file, both clients look for their replies again."""
    valkey, url = start_valkey()

    async def ask() -> list[Json]:
        async with AsyncPredictionClient(url, timeout_seconds=WAIT_SECONDS) as client:
            return await client.predict(echo("c"))

    with PredictionClient(url, timeout_seconds=WAIT_SECONDS) as client, ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(client.predict, echo(name)) for name in "ab"]
        waiting.append(threads.submit(asyncio.run, ask()))
        with redis.Redis.from_url(url) as server:
            wait_until(lambda: server.llen("inference") == 3, "the requests")
            server.bgrewriteaof()  # writes the file whole, also what is not synced yet
            wait_until(lambda: server.info("persistence")["aof_rewrite_in_progress"] == 0, "the file")
        valkey.kill()
        start_valkey()
        start_echo(url)
        assert [call.result() for call in waiting] == [[{"signal_id": name}] for name in "abc"]


def test_a_full_redis_is_busy(start_valkey: Callable[[], tuple[RunningProcess, str]]) -> None:
    _, url = start_valkey()
    with redis.Redis.from_url(url) as server, PredictionClient(url) as client:
        server.config_set("maxmemory", "1")
        with pytest.raises(Busy, match="nothing was sent"):
            client.predict(echo("full"))


def test_the_message_holds_what_celery_itself_would_send(
    server: redis.Redis, client: PredictionClient, redis_url: str
) -> None:
    with pytest.raises(AnswerTimeout):
        client.predict(echo("ours"), timeout_seconds=0.1)
    ours = envelope(server)
    app = Celery("sender", broker=redis_url, backend=redis_url)
    headers = ours["headers"]
    app.send_task(
        "tasks.predict", [echo("ours")], {"reply_to": "x", "request_id": "y"}, queue="inference",
        task_id=headers["id"],
        expires=headers["expires"], ignore_result=True,
    )  # fmt: skip
    celerys = envelope(server)
    app.close()
    unused: Json = {"shadow": None, "group_index": None, "replaced_task_nesting": 0}
    unused |= {"stamped_headers": None, "stamps": {}}
    for described in ("argsrepr", "kwargsrepr", "origin"):
        celerys["headers"][described] = headers[described]
    assert headers | unused == celerys["headers"]
    for of_each in ("delivery_tag", "reply_to"):
        assert len({message["properties"].pop(of_each) for message in (ours, celerys)}) == 2
    celerys["properties"].pop("expiration", None)
    assert ours["properties"] == celerys["properties"]
    assert {key: ours[key] for key in ours if "content" in key} == {
        key: celerys[key] for key in celerys if "content" in key
    }
    assert ours.keys() == celerys.keys()
