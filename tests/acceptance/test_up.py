"""`alphaplus up` on a machine where nothing is configured."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from tests.processes import RunningProcess, run_command, script

pytestmark = pytest.mark.scheduler

Start = Callable[[list[str], Mapping[str, str]], RunningProcess]
READY = ("training@", "drift@", "maintenance@", "beat: Acquired lock", "flower │")
STOPPED_SECONDS = 40


def start_up(processes: Start, env: Mapping[str, str]) -> RunningProcess:
    up = processes([script("alphaplus"), "up"], env)
    for text in READY:
        up.wait_for_line(text)
    up.wait_for(lambda: up.log.read_text().count(" ready.") >= 3, "three workers that are ready")
    return up


def programs(up: RunningProcess) -> dict[str, psutil.Process]:
    """The children of ``up`` by what they run; the servers are children too."""
    found: dict[str, psutil.Process] = {}
    for child in psutil.Process(up.pid).children():
        command = " ".join(child.cmdline())
        for name in ("--queues=training", "--queues=drift", "--queues=maintenance", "beat", "flower"):
            if command.endswith(f" {name}") or f" {name} " in command:
                found[name.removeprefix("--queues=")] = child
    return found


def cli(env: Mapping[str, str], *arguments: str) -> str:
    result = run_command([script("alphaplus"), *arguments], env)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_up_serves_restarts_what_dies_and_leaves_nothing_when_it_ends(
    processes: Start, base_env: dict[str, str], tmp_path: Path
) -> None:
    up = start_up(processes, base_env)
    first = programs(up)
    assert first.keys() == {"training", "drift", "maintenance", "beat", "flower"}

    # The literal call from another folder finds the servers; there are no candles, and the job says so.
    call = run_command(
        ["celery", "call", "tasks.train", "--args", "BTCUSDT,trending"], base_env, cwd=tmp_path
    )
    assert call.exit_code == 0, call.stderr
    job_id = call.stdout.strip()
    up.wait_for_line(f"[{job_id}] raised")
    [job] = json.loads(cli(base_env, "jobs", "--json"))
    assert (job["id"], job["state"]) == (job_id, "refused")

    first["beat"].send_signal(signal.SIGKILL)
    up.wait_for_line("ended with -9; starts again in 1 s")
    up.wait_for(lambda: "beat" in programs(up), "another beat")

    again = run_command([script("alphaplus"), "up"], base_env)
    assert again.exit_code == 3
    assert "runs already" in again.stderr

    # Killed, it can stop nothing itself: its programs end all the same.
    running = [
        *programs(up).values(),
        *(child for one in programs(up).values() for child in one.children(recursive=True)),
    ]
    assert len(running) >= 4
    os.kill(up.pid, signal.SIGKILL)
    up.popen.wait()
    _, alive = psutil.wait_procs(running, timeout=STOPPED_SECONDS)
    assert alive == []

    # The next start takes its servers over, with their data, and Ctrl-C stops all.
    up = start_up(processes, base_env)
    [kept] = json.loads(cli(base_env, "jobs", "--json"))
    assert kept["id"] == job_id
    everything = psutil.Process(up.pid).children(recursive=True)
    record = json.loads(cli(base_env, "servers", "status", "--json"))
    servers = [psutil.Process(record[name]["pid"]) for name in ("postgres", "valkey")]
    up.popen.send_signal(signal.SIGINT)
    assert up.popen.wait(STOPPED_SECONDS) == 0
    _, alive = psutil.wait_procs([*everything, *servers], timeout=5)
    assert alive == []
    assert up.log.read_text().endswith("Stopped.\n")
