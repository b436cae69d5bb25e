"""From Redis into PostgreSQL: each record once, whoever dies on the way."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db.models import Prediction
from db.schema import upgrade
from db.session import create_engine, transaction
from ml.errors import Busy, InputRejected, StoreUnavailable
from tasks import prediction_log
from tasks.prediction_log import GROUP, REJECTED, STREAM, Drained, PredictionLog, check_reply_key, drain
from tests.integration.db.rows import race
from tests.integration.db.test_predictions import record
from tests.processes import ROOT, RunningProcess
from worker import server_home
from worker.local import LocalServers, local_servers, start_servers

pytestmark = pytest.mark.inference

REPLY_KEY = "alphaplus:reply:0123456789abcdef"
LIMIT = 100_000
Records = list[dict[str, Any]]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(scope="module")
def own_servers() -> Iterator[LocalServers]:
    """Servers that a test may stop, fill and reconfigure; the database is at the head of the migrations."""
    top = Path(tempfile.mkdtemp(prefix="alphaplus-log-"))
    top.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_home, "ROOT_STATE", top / "var-lib")
        with local_servers(top / "data") as servers:
            upgrade(servers.record.database_url)
            yield servers
    shutil.rmtree(top)


@pytest.fixture
def own_client(own_servers: LocalServers) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(own_servers.record.redis_url) as client:
        client.flushdb()
        yield client


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


# Writing


def test_a_record_and_its_reply_are_there_together_and_the_reply_expires(client: redis.Redis) -> None:
    log = PredictionLog(client)
    assert log.record('[{"a": 1}]', REPLY_KEY, '{"b": "ü"}', 37, LIMIT)
    entries: Any = client.xrange(STREAM)
    assert [fields for _, fields in entries] == [{b"records": b'[{"a": 1}]'}]
    assert client.lrange(REPLY_KEY, 0, -1) == ['{"b": "ü"}'.encode()]
    assert 0 < int(client.ttl(REPLY_KEY)) <= 37


def test_without_a_reply_key_only_the_record_is_written(client: redis.Redis) -> None:
    assert PredictionLog(client).record("[]", None, "unused", 60, LIMIT)
    assert client.keys() == [STREAM.encode()]


def test_a_full_stream_takes_neither_record_nor_reply(client: redis.Redis) -> None:
    log = PredictionLog(client)
    assert [log.record("[]", REPLY_KEY, str(number), 60, 2) for number in range(3)] == [True, True, False]
    assert client.xlen(STREAM) == 2
    assert client.lrange(REPLY_KEY, 0, -1) == [b"1", b"0"]
    assert log.record("[]", REPLY_KEY, "3", 60, 3)


def test_a_server_that_has_forgotten_the_script_gets_it_again(client: redis.Redis) -> None:
    log = PredictionLog(client)
    assert log.record("[]", None, "", 60, LIMIT)
    client.script_flush()
    assert log.record("[]", None, "", 60, LIMIT)
    assert client.xlen(STREAM) == 2


def test_full_memory_is_busy_and_writes_neither(own_client: redis.Redis) -> None:
    log = PredictionLog(own_client)
    assert log.record("[]", REPLY_KEY, "first", 60, LIMIT)
    own_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(Busy, match="memory"):
            log.record("[]", REPLY_KEY, "second", 60, LIMIT)
        assert (own_client.xlen(STREAM), own_client.llen(REPLY_KEY)) == (1, 1)
    finally:
        own_client.config_set("maxmemory", 0)
    assert log.record("[]", REPLY_KEY, "third", 60, LIMIT)
    assert (own_client.xlen(STREAM), own_client.llen(REPLY_KEY)) == (2, 2)


def test_what_is_stored_leaves_a_full_memory(own_servers: LocalServers, own_client: redis.Redis) -> None:
    engine = create_engine(own_servers.record.database_url, application_name="tests", pooled=False)
    good, poison = [record()], "not JSON"
    log_requests(own_client, [good])
    assert PredictionLog(own_client).record(poison, None, "", 60, LIMIT)
    own_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):  # the bad one has no place to go to
            store(own_client, engine)
        assert set(ids([good])) <= set(stored(engine))
        assert waiting(own_client) == (1, 1)
    finally:
        own_client.config_set("maxmemory", 0)
    let_taken_entries_age(own_client)
    assert store(own_client, engine) == Drained(entries=1, rows=0, rejected=1)
    assert waiting(own_client) == (0, 0)


@pytest.mark.parametrize("name", ["a" * 8, "0123456789-abcdef-ABCDEF", "Z" * 64])
def test_a_reply_key_of_the_prefix_is_accepted(name: str) -> None:
    assert check_reply_key(f"alphaplus:reply:{name}") == f"alphaplus:reply:{name}"


@pytest.mark.parametrize(
    "key",
    [
        "inference",
        STREAM,
        "alphaplus:reply:",
        "alphaplus:reply:" + "a" * 7,
        "alphaplus:reply:" + "a" * 65,
        "alphaplus:reply:aaaaaaaa\n",
        "alphaplus:reply:aaaa:aaaa",
        "alphaplus:reply:aaaaaaaü",
        "ALPHAPLUS:REPLY:aaaaaaaa",
        " alphaplus:reply:aaaaaaaa",
        7,
        None,
        ["alphaplus:reply:aaaaaaaa"],
    ],
)
def test_any_other_reply_key_is_refused(key: object) -> None:
    with pytest.raises(InputRejected) as refused:
        check_reply_key(key)
    assert refused.value.field == "reply_to"


# Draining


def test_each_record_becomes_one_row_and_leaves_the_stream(client: redis.Redis, engine: Engine) -> None:
    requests = [[record()], [record(), record()], [], [record() for _ in range(256)]]
    log_requests(client, requests)
    assert store(client, engine, batch=2) == Drained(entries=4, rows=259, rejected=0)
    assert stored(engine) == ids(requests)
    assert waiting(client) == (0, 0)
    assert store(client, engine) == Drained(entries=0, rows=0, rejected=0)
    later = [[record()]]
    log_requests(client, later)
    assert store(client, engine) == Drained(entries=1, rows=1, rejected=0)
    assert stored(engine) == ids(requests + later)


def test_an_empty_log_needs_neither_stream_nor_database(client: redis.Redis) -> None:
    nowhere = create_engine("postgresql://nobody@127.0.0.1:9/none", application_name="tests", pooled=False)
    assert store(client, nowhere) == Drained(entries=0, rows=0, rejected=0)
    assert client.keys() == []


def test_a_request_that_was_answered_twice_is_recorded_once(client: redis.Redis, engine: Engine) -> None:
    first = record(confidence=0.6)
    log_requests(client, [[first], [first | {"confidence": 0.7}]])
    assert store(client, engine) == Drained(entries=2, rows=1, rejected=0)
    with transaction(engine) as session:
        assert session.scalars(sa.select(Prediction.confidence)).all() == [0.6]


def test_a_group_that_somebody_removed_is_made_again(client: redis.Redis, engine: Engine) -> None:
    requests = [[record()], [record()]]
    log_requests(client, requests)
    client.xgroup_destroy(STREAM, GROUP)
    assert store(client, engine) == Drained(entries=2, rows=2, rejected=0)
    assert stored(engine) == ids(requests)


def test_a_drain_ends_when_its_time_is_over(client: redis.Redis, engine: Engine) -> None:
    requests = [[record()] for _ in range(5)]
    log_requests(client, requests)
    assert store(client, engine, batch=2, seconds=0) == Drained(entries=2, rows=2, rejected=0)
    assert waiting(client) == (3, 0)
    assert store(client, engine, batch=2).entries == 3
    assert stored(engine) == ids(requests)


def test_drains_at_once_share_the_work(redis_url: str, client: redis.Redis, engine: Engine) -> None:
    requests = [[record() for _ in range(1 + number % 4)] for number in range(300)]
    log_requests(client, requests)

    def contender() -> Drained:
        with redis.Redis.from_url(redis_url) as own:
            return store(own, engine, batch=7)

    shares = race(contender, contender, contender)
    assert sum(share.entries for share in shares) == 300
    assert sum(share.rows for share in shares) == 750
    assert stored(engine) == ids(requests)
    assert waiting(client) == (0, 0)


def test_records_that_come_in_while_processes_drain_are_all_stored_once(
    redis_url: str, client: redis.Redis, database_url: str, engine: Engine
) -> None:
    context = multiprocessing.get_context("spawn")
    drains = [context.Process(target=_drain_until_told, args=(redis_url, database_url)) for _ in range(2)]
    for process in drains:
        process.start()
    requests = [[record()] for _ in range(2000)]
    log_requests(client, requests)
    client.set("stop", 1)
    for process in drains:
        process.join(60)
    assert [process.exitcode for process in drains] == [0, 0]
    assert stored(engine) == ids(requests)
    assert waiting(client) == (0, 0)


def _drain_until_told(redis_url: str, database_url: str) -> None:
    engine = create_engine(database_url, application_name="tests")
    with redis.Redis.from_url(redis_url) as client:
        while client.xlen(STREAM) or not client.exists("stop"):
            store(client, engine, batch=13)
    engine.dispose()


# Kills and outages


def drain_and_die(where: str, redis_url: str, database_url: str) -> None:
    """A drain in a process of its own that SIGKILLs itself where ``where``, a function, is called."""
    program = f"""
