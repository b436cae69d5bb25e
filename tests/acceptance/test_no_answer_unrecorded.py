"""Workers, Valkey and PostgreSQL end and come back while callers ask: each answer they got has one record."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kombu.exceptions
import psutil
import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from celery.exceptions import CeleryError
from sqlalchemy.engine import Engine

from client import PredictionClient
from db.models import Prediction
from db.schema import upgrade
from db.session import create_engine, transaction
from ml.errors import RetryLater
from tasks.prediction_log import REJECTED, STREAM
from tests.integration.prediction_stream import let_taken_entries_age
from tests.predicting import SIGNAL, ohlcv_rows, wait_until
from tests.processes import RunningProcess, script
from tests.trained import REPLAY_ENV
from worker import server_home
from worker.local import LocalServers, local_servers, start_servers

pytestmark = [
    pytest.mark.inference,
    # Of Celery's own: a result that is thrown away while Valkey is down unsubscribes from it.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <function AsyncResult.__del__:pytest.PytestUnraisableExceptionWarning"
    ),
]

ANSWERS_BETWEEN = 40
"""That many answers are given before, between and after the faults."""
ANSWER_SECONDS = 60.0
TIMEOUT_SECONDS = 3.0
DRAINS_A_SECOND = 2
DRAINED_SECONDS = 60.0


@pytest.fixture
def own_servers() -> Iterator[LocalServers]:
    """Servers of the test's own, with every table; PostgreSQL keeps what it has committed."""
    top = Path(tempfile.mkdtemp(prefix="alphaplus-unrecorded-"))
    top.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_home, "ROOT_STATE", top / "var-lib")
        with local_servers(top / "data") as servers:
            upgrade(servers.record.database_url)
            yield servers
    shutil.rmtree(top)


@pytest.fixture
def start_worker(
    processes: Callable[..., RunningProcess], base_env: dict[str, str], own_servers: LocalServers
) -> Callable[[str], RunningProcess]:
    """Start a worker of a queue as an operator would; returns when it is ready.

    Its pool starts it again where Celery gives up: kombu raises AttributeError while it closes a connection
    that broke with a message unacknowledged.
    """
    env = base_env | REPLAY_ENV
    env["ALPHAPLUS_DATABASE_URL"] = own_servers.record.database_url
    env["ALPHAPLUS_REDIS_URL"] = own_servers.record.redis_url

    def start(queue: str) -> RunningProcess:
        name = secrets.token_hex(4)
        worker = processes([script("alphaplus"), "worker", queue, "--processes", "1", "--name", name], env)
        worker.wait_for_line(" ready.")
        return worker

    return start


class Callers:
    """Threads that ask without a pause and keep the ids of the predictions they were given."""

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.received: list[str] = []
        self.unanswered = 0
        self._stop = threading.Event()
        self._threads = [
            *(threading.Thread(target=self._ask_on_a_list, args=(number,)) for number in range(2)),
            threading.Thread(target=self._ask_celery),
            threading.Thread(target=self._ask_for_drains),
        ]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        gc.collect()  # Celery's results, in this test and no later one

    def wait_for_more(self, count: int = ANSWERS_BETWEEN) -> None:
        wanted = len(self.received) + count
        wait_until(lambda: len(self.received) >= wanted, f"{count} more answers", ANSWER_SECONDS)

    def _ask_on_a_list(self, number: int) -> None:
        with PredictionClient(self.redis_url, timeout_seconds=TIMEOUT_SECONDS) as client:
            while not self._stop.is_set():
                try:
                    self._keep(client.predict(_signals(1 + number)))
                except RetryLater:
                    self._rest()

    def _ask_celery(self) -> None:
        with contextlib.closing(_app(self.redis_url)) as app:
            while not self._stop.is_set():
                try:
                    sent = app.send_task(
                        "tasks.predict", args=[_signals(1)], queue="inference", expires=TIMEOUT_SECONDS
                    )
                    self._keep(sent.get(timeout=TIMEOUT_SECONDS).get("answers", ()))
                except (CeleryError, kombu.exceptions.KombuError, redis.RedisError, OSError):
                    self._rest()

    def _ask_for_drains(self) -> None:
        """As beat does."""
        with contextlib.closing(_app(self.redis_url)) as app:
            while not self._stop.wait(1 / DRAINS_A_SECOND):
                with contextlib.suppress(CeleryError, kombu.exceptions.KombuError, redis.RedisError, OSError):
                    app.send_task("tasks.drain_predictions", queue="maintenance", expires=2)

    def _keep(self, answers: Any) -> None:
        self.received += [answer["prediction_id"] for answer in answers]

    def _rest(self) -> None:
        self.unanswered += 1
        time.sleep(0.1)


