"""Several programs in one terminal: their lines with a prefix, restarts with backoff, one clean stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Program", "Supervisor"]

POLL_SECONDS = 0.1
LAST_WORDS_SECONDS = 1.0
OTHERS_SECONDS = 1.0
BACKOFF_CAP_SECONDS = 30.0
HEALTHY_SECONDS = 60.0
"""A program that ran this long starts anew without delay, and its backoff begins again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run, and the name its lines carry."""

    name: str
    argv: list[str]
    environment: Mapping[str, str]


@dataclass(slots=True)
class _Child:
    program: Program
    process: subprocess.Popen[str] | None = None
    started: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    retire_by: float | None = None
    """Told to end: it is killed at this time, and not started again."""
    reader: threading.Thread | None = field(default=None, repr=False)


class Supervisor:
    """Runs programs until it is told to stop.

    Args:
        programs: started in this order, stopped all at once.
        write: called with a program's name and one line of its output, from a thread a program.
        stop_seconds: what the programs get to end after SIGTERM, before SIGKILL.
    """

    def __init__(
        self, programs: Sequence[Program], write: Callable[[str, str], None], *, stop_seconds: float
    ) -> None:
        self._children = [_Child(program) for program in programs]
        self._write = write
        self._stop_seconds = stop_seconds

    def run(self, stop: threading.Event, look_after_others: Callable[[], None]) -> None:
        """Keep every program running until ``stop`` is set; then end them all, and return.

        ``look_after_others`` is called once a second meanwhile.

        Call it from the main thread: Linux takes the end of the thread that started a child for the
        end of its parent.
        """
        others_due = time.monotonic()
        try:
            while not stop.is_set():
                for child in list(self._children):
                    self._look_after(child)
                if time.monotonic() >= others_due:
                    look_after_others()
                    others_due = time.monotonic() + OTHERS_SECONDS
                stop.wait(POLL_SECONDS)
        finally:
            self._end_all()

    def add(self, program: Program) -> None:
        """One more, started within a moment. From the thread of ``run`` only, as ``retire_last``."""
        self._children.append(_Child(program))

    def retire_last(self) -> None:
        """Ask the program that came last to end; it is not started again."""
        for child in reversed(self._children):
            if child.retire_by is None:
                child.retire_by = time.monotonic() + self._stop_seconds
                if child.process is not None:
                    child.process.terminate()
                return

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.retire_by is not None and (child.process is None or child.process.poll() is not None):
            self._children.remove(child)
            self._write(child.program.name, "ended, as told")
            return
        if child.retire_by is not None and now >= child.retire_by and child.process is not None:
            self._kill_group(child.process)
        if child.process is None:
            if now >= child.start_at:
                self._start(child)
            return
        exit_code = child.process.poll()
        if exit_code is None:
            return
        self._kill_group(child.process)  # what it left behind
        if child.reader is not None:
            # Its last words before ours; bounded, for a grandchild in a group of its own may hold the pipe.
            child.reader.join(LAST_WORDS_SECONDS)
        child.failures = 0 if now - child.started >= HEALTHY_SECONDS else child.failures + 1
        delay = min(BACKOFF_CAP_SECONDS, 2.0 ** (child.failures - 1)) if child.failures else 0.0
        self._write(child.program.name, f"ended with {exit_code}; starts again in {delay:g} s")
        child.process, child.start_at = None, now + delay

    def _start(self, child: _Child) -> None:
        guard = [sys.executable, "-P", "-m", "worker.guard", str(os.getpid())]
        child.process = subprocess.Popen(
            [*guard, *child.program.argv],
            env=dict(child.program.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C reaches us alone; we pass it on once, as SIGTERM.
            start_new_session=True,
        )
        child.started = time.monotonic()
        child.reader = threading.Thread(
            target=self._read, args=(child.program.name, child.process), daemon=True
        )
        child.reader.start()

    def _read(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._write(name, line.rstrip("\n"))

    def _end_all(self) -> None:
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self._stop_seconds
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in running:
            self._kill_group(process)
            process.wait()
        for child in self._children:
            if child.reader is not None:
                child.reader.join()

    @staticmethod
    def _kill_group(process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