import os, signal, redis
from db import predictions
from db.session import create_engine, transaction
from tasks import prediction_log
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
{where} = die
engine = create_engine({database_url!r}, application_name="doomed")
with redis.Redis.from_url({redis_url!r}) as client:
    prediction_log.drain(client, lambda: transaction(engine), consumer="doomed")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("where", "committed"),
    [
        ("prediction_log._store", False),
        ("predictions._changed", False),  # inserted, not committed
        ("prediction_log._acknowledge", True),
    ],
)
def test_what_a_killed_drain_had_taken_is_stored_once(
    where: str,
    committed: bool,
    redis_url: str,
    database_url: str,
    client: redis.Redis,
    engine: Engine,
) -> None:
    requests = [[record(), record()] for _ in range(10)]
    log_requests(client, requests)
    drain_and_die(where, redis_url, database_url)
    assert stored(engine) == (ids(requests) if committed else [])
    assert waiting(client) == (10, 10)

    assert store(client, engine).entries == 0  # it may still be at it
    later = [[record()]]
    log_requests(client, later)
    let_taken_entries_age(client)
    new = 1 if committed else 21
    assert store(client, engine) == Drained(entries=11, rows=new, rejected=0)
    assert stored(engine) == ids(requests + later)
    assert waiting(client) == (0, 0)


