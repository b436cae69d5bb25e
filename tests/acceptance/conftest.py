"""Fixtures of the tests that ask for predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.processes import RunningProcess, script
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


def _answers(server: redis.Redis) -> bool:
    try:
        return bool(server.ping())
    except redis.RedisError:
        return False
