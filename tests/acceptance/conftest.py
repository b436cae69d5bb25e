"""Fixtures of the tests that ask for predictions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from pydantic import SecretStr

from runtime.settings import Settings
from tasks.answering import Answering
from tasks.base import Resources
from tasks.outcomes import resolve_due
from tasks.prediction_log import drain
from tests.newest_signals import NOW
from tests.predicting import Caller
from tests.processes import CommandResult, RunningProcess, run_command, script
from tests.trained import FixedClock, resources_of
from worker.cli import main
from worker.server_home import find_home
from worker.server_programs import free_port


@pytest.fixture
def start_echo(
    processes: Callable[..., RunningProcess], base_env: dict[str, str]
) -> Callable[[str], RunningProcess]:
    """Start a worker whose answers say which signal they are to, on the broker of that URL."""

    def start(url: str) -> RunningProcess:
        command = [
            script("celery"), "-A", "tests.acceptance.echo_worker", "worker", "-P", "solo", "-Q", "inference",
            "--without-mingle", "--without-gossip", "--loglevel=INFO",
        ]  # fmt: skip
        worker = processes(command, base_env | {"ALPHAPLUS_REDIS_URL": url})
        worker.wait_for_line(" ready.")
        return worker

    return start


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as server:
        yield server


@pytest.fixture
def start_valkey(
    processes: Callable[..., RunningProcess], base_env: dict[str, str], tmp_path: Path
) -> Callable[[], tuple[RunningProcess, str]]:
    """Start a Valkey of the test's own; every start has the same port, folder and append-only file."""
    port = free_port()
    program = str(find_home(tmp_path).valkey_program)

    def start() -> tuple[RunningProcess, str]:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--appendonly", "yes"]
        process = processes([program, *options, "--save", ""], base_env)
        with redis.Redis(port=port) as probe:
            process.wait_for(lambda: _answers(probe), "its PONG")
        return process, f"redis://127.0.0.1:{port}/0"

    return start


@pytest.fixture
def cli(trained_env: dict[str, str]) -> Callable[..., CommandResult]:
    """Run ``alphaplus ARGS`` on the trained database."""

    def run(*args: str, **env: str) -> CommandResult:
        return run_command([script("alphaplus"), *args], trained_env | env)

    return run


@pytest.fixture
def caller(redis_url: str) -> Iterator[Caller]:
    """A stranger with Celery, on the test's broker."""
    caller = Caller(redis_url)
    yield caller
    caller.close()


@pytest.fixture
def worker(trained_env: dict[str, str], worker_process: Callable[..., RunningProcess]) -> RunningProcess:
    """One inference worker that checks champions every hour: what it learns sooner, it was told."""
    env = trained_env | {"ALPHAPLUS_CHAMPION_CHECK_SECONDS": "3600", "ALPHAPLUS_MAX_SIGNAL_AGE_BARS": "400"}
    return worker_process("inference", "--pool=solo", env=env)


@pytest.fixture
def ask(trained_database_url: str, redis_url: str) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Answer signals as a worker does, and store the records: ``ask(signals, moment)``."""
    settings = Settings(database_url=SecretStr(trained_database_url), redis_url=SecretStr(redis_url))
    clock = FixedClock(NOW)
    resources = Resources(lambda: settings, lambda _: clock)
    answering = Answering(resources)

    def run(signals: list[dict[str, Any]], moment: datetime = NOW) -> list[dict[str, Any]]:
        clock.moment = moment
        reply = answering.handle(str(uuid4()), [signals], {}).reply
        drained = drain(client, resources.transaction, consumer="test")
        assert (drained.rows, drained.rejected) == (len(signals), 0)
        return list(reply["answers"])

    with redis.Redis.from_url(redis_url) as client:
        yield run
    resources.engine.dispose()


@pytest.fixture
def run_main(
    trained_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., CommandResult]:
    """As ``cli``, in this process."""

    def run(*args: str) -> CommandResult:
        for name, value in trained_env.items():
            if name.startswith("ALPHAPLUS_"):
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["alphaplus", *args])
        capsys.readouterr()  # what the test's own answers have logged is not the command's
        with pytest.raises(SystemExit) as ended:
            main()
        return CommandResult(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def resolve(trained_database_url: str) -> Callable[[datetime], None]:
    """Write the outcomes that are due at a moment."""

    def run(moment: datetime) -> None:
        resources = resources_of(trained_database_url, moment)
        resolve_due(resources)
        resources.engine.dispose()

    return run


def _answers(server: redis.Redis) -> bool:
    try:
        return bool(server.ping())
    except redis.RedisError:
        return False
