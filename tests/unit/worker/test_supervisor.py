"""The supervisor with real programs."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from worker.supervisor import Program, Supervisor

pytestmark = pytest.mark.scheduler


def program(name: str, code: str) -> Program:
    return Program(name=name, argv=[sys.executable, "-u", "-c", code], environment=dict(os.environ))


class Lines:
    """What the programs wrote; sets ``stop`` when a line comes as often as asked."""

    def __init__(self, stop: threading.Event, awaited: str, times: int = 1) -> None:
        self.lines: list[tuple[str, str]] = []
        self._stop, self._awaited, self._left = stop, awaited, times

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        if self._awaited in line:
            self._left -= 1
            if self._left == 0:
                self._stop.set()


def run(programs: list[Program], lines: Lines, stop: threading.Event, stop_seconds: float = 10) -> None:
    Supervisor(programs, lines, stop_seconds=stop_seconds).run(stop, lambda: None)


def test_lines_carry_the_name_of_their_program_and_a_stop_ends_all() -> None:
    stop = threading.Event()
    lines = Lines(stop, "from two")
    sleep = "import time; time.sleep(600)"
    run(
        [program("one", f"print('from one'); {sleep}"), program("two", f"print('from two'); {sleep}")],
        lines,
        stop,
    )
    assert ("two", "from two") in lines.lines
    assert all(line in {("one", "from one"), ("two", "from two")} for line in lines.lines)
    assert [
        child for child in psutil.Process().children() if "time.sleep(600)" in " ".join(child.cmdline())
    ] == []


def test_program_that_dies_is_started_again_after_a_growing_pause() -> None:
    stop = threading.Event()
    lines = Lines(stop, "ended with 3", times=2)
    run([program("dies", "print('up'); raise SystemExit(3)")], lines, stop)
    assert lines.lines[:4] == [
        ("dies", "up"),
        ("dies", "ended with 3; starts again in 1 s"),
        ("dies", "up"),
        ("dies", "ended with 3; starts again in 2 s"),
    ]


def test_program_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    stop = threading.Event()
    lines = Lines(stop, "child")
    deaf = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print('child', c.pid); time.sleep(600)"
    )
    started = time.monotonic()
    run([program("deaf", deaf)], lines, stop, stop_seconds=0.5)
    assert time.monotonic() - started >= 0.5
    child = int(lines.lines[0][1].split()[1])
    _, alive = psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=10)
    assert alive == []


def test_others_are_looked_after_meanwhile() -> None:
    stop = threading.Event()
    lines = Lines(stop, "never")
    Supervisor([], lines, stop_seconds=1).run(stop, stop.set)
    assert lines.lines == []
