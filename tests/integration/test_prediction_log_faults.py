"""Drains killed, servers stopped, memory full: each record is in the table once."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db.schema import upgrade
from db.session import create_engine, transaction
from ml.errors import Busy, StoreUnavailable
from tasks.prediction_log import GROUP, STREAM, Drained, PredictionLog, drain
from tests.integration.db.prediction_rows import record
from tests.integration.prediction_stream import (
    LIMIT,
    ids,
    let_taken_entries_age,
    log_requests,
    store,
    stored,
    waiting,
)
from tests.processes import ROOT
from worker import server_home
from worker.local import LocalServers, local_servers, start_servers

pytestmark = pytest.mark.inference

REPLY_KEY = "alphaplus:reply:0123456789abcdef"


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
def full_memory(client: redis.Redis) -> Iterator[None]:
    before = client.config_get("maxmemory")["maxmemory"] or 0
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", before)


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


def test_full_memory_is_busy_and_writes_neither(own_client: redis.Redis) -> None:
    log = PredictionLog(own_client)
    assert log.record("[]", REPLY_KEY, "first", 60, LIMIT)
    with full_memory(own_client):
        with pytest.raises(Busy, match="memory"):
            log.record("[]", REPLY_KEY, "second", 60, LIMIT)
        assert (own_client.xlen(STREAM), own_client.llen(REPLY_KEY)) == (1, 1)
    assert log.record("[]", REPLY_KEY, "third", 60, LIMIT)
    assert (own_client.xlen(STREAM), own_client.llen(REPLY_KEY)) == (2, 2)


def test_what_is_stored_leaves_a_full_memory(own_servers: LocalServers, own_client: redis.Redis) -> None:
    engine = create_engine(own_servers.record.database_url, application_name="tests", pooled=False)
    good, poison = [record()], "not JSON"
    log_requests(own_client, [good])
    assert PredictionLog(own_client).record(poison, None, "", 60, LIMIT)
    with full_memory(own_client):
        with pytest.raises(redis.exceptions.OutOfMemoryError):  # the bad one has no place to go to
            store(own_client, engine)
        assert set(ids([good])) <= set(stored(engine))
        assert waiting(own_client) == (1, 1)
    let_taken_entries_age(own_client)
    assert store(own_client, engine) == Drained(entries=1, rows=0, rejected=1)
    assert waiting(own_client) == (0, 0)