def _app(redis_url: str) -> Celery:
    app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.update(
        broker_connection_timeout=1,
        broker_transport_options={"socket_timeout": 3, "socket_connect_timeout": 1},
        redis_socket_timeout=3,
        redis_socket_connect_timeout=1,
        task_publish_retry=False,
    )
    return app


@cache
def _signals(count: int) -> list[dict[str, Any]]:
    """The first has candles enough for a champion to be looked for, the others are quick to answer."""
    return [SIGNAL | {"candles": ohlcv_rows(count=60 if place else 1024)} for place in range(count)]


def kill_and_restart_valkey(servers: LocalServers) -> None:
    with redis.Redis.from_url(servers.record.redis_url) as client:
        valkey = psutil.Process(int(client.info("server")["process_id"]))
    valkey.kill()
    valkey.wait(30)
    start_servers(servers.home.data_dir)


@contextlib.contextmanager
def stopped_postgres(servers: LocalServers, seconds: float) -> Iterator[None]:
    """PostgreSQL ends without a checkpoint, and is back ``seconds`` later."""
    pid_file = servers.home.postgres_data / "postmaster.pid"
    postgres = psutil.Process(int(pid_file.read_text().split()[0]))
    postgres.send_signal(signal.SIGQUIT)
    postgres.wait(30)
    back = time.monotonic() + seconds
    try:
        yield
    finally:
        time.sleep(max(0.0, back - time.monotonic()))
        start_servers(servers.home.data_dir)


def check_records(servers: LocalServers, received: list[str]) -> None:
    """Once the stream is empty: a row for each answer received, no id twice, nothing refused."""
    engine = create_engine(servers.record.database_url, application_name="tests", pooled=False)
    with (
        redis.Redis.from_url(servers.record.redis_url) as client,
        contextlib.closing(_app(servers.record.redis_url)) as app,
    ):
        deadline = time.monotonic() + DRAINED_SECONDS
        while client.xlen(STREAM):
            assert time.monotonic() < deadline, f"not drained: {client.xinfo_groups(STREAM)}"
            app.send_task("tasks.drain_predictions", queue="maintenance")
            time.sleep(0.5)
        assert client.xlen(REJECTED) == 0
    rows = stored(engine)
    assert len(set(received)) == len(received)
    assert set(received) - set(rows) == set()
    assert len(set(rows)) == len(rows)


def stored(engine: Engine) -> list[str]:
    with transaction(engine) as session:
        return [str(one) for one in session.scalars(sa.select(Prediction.id))]


@pytest.mark.timeout(400)
def test_every_answer_received_has_one_record_whatever_is_killed(
    own_servers: LocalServers, start_worker: Callable[[str], RunningProcess]
) -> None:
    inference, maintenance = start_worker("inference"), start_worker("maintenance")
    with Callers(own_servers.record.redis_url) as callers:
        callers.wait_for_more()
        inference.kill()
        inference = start_worker("inference")
        callers.wait_for_more()
        maintenance.kill()
        callers.wait_for_more()
        maintenance = start_worker("maintenance")
        callers.wait_for_more()
        kill_and_restart_valkey(own_servers)
        callers.wait_for_more()
        with stopped_postgres(own_servers, 8.0):
            callers.wait_for_more()  # answers do not wait for PostgreSQL
        callers.wait_for_more()
    assert inference.running
    assert maintenance.running
    with redis.Redis.from_url(own_servers.record.redis_url) as client:
        let_taken_entries_age(client)  # what the killed drain had; the soak waits for it
    check_records(own_servers, callers.received)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_minute_without_postgresql_and_many_kills_leave_no_answer_unrecorded(
    own_servers: LocalServers, start_worker: Callable[[str], RunningProcess]
) -> None:
    inference = [start_worker("inference"), start_worker("inference")]
    maintenance = start_worker("maintenance")
    rounds = int(os.environ.get("SOAK_ROUNDS", "6"))
    with Callers(own_servers.record.redis_url) as callers:
        for number in range(rounds):
            callers.wait_for_more()
            inference[number % 2].kill()
            maintenance.kill()
            inference[number % 2] = start_worker("inference")
            maintenance = start_worker("maintenance")
            callers.wait_for_more()
            kill_and_restart_valkey(own_servers)
            callers.wait_for_more()
        with stopped_postgres(own_servers, 60.0):
            callers.wait_for_more()
            inference[0].kill()
            callers.wait_for_more()
            kill_and_restart_valkey(own_servers)
            callers.wait_for_more()
        callers.wait_for_more()
    check_records(own_servers, callers.received)
