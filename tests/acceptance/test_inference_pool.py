"""`alphaplus worker inference --processes N`: listed by Celery, scaled by signals, mended when killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.predicting import SIGNAL, Caller, check_answer, wait_until
from tests.processes import RunningProcess, run_command, script

pytestmark = pytest.mark.inference


@pytest.fixture
def pool(trained_env: dict[str, str], processes: Callable[..., RunningProcess]) -> RunningProcess:
    """Two workers of one command."""
    command = [script("alphaplus"), "worker", "inference", "--processes", "2", "--name", "answers"]
    started = processes(command, trained_env)
    started.wait_for(lambda: ready(started) == 2, "two workers ready", 90)
    return started


def ready(pool: RunningProcess) -> int:
    return pool.log.read_text(errors="replace").count(" ready.")


def nodes(env: dict[str, str]) -> dict[str, Any]:
    """What `celery -A worker inspect active` lists."""
    command = [script("celery"), "-A", "worker", "inspect", "active", "--json", "--timeout", "3"]
    done = run_command(command, env)
    found = json.loads(done.stdout) if done.exit_code == 0 else {}
    assert isinstance(found, dict)
    return {name.partition("@")[0]: tasks for name, tasks in found.items()}


def test_the_pool_answers_is_listed_and_mends_itself(
    pool: RunningProcess, trained_env: dict[str, str], caller: Caller
) -> None:
    assert nodes(trained_env) == {"answers-1": [], "answers-2": []}
    check_answer(caller.answer(SIGNAL))

    # The guard becomes the worker: the pool's own children are the two of them.
    victims = [
        child for child in psutil.Process(pool.pid).children() if "--queues=inference" in child.cmdline()
    ]
    assert len(victims) == 2
    for victim in victims:
        victim.kill()
    pool.wait_for(lambda: ready(pool) == 4, "both workers again", 90)
    check_answer(caller.answer(SIGNAL))


def test_signals_scale_the_pool_and_an_end_leaves_nothing(
    pool: RunningProcess, trained_env: dict[str, str]
) -> None:
    os.kill(pool.pid, signal.SIGTTIN)
    pool.wait_for(lambda: ready(pool) == 3, "a third worker", 90)
    assert set(nodes(trained_env)) == {"answers-1", "answers-2", "answers-3"}

    os.kill(pool.pid, signal.SIGTTOU)
    pool.wait_for_line("ended, as told")
    wait_until(lambda: set(nodes(trained_env)) == {"answers-1", "answers-2"}, "two workers")
    time.sleep(1)  # were it started again, it would be by now
    assert ready(pool) == 3

    children = pool.children()
    assert pool.terminate() == 0
    assert [child for child in children if child.is_running()] == []