def test_more_than_a_batch_is_taken_over(redis_url: str, client: redis.Redis, engine: Engine) -> None:
    requests = [[record()] for _ in range(60)]
    log_requests(client, requests)
    client.xreadgroup(GROUP, "doomed", {STREAM: ">"}, 50)
    let_taken_entries_age(client)
    assert store(client, engine, batch=4) == Drained(entries=60, rows=60, rejected=0)
    assert stored(engine) == ids(requests)


def test_while_postgresql_is_away_everything_stays_in_the_stream(
    own_servers: LocalServers, own_client: redis.Redis
) -> None:
    engine = create_engine(own_servers.record.database_url, application_name="tests")
    requests = [[record()] for _ in range(20)]
    log_requests(own_client, requests[:10])
    assert store(own_client, engine).rows == 10
    log_requests(own_client, requests[10:])
    with stopped_postgres(own_servers):
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store(own_client, engine)
        assert waiting(own_client) == (10, 0)
    assert store(own_client, engine) == Drained(entries=10, rows=10, rejected=0)
    assert set(ids(requests)) <= set(stored(engine))
    assert waiting(own_client) == (0, 0)
    engine.dispose()


def test_a_connection_that_breaks_before_the_commit_loses_nothing(
    own_servers: LocalServers, own_client: redis.Redis
) -> None:
    engine = create_engine(own_servers.record.database_url, application_name="tests")
    requests = [[record()] for _ in range(10)]
    log_requests(own_client, requests)
    opened = 0

    @contextlib.contextmanager
    def breaking() -> Iterator[Session]:
        nonlocal opened
        opened += 1
        with transaction(engine) as session:
            yield session
            if opened == 2:  # the first only asks whether PostgreSQL answers
                with engine.connect() as other:
                    pid = session.scalar(sa.select(sa.func.pg_backend_pid()))
                    other.execute(sa.select(sa.func.pg_terminate_backend(pid, 5000)))

    with pytest.raises(StoreUnavailable):
        drain(own_client, breaking, consumer="test")
    assert not set(ids(requests)) & set(stored(engine))
    assert waiting(own_client) == (10, 10)
    let_taken_entries_age(own_client)
    assert store(own_client, engine) == Drained(entries=10, rows=10, rejected=0)
    assert set(ids(requests)) <= set(stored(engine))
    engine.dispose()


@contextlib.contextmanager
def stopped_postgres(servers: LocalServers) -> Iterator[None]:
    postgres = psutil.Process(servers.record.postgres.pid)
    postgres.send_signal(signal.SIGQUIT)
    postgres.wait(30)
    try:
        yield
    finally:
        start_servers(servers.home.data_dir)


