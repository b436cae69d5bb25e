"""Fixtures of every test: servers of the run's own, a database a test, real worker processes.

One PostgreSQL and one Valkey serve a whole run, xdist workers included; `tests/keeper.py` starts and
stops them. Nothing of the user's is read: HOME is a folder of the run's, and ALPHAPLUS_* and CELERY_*
variables are dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import psycopg2
import pytest
import redis
import structlog
from sqlalchemy.engine import Engine, make_url

from runtime.server_record import ProcessMark, ServerRecord
from tests.keeper import FOLDER_VARIABLE
from tests.processes import ROOT, CommandResult, RunningProcess, run_command, script, start_process

RUN_VARIABLE = "RETRAINING_TEST_RUN"
SERVERS_START_SECONDS = 90
KEEPER_STOP_SECONDS = 60
TEMPLATE = "alphaplus_template"
TRAINED = "alphaplus_trained"


def pytest_configure(config: pytest.Config) -> None:
    """Drop the user's settings; make the run's folder (xdist workers inherit its name)."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, _keep_running)):
        # Of a run in the background both are ignored, and what it starts would inherit that; a handler is
        # not inherited, so that the signals which tests send arrive.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    for name in list(os.environ):
        if name.startswith(("ALPHAPLUS_", "CELERY_")):
            del os.environ[name]
    if not hasattr(config, "workerinput"):
        # Not under pytest's own temporary folder: that one is closed to other users, and the servers
        # of a run by root are run by one.
        folder = Path(tempfile.mkdtemp(prefix="alphaplus-tests-"))
        folder.chmod(0o711)
        (folder / "home").mkdir()
        os.environ[FOLDER_VARIABLE] = str(folder)
        os.environ[RUN_VARIABLE] = str(os.getpid())
    os.environ["HOME"] = str(_folder() / "home")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as in a worker: two test processes share the cores


def _keep_running(_number: int, _frame: FrameType | None) -> None:
    """What ignoring a signal does, for this process alone."""


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the servers, if any test asked for them, and remove the run's folder."""
    if hasattr(config, "workerinput"):
        return
    mark = _keeper()
    keeper = mark.process() if mark else None
    if keeper is not None:
        keeper.terminate()
        keeper.wait(KEEPER_STOP_SECONDS)
    shutil.rmtree(_folder())


def _folder() -> Path:
    return Path(os.environ[FOLDER_VARIABLE])


def _keeper() -> ProcessMark | None:
    with contextlib.suppress(FileNotFoundError):
        return ProcessMark.model_validate_json((_folder() / "keeper.json").read_text())
    return None


