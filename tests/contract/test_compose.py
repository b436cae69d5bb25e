"""docker-compose.yml against the compose schema, and against what docs/deploy.md promises of it.

The schema is the one that Docker Compose 2.40.3 carries (compose-spec, Apache-2.0).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from runtime.queues import DRIFT, INFERENCE, MAINTENANCE, TRAINING
from worker import processes

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCUMENT: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
LONG_RUNNING = sorted(set(SERVICES) - {"migrate"})
SECRETS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "FLOWER_USER", "FLOWER_PASSWORD", "AUDIT_HMAC_KEY"}
REFERENCE = re.compile(r"(?<!\$)\$\{(?P<name>\w+)(?P<rest>[^}]*)\}")


def _strings(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
    elif isinstance(node, str):
        yield node


def _example_environment() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_file_follows_the_compose_schema() -> None:
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    # The file's draft is named with https, which jsonschema's own look-up does not know.
    jsonschema.Draft7Validator(schema).validate(DOCUMENT)


def test_services_are_the_ones_of_the_first_version() -> None:
    workers = {"training", "drift", "maintenance", "inference"}
    assert set(SERVICES) == {"redis", "timescaledb", "migrate", "beat", "flower"} | workers


def test_command_lines_are_those_that_the_project_starts_itself() -> None:
    expected = {
        "training": processes.worker_argv(TRAINING),
        "drift": processes.worker_argv(DRIFT),
        "maintenance": processes.worker_argv(MAINTENANCE),
        "inference": processes.worker_argv(INFERENCE),
        "beat": processes.beat_argv(),
        "flower": processes.flower_argv(),
    }
    for name, (_interpreter, *arguments) in expected.items():
        assert SERVICES[name]["command"] == ["python", *arguments], name


def test_every_secret_is_required_and_none_is_in_the_file() -> None:
    references = [match for text in _strings(DOCUMENT) for match in REFERENCE.finditer(text)]
    required = {match["name"] for match in references if match["rest"].startswith(":?")}
    assert required == SECRETS
    assert not {match["name"] for match in references if not match["rest"].startswith(":?")} & SECRETS
    for text in _strings(DOCUMENT):
        assert not re.search(r":[^/@]+@", REFERENCE.sub("", text)), f"a password in the clear: {text}"


def test_env_example_names_every_variable_and_holds_no_secret() -> None:
    names = {match["name"] for text in _strings(DOCUMENT) for match in REFERENCE.finditer(text)}
    example = _example_environment()
    assert set(example) == names
    assert {name for name, value in example.items() if not value} == SECRETS


def test_images_are_pinned_to_a_version() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":\$\{IMAGE_VERSION:-[\d.]+\}$|:\d+\.\d+\.\d+(-\w+)?$", service["image"]), name


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in {"root", "0", "0:0"}
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert "privileged" not in service
    assert "container_name" not in service, "a fixed name cannot be scaled"


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_service_restarts_and_says_whether_it_is_well(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(SERVICES[name]["healthcheck"])


def test_only_flower_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert list(published) == ["flower"]
    assert all(port.startswith("127.0.0.1:") for port in published["flower"])
    assert "FLOWER_BASIC_AUTH" in SERVICES["flower"]["environment"]
    assert not any("FLOWER_UNAUTHENTICATED_API" in text for text in _strings(DOCUMENT))


def test_servers_are_on_the_private_network_only() -> None:
    assert DOCUMENT["networks"]["private"] == {"internal": True}
    assert SERVICES["redis"]["networks"] == SERVICES["timescaledb"]["networks"] == ["private"]


def test_redis_keeps_every_message() -> None:
    configuration = SERVICES["redis"]["command"][-1]
    assert {"dir /data", "appendonly yes", "maxmemory-policy noeviction"} <= set(configuration.splitlines())
    assert SERVICES["redis"]["volumes"] == ["redis-data:/data"]


@pytest.mark.parametrize("name", ["training", "drift", "maintenance", "inference"])
def test_worker_starts_after_the_migration_and_is_asked_to_hand_its_tasks_back(name: str) -> None:
    remapped = SERVICES[name]["environment"].get("REMAP_SIGTERM")
    assert remapped == processes.worker_environment({}, name).get("REMAP_SIGTERM")
    assert SERVICES[name]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }


def _compose() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            found = subprocess.run([*command, "version"], capture_output=True, check=False)
            if found.returncode == 0:
                return command
    return None


def _run_config(environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = _compose()
    if command is None:
        pytest.skip("no docker compose on this machine; the schema test stands")
    env_file = folder / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    return subprocess.run(
        [*command, "--file", str(COMPOSE_FILE), "--env-file", str(env_file), "config", "--quiet"],
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


def test_compose_itself_accepts_the_file(tmp_path: Path) -> None:
    filled = {name: value or "secret" for name, value in _example_environment().items()}
    result = _run_config(filled, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_compose_itself_refuses_a_missing_secret(missing: str, tmp_path: Path) -> None:
    filled = {name: value or "secret" for name, value in _example_environment().items()}
    result = _run_config(filled | {missing: ""}, tmp_path)
    assert result.returncode != 0
    assert f"{missing} is missing a value" in result.stderr
