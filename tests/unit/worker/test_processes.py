"""The command lines of the processes, Flower's password, and the guard."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ml.errors import ConfigRejected
from runtime.queues import INFERENCE, TRAINING
from worker.processes import beat_argv, flower_argv, flower_environment, worker_argv, worker_environment

pytestmark = pytest.mark.scheduler

CELERY = [sys.executable, "-P", "-m", "celery", "--app", "worker", "--quiet"]


def test_training_worker_is_prefork_takes_one_job_at_a_time_and_renews_its_children() -> None:
    assert worker_argv("training") == [
        *CELERY,
        "worker",
        "--queues=training",
        "--hostname=training@%h",
        "--pool=prefork",
        "--concurrency=1",
        "--without-mingle",
        "--without-gossip",
        "--prefetch-multiplier=1",
        "--max-tasks-per-child=20",
        "--task-events",
    ]


def test_inference_worker_sends_no_events() -> None:
    argv = worker_argv("inference")
    assert "--pool=solo" in argv
    assert "--task-events" not in argv


def test_worker_of_several_queues_takes_the_pool_that_training_needs() -> None:
    argv = worker_argv("maintenance", "training", concurrency=2, name="both")
    assert "--queues=maintenance,training" in argv
    assert "--hostname=both@%h" in argv
    assert "--pool=prefork" in argv
    assert "--concurrency=2" in argv


@pytest.mark.parametrize(
    ("queue", "concurrency", "field"),
    [
        ("trainings", None, "queue"),
        ("", None, "queue"),
        ("training", 0, "concurrency"),
        ("training", 65, "concurrency"),
        ("inference", 2, "concurrency"),
    ],
)
def test_unknown_queue_or_impossible_concurrency_is_rejected(
    queue: str, concurrency: int | None, field: str
) -> None:
    with pytest.raises(ConfigRejected) as caught:
        worker_argv(queue, concurrency=concurrency)
    assert caught.value.field == field


def test_sigterm_means_soft_shutdown_unless_the_environment_says_otherwise() -> None:
    assert worker_environment({})["REMAP_SIGTERM"] == "SIGQUIT"
    assert worker_environment({"REMAP_SIGTERM": ""})["REMAP_SIGTERM"] == ""
    assert worker_environment({}, TRAINING, INFERENCE)["REMAP_SIGTERM"] == "SIGQUIT"
    # Its tasks take milliseconds, and the soft shutdown would freeze the one at work.
    assert "REMAP_SIGTERM" not in worker_environment({}, INFERENCE)


def test_no_secret_is_on_a_command_line() -> None:
    assert beat_argv() == [*CELERY, "beat"]
    assert flower_argv() == [*CELERY, "flower"]


def test_flower_gets_a_login_made_once_and_kept_for_its_owner_only(tmp_path: Path) -> None:
    first = flower_environment({}, tmp_path / "data")
    assert first == flower_environment({}, tmp_path / "data")
    user, _, password = first["FLOWER_BASIC_AUTH"].partition(":")
    assert user == "alphaplus"
    assert len(password) == 24
    assert first["FLOWER_ADDRESS"] == "127.0.0.1"
    kept = tmp_path / "data" / "flower-login"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_flower_takes_what_the_operator_gives_and_never_opens_its_api(tmp_path: Path) -> None:
    given = {
        "FLOWER_BASIC_AUTH": "me:secret",
        "FLOWER_PORT": "7777",
        "FLOWER_UNAUTHENTICATED_API": "true",
        "OTHER": "kept",
    }
    environment = flower_environment(given, tmp_path)
    assert environment["FLOWER_BASIC_AUTH"] == "me:secret"
    assert environment["FLOWER_PORT"] == "7777"
    assert environment["OTHER"] == "kept"
    assert "FLOWER_UNAUTHENTICATED_API" not in environment
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("login", ["me", "me:", ":secret", "me:secret,you"])
def test_flower_login_without_user_or_password_is_rejected(login: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigRejected, match="FLOWER_BASIC_AUTH"):
        flower_environment({"FLOWER_BASIC_AUTH": login}, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_guarded_program_ends_when_its_starter_is_killed() -> None:
    starter = (
        "import os, subprocess, sys, time\n"
        "sleeper = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(600)']\n"
        "guarded = [sys.executable, '-m', 'worker.guard', str(os.getpid()), *sleeper]\n"
        "child = subprocess.Popen(guarded, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        guarded = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs([guarded], timeout=10)
    assert [one.pid for one in gone] == [guarded.pid]
    assert alive == []


def test_guard_whose_starter_is_dead_already_starts_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    command = [sys.executable, "-m", "worker.guard", str(os.getpid() + 1), "/usr/bin/touch", str(mark)]
    assert subprocess.run(command, check=False).returncode == 0
    assert not mark.exists()
