"""The project's own rules about its files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.processes import ROOT, run_command, script

pytestmark = pytest.mark.servers

PACKAGES = ("ml", "client", "db", "feeds", "tasks", "worker", "runtime", "benchmarks", "tests")
MAX_LINES = 400
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def python_files() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(found) > 50
    return [ROOT / "beat_schedule.py", *found]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_has_nothing_to_say(command: list[str], base_env: dict[str, str]) -> None:
    done = run_command([script("ruff"), *command, "--no-cache", "."], base_env)
    assert done.exit_code == 0, done.stdout + done.stderr


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {
        path.relative_to(ROOT): path.read_text(encoding="utf-8").count("\n") for path in python_files()
    }
    too_long = {str(path): lines for path, lines in lengths.items() if lines > MAX_LINES}
    # A migration is a list of tables, written once and never changed.
    assert {path: lines for path, lines in too_long.items() if "migrations/versions" not in path} == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [str(path) for path in python_files() if path.stem in VAGUE_NAMES] == []


def test_the_lock_names_no_address_and_hashes_every_package() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    packages = re.findall(r"^(\S+)==\S+.*((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)*)", lock, re.MULTILINE)
    assert len(packages) > 50
    assert [name for name, hashes in packages if not hashes] == []


def test_the_lock_holds_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["dependency-groups"]["lock"],
    ]
    names = {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].lower() for line in declared}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    assert names - locked == set()


def test_every_direct_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    explained = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    names = {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].lower() for line in declared}
    assert sorted(name for name in names if f"| {name} |" not in explained) == []


def test_no_test_runs_tasks_without_a_worker() -> None:
    eager = "task_" + "always_eager"
    assert [str(path) for path in python_files() if eager in path.read_text(encoding="utf-8")] == []


def test_nothing_is_pickled() -> None:
    unpickling = re.compile(r"^\s*(?:import|from) (?:c?pickle|dill|joblib|cloudpickle)\b", re.MULTILINE)
    assert [str(path) for path in python_files() if unpickling.search(path.read_text(encoding="utf-8"))] == []