def test_an_append_only_file_brings_back_log_and_group(
    own_servers: LocalServers, own_client: redis.Redis
) -> None:
    engine = create_engine(own_servers.record.database_url, application_name="tests", pooled=False)
    requests = [[record()] for _ in range(20)]
    log_requests(own_client, requests)
    own_client.xreadgroup(GROUP, "doomed", {STREAM: ">"}, 5)
    time.sleep(2.5)  # as long as Valkey may keep what it has acknowledged from the file, while that syncs
    valkey = psutil.Process(int(own_client.info("server")["process_id"]))
    valkey.kill()
    valkey.wait(30)
    start_servers(own_servers.home.data_dir)
    assert waiting(own_client) == (20, 5)
    let_taken_entries_age(own_client)
    assert store(own_client, engine) == Drained(entries=20, rows=20, rejected=0)
    assert set(ids(requests)) <= set(stored(engine))


# Entries that the table refuses

POISON: dict[str, tuple[Any, str]] = {
    "broken JSON": ("[{", "JSON"),
    "no JSON": ("\x00\xff", "JSON"),
    "nested too deep": ("[" * 100_000, "JSON"),
    "no list": ({"id": 1}, "array"),
    "a list of numbers": ([1, 2], "column"),
    "a column left out": ([{k: v for k, v in record().items() if k != "horizon_end"}], "horizon_end"),
    "a column too many": ([record(label=1)], "label"),
    "no number": ([record(confidence="high")], "confidence"),
    "not a number": ([record(confidence=float("nan"))], "confidence"),
    "no UUID": ([record(id="7")], "uuid"),
    "a zero byte": ([record(signal_id="a\x00")], "0x00"),
    "half a surrogate pair": ([record(signal_id="\ud800")], "signal_id"),
    "an impossible confidence": ([record(confidence=1.7)], "ck_ml_performance_tracking_confidence"),
    "an unknown model": ([record(model_id=987_654)], "ml_models"),
    "nothing where something must be": ([record(horizon_end=None)], "horizon_end"),
    "a good one beside a bad one": ([record(), record(direction=3)], "direction"),
}


@pytest.mark.parametrize("kind", POISON)
def test_a_bad_entry_is_set_aside_and_the_others_are_stored(
    kind: str, client: redis.Redis, engine: Engine
) -> None:
    content, reason = POISON[kind]
    body = content if isinstance(content, str) else json.dumps(content)
    good = [[record()], [record(), record()]]
    log_requests(client, good[:1])
    assert PredictionLog(client).record(body, None, "", 60, LIMIT)
    log_requests(client, good[1:])
    assert store(client, engine) == Drained(entries=3, rows=3, rejected=1)
    assert stored(engine) == ids(good)
    assert waiting(client) == (0, 0)
    rejected: Any = client.xrange(REJECTED)
    ((_, fields),) = rejected
    assert fields[b"records"] == body.encode()
    assert reason in fields[b"error"].decode()
    assert store(client, engine) == Drained(entries=0, rows=0, rejected=0)


def test_an_entry_of_another_shape_is_set_aside(client: redis.Redis, engine: Engine) -> None:
    client.xadd(STREAM, {"something": "else"})
    assert store(client, engine) == Drained(entries=1, rows=0, rejected=1)
    assert client.xlen(REJECTED) == 1


def test_the_entries_set_aside_are_bounded(
    client: redis.Redis, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "REJECTED_KEPT", 3)
    for number in range(5):
        assert PredictionLog(client).record(str(number), None, "", 60, LIMIT)
    assert store(client, engine) == Drained(entries=5, rows=0, rejected=5)
    rejected: Any = client.xrange(REJECTED)
    assert [fields[b"records"] for _, fields in rejected] == [b"2", b"3", b"4"]


def test_a_table_that_is_not_there_is_no_fault_of_the_entries(
    client: redis.Redis, empty_database_url: str
) -> None:
    engine = create_engine(empty_database_url, application_name="tests", pooled=False)
    log_requests(client, [[record()]])
    with pytest.raises(sa.exc.ProgrammingError):
        store(client, engine)
    assert waiting(client) == (1, 1)
    assert not client.exists(REJECTED)


# The task


def test_a_worker_drains_when_it_is_told_to(
    worker_process: Callable[..., RunningProcess],
    settings_env: dict[str, str],
    client: redis.Redis,
    engine: Engine,
) -> None:
    worker = worker_process("maintenance", "--pool=solo")
    requests = [[record(), record()]]
    log_requests(client, requests)
    program = "from worker.celery import app; app.send_task('tasks.drain_predictions')"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=settings_env, check=True, timeout=60)
    worker.wait_for(lambda: stored(engine) == ids(requests), "the records in the table")
    worker.wait_for_line("predictions_stored")
    assert waiting(client) == (0, 0)