@contextlib.contextmanager
def _once(name: str) -> Iterator[bool]:
    """Mutual exclusion over the run's processes; True for the first one to come through whole."""
    done = _folder() / f"{name}.done"
    with (_folder() / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


@pytest.fixture(autouse=True)
def _no_log_context() -> Iterator[None]:
    """What a task in a test's own process binds to the log is not in the next test's lines."""
    yield
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def servers() -> ServerRecord:
    """The run's PostgreSQL and Valkey."""
    with _once("servers") as first:
        if first:
            _start_keeper()
    record = ServerRecord.read(_folder() / "servers")
    assert record is not None
    assert record.alive
    return record


def _start_keeper() -> None:
    command = [sys.executable, str(ROOT / "tests" / "keeper.py"), str(_folder()), os.environ[RUN_VARIABLE]]
    with (_folder() / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (_folder() / "keeper.json").write_text(ProcessMark.of(keeper.pid).model_dump_json())
    deadline = time.monotonic() + SERVERS_START_SECONDS
    while ServerRecord.read(_folder() / "servers") is None:
        if keeper.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the run's servers do not start:\n{(_folder() / 'keeper.log').read_text()}")
        time.sleep(0.02)
    keeper.returncode = 0  # it outlives this process; without this Python warns of that


@pytest.fixture(scope="session")
def _admin(servers: ServerRecord) -> Iterator[psycopg2.extensions.connection]:
    """A connection that makes and drops databases; the template is migrated by the first to come."""
    url = make_url(servers.database_url)
    connection = psycopg2.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, dbname="postgres"
    )
    connection.autocommit = True
    with _once("template") as first:
        if first:
            from db.schema import upgrade

            with connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {TEMPLATE}")
            upgrade(_database_url(servers, TEMPLATE))
    yield connection
    connection.close()


@pytest.fixture
def empty_database_url(servers: ServerRecord, _admin: psycopg2.extensions.connection) -> Iterator[str]:
    """A fresh database without any table, for tests of the migrations."""
    with _database(servers, _admin, "template0") as url:
        yield url


@pytest.fixture
def database_url(servers: ServerRecord, _admin: psycopg2.extensions.connection) -> Iterator[str]:
    """A fresh database at the head of the migrations."""
    with _database(servers, _admin, TEMPLATE) as url:
        yield url


@pytest.fixture
def trained_database_url(servers: ServerRecord, _admin: psycopg2.extensions.connection) -> Iterator[str]:
    """A database of the test's own with real candles and champions: see `tests/trained.py`."""
    with _once("trained") as first:
        if first:
            from tests.trained import fill

            with _admin.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {TRAINED} TEMPLATE {TEMPLATE}")
            fill(_database_url(servers, TRAINED))
    with _database(servers, _admin, TRAINED) as url:
        yield url


@pytest.fixture
def trained_engine(trained_database_url: str) -> Iterator[Engine]:
    """An engine on that database."""
    from db.session import create_engine

    engine = create_engine(trained_database_url, application_name="tests")
    yield engine
    engine.dispose()


@pytest.fixture
def trained_env(base_env: dict[str, str], trained_database_url: str, redis_url: str) -> dict[str, str]:
    """`base_env` with that database, the test's broker, and a replay that begins after the data cut."""
    from tests.trained import REPLAY_ENV

    servers = {"ALPHAPLUS_DATABASE_URL": trained_database_url, "ALPHAPLUS_REDIS_URL": redis_url}
    return base_env | servers | REPLAY_ENV


@contextlib.contextmanager
def _database(servers: ServerRecord, admin: psycopg2.extensions.connection, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    with admin.cursor() as cursor:
        # A copy of the files: quicker than through the log for a small template, and fsync is off.
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield _database_url(servers, name)
        finally:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _database_url(servers: ServerRecord, name: str) -> str:
    return make_url(servers.database_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on the test's own database."""
    from db.session import create_engine

    engine = create_engine(database_url, application_name="tests")
    yield engine
    engine.dispose()


@pytest.fixture
def redis_url(servers: ServerRecord) -> Iterator[str]:
    """An empty Valkey database that no other test uses meanwhile."""
    # gw0 has database 1, gw1 2 …; a run without xdist has 0.
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1").removeprefix("gw")) + 1
    url = f"{servers.redis_url.rpartition('/')[0]}/{number}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def base_env() -> Iterator[dict[str, str]]:
    """Environment of a subprocess: this interpreter's scripts, a HOME of its own, no setting, no server."""
    # Beside the run's servers, for the reason given there.
    home = _folder() / f"home-{secrets.token_hex(4)}"
    home.mkdir(mode=0o711)
    temporary = home / "tmp"
    temporary.mkdir(mode=0o777)
    temporary.chmod(0o1777)  # as /tmp: the servers of a test by root are another user's
    yield {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(home),
        "TMPDIR": str(temporary),  # a killed worker leaves its temporary folder behind
        "LANG": "C.UTF-8",
        FOLDER_VARIABLE: str(_folder()),
        "ALPHAPLUS_DATA_DIR": str(home / "data"),
    }
    shutil.rmtree(home)


@pytest.fixture
def settings_env(base_env: dict[str, str], database_url: str, redis_url: str) -> dict[str, str]:
    """`base_env` with the test's own database and broker."""
    return base_env | {"ALPHAPLUS_DATABASE_URL": database_url, "ALPHAPLUS_REDIS_URL": redis_url}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Callable[..., RunningProcess]]:
    """Start processes (``processes(command, env)``); each is killed, with its children, after the test."""
    started: list[RunningProcess] = []

    def start(command: list[str], env: Mapping[str, str]) -> RunningProcess:
        started.append(start_process(command, env, tmp_path / f"process-{len(started)}.log"))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def worker_process(
    processes: Callable[..., RunningProcess], settings_env: dict[str, str]
) -> Callable[..., RunningProcess]:
    """Start a Celery worker: ``worker_process("training", "--concurrency=1")``; returns when it is ready.

    The first argument names its queues; ``env`` is added to `settings_env`.
    """

    def start(queues: str, *options: str, env: Mapping[str, str] | None = None) -> RunningProcess:
        command = [
            script("celery"), "-A", "worker", "worker", "-Q", queues, "-n", f"{secrets.token_hex(4)}@test",
            "--without-mingle", "--without-gossip", "--loglevel=INFO", *options,
        ]  # fmt: skip
        process = processes(command, settings_env | dict(env or {}))
        process.wait_for_line("@test ready")
        return process

    return start


@pytest.fixture
def run_cli(settings_env: dict[str, str]) -> Callable[..., CommandResult]:
    """Run ``alphaplus ARGS`` to its end: ``run_cli("jobs", "--json", env={...})``."""

    def run(
        *args: str, env: Mapping[str, str] | None = None, timeout_seconds: float = 120.0
    ) -> CommandResult:
        environment = settings_env | dict(env or {})
        return run_command([script("alphaplus"), *args], environment, timeout_seconds=timeout_seconds)

    return run
