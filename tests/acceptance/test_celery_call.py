"""`celery call tasks.train --args BTCUSDT,trending`, to the letter, from any folder."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
import redis
from sqlalchemy.engine import Engine

from db import jobs
from db.session import transaction
from tests.processes import ROOT, run_command

pytestmark = pytest.mark.scheduler

LITERAL = ["celery", "call", "tasks.train", "--args", "BTCUSDT,trending"]


def queued(redis_url: str) -> list[dict[str, object]]:
    """Headers of what waits on the training queue, oldest first."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        return [json.loads(message)["headers"] for message in reversed(client.lrange("training", 0, -1))]


def everything(redis_url: str) -> set[str]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        return set(client.keys())


def test_literal_call_queues_one_job_from_the_projects_folder(
    settings_env: dict[str, str], redis_url: str, engine: Engine
) -> None:
    result = run_command(LITERAL, settings_env)
    assert (result.exit_code, result.stderr) == (0, "")
    job_id = result.stdout.strip()
    assert str(uuid.UUID(job_id)) == job_id
    assert [(one["task"], one["id"], one["argsrepr"]) for one in queued(redis_url)] == [
        ("tasks.train", job_id, "['BTCUSDT', 'trending']")
    ]
    with transaction(engine) as session:
        [job] = jobs.recent(session, 10)
        assert (job.id, job.state, str(job.key)) == (job_id, "queued", "BTCUSDT 1h trending")


def test_call_works_from_a_folder_whose_files_are_called_like_our_packages(
    settings_env: dict[str, str], redis_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("tasks", "worker", "db", "ml", "runtime", "feeds", "beat_schedule", "celeryconfig"):
        (folder / f"{name}.py").write_text("raise SystemExit('a file of another project was imported')\n")
    command = ["celery", "call", "tasks.train", "--args", '["ETHUSDT", "all"]']
    result = run_command(command, settings_env, cwd=folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [one["argsrepr"] for one in queued(redis_url)] == ["['ETHUSDT', 'all']"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["tasks.train", "--args", "BTCUSDT,bogus"],
            "regime: 'bogus' is not accepted; expected one of trending",
        ),
        (["tasks.train", "--args", "BTCUSDT"], "missing a required argument: 'regime'"),
        (["tasks.train", "--args", '["BTCUSDT", '], "Invalid value for '-a' / '--args'"),
        (["tasks.tarin", "--args", "BTCUSDT,trending"], "no task is called 'tasks.tarin'"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_written(
    settings_env: dict[str, str], redis_url: str, engine: Engine, arguments: list[str], told: str
) -> None:
    result = run_command(["celery", "call", *arguments], settings_env)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert everything(redis_url) == set()
    with transaction(engine) as session:
        assert jobs.recent(session, 10) == []


def test_call_to_a_broker_that_is_away_says_so_and_records_no_job(
    settings_env: dict[str, str], engine: Engine
) -> None:
    env = settings_env | {"ALPHAPLUS_REDIS_URL": "redis://127.0.0.1:1/0"}
    result = run_command(LITERAL, env, timeout_seconds=60)
    assert result.exit_code == 1
    assert "the broker does not answer" in result.stderr
    assert "Traceback" not in result.stderr
    with transaction(engine) as session:
        assert jobs.recent(session, 10) == []


def test_call_without_servers_says_how_to_start_them(base_env: dict[str, str]) -> None:
    result = run_command(LITERAL, base_env, cwd=ROOT)
    assert result.exit_code != 0
    assert "alphaplus up" in result.stderr
    assert "Traceback" not in result.stderr
