"""Workers for the benchmark, and one that does nothing, by the commands of production."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from celery import Celery

from benchmarks.champions import SETTINGS, Ground
from runtime.queues import INFERENCE
from worker.processes import worker_argv, worker_environment

__all__ = ["Pool", "Worker", "cpu_seconds"]

ROOT: Final = Path(__file__).parents[1]
READY_SECONDS: Final = 120
OURS, EMPTY = 5, 6
"""Redis databases."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that answers ``ping``."""

    popen: subprocess.Popen[bytes]
    node: str

    def rss_mib(self) -> float:
        """Its resident memory now."""
        return psutil.Process(self.popen.pid).memory_info().rss / 2**20

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        return cpu_seconds(self.popen.pid)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system


@dataclass(frozen=True, slots=True)
class Pool:
    """Starts the workers."""

    ground: Ground
    server_url: str
    folder: Path

    @property
    def ours(self) -> str:
        """The Redis database of the inference workers."""
        return f"{self.server_url.rpartition('/')[0]}/{OURS}"

    @property
    def empty(self) -> str:
        """The Redis database of the worker that does nothing."""
        return f"{self.server_url.rpartition('/')[0]}/{EMPTY}"

    @contextmanager
    def worker(self, name: str, *, queue: str = INFERENCE) -> Iterator[Worker]:
        """A worker of a queue, by the command and with the settings of production."""
        settings = {
            "ALPHAPLUS_DATABASE_URL": self.ground.database_url,
            "ALPHAPLUS_REDIS_URL": self.ours,
            "ALPHAPLUS_LOG_LEVEL": "INFO",
            **{f"ALPHAPLUS_{setting.upper()}": str(value) for setting, value in SETTINGS.items()},
        }
        name = f"{queue}-{name}"
        argv = worker_argv(queue, name=name)
        with _started(argv, settings, self.ours, self.folder / f"{name}.log", queue) as worker:
            yield worker

    @contextmanager
    def empty_worker(self) -> Iterator[Worker]:
        """A worker of the same kind whose task does nothing."""
        argv = worker_argv(INFERENCE, name="empty")
        argv[argv.index("--app") + 1] = "benchmarks.empty_worker"
        settings = {"BENCHMARK_REDIS_URL": self.empty}
        with _started(argv, settings, self.empty, self.folder / "empty.log", INFERENCE) as worker:
            yield worker


@contextmanager
def _started(
    argv: Sequence[str], settings: Mapping[str, str], redis_url: str, log: Path, queue: str
) -> Iterator[Worker]:
    """A worker, ready when yielded; told to end afterwards.

    Args:
        argv: of ``worker_argv``.
        settings: environment variables beside this process's.
        redis_url: its broker's.
        log: where its output goes.
        queue: that it serves.
    """
    environment = worker_environment({**os.environ, "PYTHONPATH": str(ROOT), **settings}, queue)
    with log.open("wb") as output:
        popen = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    hostname = next(part for part in argv if part.startswith("--hostname="))
    try:
        node = _await_ready(popen, hostname.partition("=")[2].partition("@")[0], redis_url, log)
        yield Worker(popen, node)
    finally:
        popen.terminate()
        popen.wait(READY_SECONDS)


def _await_ready(popen: subprocess.Popen[bytes], name: str, redis_url: str, log: Path) -> str:
    deadline = time.monotonic() + READY_SECONDS
    with Celery(broker=redis_url) as app:
        while popen.poll() is None and time.monotonic() < deadline:
            for answer in app.control.ping(timeout=0.2):
                for node in answer:
                    if node.partition("@")[0] == name:
                        return str(node)
    raise RuntimeError(f"a worker ended, or was not ready within {READY_SECONDS} s:\n{log.read_text()}")
