"""docs/integration.md, as a stranger reads it: every block of code runs, every table is complete."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

import ml.errors
from ml.inference import ABSTAIN_REASONS
from ml.signals import FIELDS, parse_signals
from runtime.settings import Settings
from tests.acceptance.bare_python import bare_python
from tests.predicting import ANSWER_FIELDS, check_answer, recorded
from tests.processes import ROOT, CommandResult, RunningProcess, run_command

pytestmark = pytest.mark.inference

PAGE = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
DECIDED = re.compile(r"(accept|reject) 0\.\d+\n|abstain (None|null)\n")


def blocks(language: str) -> list[str]:
    """The page's blocks of code in that language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def table(first_column: str) -> list[list[str]]:
    """The cells of the page's table whose first column is headed so, without its head."""
    lines = PAGE[PAGE.index(f"| {first_column} |") :].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture
def worker(trained_env: dict[str, str], worker_process: Callable[..., RunningProcess]) -> RunningProcess:
    """An inference worker with champions, at a moment of which candles are stored."""
    return worker_process("inference", "--pool=solo", env=trained_env)


@pytest.fixture
def run_block(tmp_path: Path, redis_url: str) -> Callable[[Path | str, str], CommandResult]:
    """Run a block with that interpreter in an empty folder; the environment holds Redis's URL alone."""

    def run(program: Path | str, code: str) -> CommandResult:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        source = folder / ("ask.mjs" if program == "node" else "ask.py")
        source.write_text(code, encoding="utf-8")
        environment = {"ALPHAPLUS_REDIS_URL": redis_url, "PATH": os.environ["PATH"]}
        return run_command([str(program), source.name], environment, cwd=folder, timeout_seconds=60)

    return run


def assert_missing(run_block: Callable[..., CommandResult], python: Path, *modules: str) -> None:
    for name in modules:
        missing = run_block(python, f"import {name}")
        assert missing.stderr.endswith(f"ModuleNotFoundError: No module named '{name}'\n")


def test_a_detector_with_celery_and_redis_alone_gets_its_answer(
    worker: RunningProcess, tmp_path: Path, run_block: Callable[..., CommandResult], redis_url: str
) -> None:
    python = bare_python(tmp_path / "venv", "celery[redis]")
    assert_missing(run_block, python, "tasks", "ml", "client", "runtime", "numpy")
    plain, _, _ = blocks("python")
    done = run_block(python, plain)
    assert DECIDED.fullmatch(done.stdout), done.stdout + done.stderr
    with redis.Redis.from_url(redis_url) as server:
        assert [record["signal_id"] for record in recorded(server)] == ["signal-1"]


def test_the_client_needs_redis_and_two_folders_of_ours(
    worker: RunningProcess, tmp_path: Path, run_block: Callable[..., CommandResult], redis_url: str
) -> None:
    python = bare_python(tmp_path / "venv", "redis", packages=(ROOT / "client", ROOT / "ml"))
    assert_missing(run_block, python, "celery", "numpy", "runtime")
    _, threads, loop = blocks("python")
    done = run_block(python, threads)
    assert DECIDED.fullmatch(done.stdout), done.stdout + done.stderr
    done = run_block(python, loop)
    assert re.fullmatch(r"(accept|reject|abstain) (accept|reject|abstain) 2\n", done.stdout), done.stderr
    with redis.Redis.from_url(redis_url) as server:
        assert [record["direction"] for record in recorded(server)] == [1, 1, -1, 1, -1]
        assert server.keys("alphaplus:reply:*") == []


def test_the_client_says_what_is_wrong_when_the_worker_does(
    worker: RunningProcess, tmp_path: Path, run_block: Callable[..., CommandResult]
) -> None:
    python = bare_python(tmp_path / "venv", "redis", packages=(ROOT / "client", ROOT / "ml"))
    wrong = blocks("python")[1].replace('"direction": 1', '"direction": 3')
    assert run_block(python, wrong).stdout == "direction 3 1 (long) or -1 (short)\n"


def test_node_without_a_package_gets_its_answer(
    worker: RunningProcess, run_block: Callable[..., CommandResult], redis_url: str
) -> None:
    if shutil.which("node") is None:
        reason = "the block in JavaScript needs `node` (Node.js 20 or later) on the PATH"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    (code,) = blocks("js")
    done = run_block("node", code)
    assert DECIDED.fullmatch(done.stdout), done.stdout + done.stderr
    wrong = run_block("node", code.replace("direction: 1", "direction: 3"))
    assert "1 (long) or -1 (short)" in wrong.stdout
    with redis.Redis.from_url(redis_url) as server:
        assert [record["signal_id"] for record in recorded(server)] == ["signal-1"]


def test_the_example_of_a_signal_is_one_and_every_field_is_explained() -> None:
    example, *_ = blocks("json")
    (parsed,) = parse_signals(json.loads(example), default_interval="4h", now=NOW)
    assert (parsed.symbol, parsed.interval, parsed.direction) == ("BTCUSDT", "1h", 1)
    assert sorted(row[0].strip("`") for row in table("field")) == sorted(FIELDS)


def test_the_example_of_an_answer_has_every_field() -> None:
    _, example, _ = blocks("json")
    check_answer(json.loads(example))
    explained = re.findall(r"^\| `(\w+)` \| (?!yes|no|with)", PAGE, re.MULTILINE)
    assert {name for name in explained if name not in ABSTAIN_REASONS} <= ANSWER_FIELDS


def test_every_reason_to_abstain_is_explained() -> None:
    assert [row[0].strip("`") for row in table("`abstain_reason`")] == list(ABSTAIN_REASONS)


def test_every_error_of_the_page_is_one() -> None:
    error = json.loads(blocks("json")[2])["error"]
    assert error == ml.errors.InputRejected("direction", 3, "1 (long) or -1 (short)").as_json()
    named = {row[1].strip("`") for row in table("on the wire")}
    assert named == {
        "AnswerTimeout", "BrokerUnavailable", "Busy", "CandlesRejected", "InputRejected", "KeyRejected",
        "RetryLater",
    }  # fmt: skip
    assert all(issubclass(getattr(ml.errors, name), ml.errors.AlphaPlusError) for name in named)


def test_every_setting_of_the_page_is_one() -> None:
    for name in set(re.findall(r"`ALPHAPLUS_([A-Z_]+)`", PAGE)):
        assert name.lower() in Settings.model_fields
