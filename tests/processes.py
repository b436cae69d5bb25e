"""Real processes for tests: Celery workers and the command line."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["ROOT", "CommandResult", "RunningProcess", "run_command", "start_process"]

ROOT = Path(__file__).parents[1]
READY_SECONDS = 60.0
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a finished command left."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A started process with its log (stdout and stderr together)."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Of the process itself; a prefork worker's children have their own."""
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def children(self) -> list[psutil.Process]:
        """Its children, their children included."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """SIGKILL to it and its children at once, as when the machine loses it; returns when all are gone."""
        doomed = self.children()
        self.popen.kill()
        for child in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.popen.wait()
        psutil.wait_procs(doomed, timeout=10)

    def terminate(self, timeout_seconds: float = 60.0) -> int:
        """SIGTERM to it alone; returns its exit code."""
        self.popen.terminate()
        return self.popen.wait(timeout_seconds)

    def wait_for_line(self, text: str, timeout_seconds: float = READY_SECONDS) -> None:
        """Return when the log holds ``text``. Raises AssertionError with the log when it ends or is late."""
        self.wait_for(lambda: text in self.log.read_text(errors="replace"), repr(text), timeout_seconds)

    def wait_for(
        self, condition: Callable[[], bool], what: str, timeout_seconds: float = READY_SECONDS
    ) -> None:
        """Return when ``condition`` holds. Raises AssertionError with the log when it ends or is late."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if not self.running or time.monotonic() > deadline:
                state = "is late" if self.running else f"ended with {self.popen.returncode}"
                raise AssertionError(
                    f"waiting for {what}: the process {state}\n{self.log.read_text(errors='replace')}"
                )
            time.sleep(POLL_SECONDS)


def start_process(command: list[str], env: Mapping[str, str], log: Path) -> RunningProcess:
    """Start ``command`` in the project's folder, in a session of its own."""
    with log.open("ab") as output:
        popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return RunningProcess(popen, log)


def run_command(
    command: list[str],
    env: Mapping[str, str],
    *,
    cwd: Path = ROOT,
    timeout_seconds: float = 120.0,
) -> CommandResult:
    """Run ``command`` to its end."""
    done = subprocess.run(
        command, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=timeout_seconds,
    )  # fmt: skip
    return CommandResult(done.returncode, done.stdout, done.stderr)


def script(name: str) -> str:
    """A console script of this environment, such as ``celery``."""
    return str(Path(sys.executable).with_name(name))
