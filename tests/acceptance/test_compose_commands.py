"""Every command line and health check of docker-compose.yml, run as a process against real servers."""

from __future__ import annotations

import base64
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import sqlalchemy as sa
import yaml
from celery import Celery

from db.schema import require_current
from ml.errors import SchemaOutdated
from tests.processes import ROOT, CommandResult, RunningProcess, run_command
from worker.processes import SOFT_SHUTDOWN_SECONDS

pytestmark = pytest.mark.servers

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
LOGIN = "operator:a-long-password"

Start = Callable[[list[str], Mapping[str, str]], RunningProcess]


def _plain_environment(service: str) -> dict[str, str]:
    """What the service sets in the clear: neither addresses nor secrets."""
    environment: dict[str, str] = SERVICES[service].get("environment", {})
    return {name: value for name, value in environment.items() if "${" not in value}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check_health(service: str, env: Mapping[str, str]) -> CommandResult:
    kind, *command = SERVICES[service]["healthcheck"]["test"]
    if kind == "CMD-SHELL":
        command = ["sh", "-c", command[0].replace("$$", "$")]
    return run_command(command, env, timeout_seconds=60)


def test_migrate_brings_an_empty_database_to_the_schema_and_may_run_again(
    base_env: dict[str, str], empty_database_url: str, redis_url: str
) -> None:
    env = base_env | {"ALPHAPLUS_DATABASE_URL": empty_database_url, "ALPHAPLUS_REDIS_URL": redis_url}
    engine = sa.create_engine(empty_database_url)
    try:
        with pytest.raises(SchemaOutdated):
            require_current(engine)
        for _ in range(2):
            result = run_command(SERVICES["migrate"]["command"], env | _plain_environment("migrate"))
            assert result.exit_code == 0, result.stderr
            require_current(engine)
    finally:
        engine.dispose()


@pytest.mark.parametrize("service", ["training", "drift", "maintenance", "inference"])
def test_worker_is_well_when_asked_and_has_time_to_hand_its_tasks_back(
    service: str, processes: Start, settings_env: dict[str, str]
) -> None:
    env = settings_env | _plain_environment(service) | {"HOSTNAME": socket.gethostname()}
    assert _check_health(service, env).exit_code != 0

    worker = processes(SERVICES[service]["command"], env)
    worker.wait_for_line(" ready")
    health = _check_health(service, env)
    assert health.exit_code == 0, health.stdout + health.stderr
    assert "pong" in health.stdout

    assert worker.terminate() == 0
    # As REMAP_SIGTERM asks: a warm one waits for ever. An answer at work ends in milliseconds.
    expected = "Warm shutdown" if service == "inference" else "Cold shutdown"
    assert expected in worker.log.read_text()
    grace_seconds = float(SERVICES[service]["stop_grace_period"].removesuffix("s"))
    assert grace_seconds >= SOFT_SHUTDOWN_SECONDS + 10


def test_beat_ticks_and_is_well_when_asked(processes: Start, settings_env: dict[str, str]) -> None:
    env = settings_env | _plain_environment("beat")
    assert _check_health("beat", env).exit_code != 0

    beat = processes(SERVICES["beat"]["command"], env)
    beat.wait_for(lambda: _check_health("beat", env).exit_code == 0, "a healthy beat")

    assert beat.terminate() == 0


def test_flower_wants_its_password_and_is_well_when_asked(
    processes: Start, settings_env: dict[str, str]
) -> None:
    _, address = _start_flower(processes, settings_env)

    assert _status(f"{address}/workers") == 401
    assert _status(f"{address}/api/workers") == 401
    assert _status(f"{address}/workers", LOGIN) == 200


def test_flower_shows_a_training_with_its_name_and_arguments(
    processes: Start,
    worker_process: Callable[..., RunningProcess],
    settings_env: dict[str, str],
    redis_url: str,
) -> None:
    flower, address = _start_flower(processes, settings_env)
    worker_process("training", "--concurrency=1", "-E")

    with Celery("client", broker=redis_url) as client:
        client.send_task("tasks.train", args=["NOSUCHUSDT", "trending"], queue="training")

    def shown() -> bool:
        tasks = json.loads(_get(f"{address}/api/tasks", LOGIN)).values()
        return [(task["name"], task["args"], task["state"]) for task in tasks] == [
            ("tasks.train", "['NOSUCHUSDT', 'trending']", "FAILURE")
        ]

    flower.wait_for(shown, "the task in Flower")


def test_flower_shows_the_inference_pool(
    processes: Start, worker_process: Callable[..., RunningProcess], settings_env: dict[str, str]
) -> None:
    flower, address = _start_flower(processes, settings_env)
    for _ in range(2):
        worker_process("inference", "--pool=solo")

    def shown() -> bool:
        found = json.loads(_get(f"{address}/api/workers?refresh=1", LOGIN))
        queues = [[queue["name"] for queue in worker.get("active_queues", [])] for worker in found.values()]
        return queues == [["inference"], ["inference"]]

    flower.wait_for(shown, "both workers in Flower")


def _start_flower(processes: Start, settings_env: dict[str, str]) -> tuple[RunningProcess, str]:
    """Flower by the service's command, once it listens; and its address."""
    port = _free_port()
    env = settings_env | _plain_environment("flower") | {
        "FLOWER_BASIC_AUTH": LOGIN, "FLOWER_PORT": str(port), "FLOWER_ADDRESS": "127.0.0.1",
    }  # fmt: skip
    flower = processes(SERVICES["flower"]["command"], env)
    address = f"http://127.0.0.1:{port}"
    flower.wait_for(lambda: _status(f"{address}/healthcheck") == 200, "Flower to listen")
    return flower, address


def _get(url: str, login: str) -> bytes:
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
        body: bytes = answer.read()
        return body


def _status(url: str, login: str | None = None) -> int:
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except urllib.error.URLError:
        return 0


def test_redis_wants_its_password_keeps_a_log_and_evicts_nothing(
    processes: Start, base_env: dict[str, str], tmp_path: Path
) -> None:
    from worker.server_home import find_home

    port, password = _free_port(), "a-long-password"
    shell, option, script = SERVICES["redis"]["command"]
    # The container's folder and port are the only things changed.
    script = script.replace("$$", "$").replace("dir /data", f"dir {tmp_path}\nport {port}\nbind 127.0.0.1")
    program = find_home(Path(base_env["ALPHAPLUS_DATA_DIR"])).valkey_program
    env = base_env | {
        "PATH": f"{program.parent}:{base_env['PATH']}",
        "REDIS_PASSWORD": password,
        "APPEND_FSYNC": "no",
    }
    server = processes([shell, option, script], env)
    server.wait_for_line("Ready to accept connections")

    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis(port=port, password=password, decode_responses=True) as client:
        kept = client.config_get("appendonly", "appendfsync", "maxmemory-policy")
        assert kept == {"appendonly": "yes", "appendfsync": "no", "maxmemory-policy": "noeviction"}
        assert not any(password in word for word in psutil.Process(server.pid).cmdline())
    assert server.terminate() == 0
