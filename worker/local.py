"""The system's own PostgreSQL and Valkey, for a machine where nothing is configured.

The command that starts them stops them at its end; other commands find them by
``<data_dir>/running.json``. Of several starts on one folder the first owns the servers, the others
attach. If the owner was killed its servers run on: the next start takes them over as they are, so
nothing is lost. Two folders are two independent pairs of servers.

Both listen on 127.0.0.1 with a random password. (A Unix socket would save some 0.1 ms a connection, but
its path is limited to 107 bytes, which a deep data folder exceeds.) Ports stay the same from start to
start while they are free, so that a worker which outlives its servers finds the next ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal

import psutil

from ml.errors import StopForOperator
from runtime.server_record import ProcessMark, ServerRecord
from worker.server_home import ServerHome, find_home
from worker.server_programs import Postgres, ServerProgram, Valkey, has_ended, port_is_free

__all__ = ["LocalServers", "local_servers", "start_servers", "stop_servers"]

START_TIMEOUT_SECONDS = 60.0
"""Long enough for crash recovery of a large write-ahead log."""
START_ATTEMPTS = 5
START_PAUSE_SECONDS = 0.5
"""Another program may take a free port between our look and the server's start, and the processes of a
killed PostgreSQL linger for a moment."""
POLL_SECONDS = 0.04
OWNER_STOP_SECONDS = 90.0
"""What `alphaplus servers stop` gives the owner, who may wait for its workers first."""
LOG_LINES_SHOWN = 12

_started: list[subprocess.Popen[bytes]] = []
"""Children of this process, kept so that Python does not complain when one outlives its starter."""


@dataclass(frozen=True, slots=True)
class LocalServers:
    """Running servers of a data folder."""

    record: ServerRecord
    home: ServerHome
    owned: bool
    """Whether this process started them (or took them over), and so stops them."""

    def stop(self) -> None:
        """Stop them if they are ours; a second call does nothing."""
        if self.owned:
            with _locked(self.home.data_dir):
                _stop(self.home)


@contextlib.contextmanager
def local_servers(
    data_dir: Path,
    *,
    clock: Literal["wall", "replay"] = "wall",
    replay_start: datetime | None = None,
    durable: bool = True,
) -> Iterator[LocalServers]:
    """Servers for the length of a ``with`` block, stopped also when SIGTERM or SIGHUP ends it.

    Arguments and errors are those of `start_servers`.
    """
    with _termination_raises():
        servers = start_servers(data_dir, clock=clock, replay_start=replay_start, durable=durable)
        try:
            yield servers
        finally:
            servers.stop()


def start_servers(
    data_dir: Path,
    *,
    clock: Literal["wall", "replay"] = "wall",
    replay_start: datetime | None = None,
    durable: bool = True,
) -> LocalServers:
    """Start the servers of ``data_dir``, or attach to those that run; returns when both answer.

    Args:
        data_dir: made if missing; the data of an earlier start are found again.
        clock: recorded for other commands, with ``replay_start``; who attaches gets the owner's.
        replay_start: aware.
        durable: False lets PostgreSQL skip fsync: faster, and a power cut may cost the database. For tests.

    Raises:
        StopForOperator: the folder is not usable, or a server does not start (the end of its log is shown).
    """
    data_dir = Path(os.path.abspath(data_dir.expanduser()))  # noqa: PTH100 - links stay as the user gave them
    home = find_home(data_dir)
    with _locked(data_dir):
        before = ServerRecord.read(data_dir)
        attached = before if before is not None and before.owner.alive else None
        try:
            postgres, valkey = (_ensure(program) for program in _programs(home, durable=durable))
            record = ServerRecord(
                database_url=postgres.url,
                redis_url=valkey.url,
                postgres=_mark(postgres),
                valkey=_mark(valkey),
                owner=attached.owner if attached else ProcessMark.of(os.getpid()),
                clock=attached.clock if attached else clock,
                replay_start=attached.replay_start if attached else replay_start,
                started_at=datetime.now(UTC),
            )
            record.write(data_dir)
        except BaseException:
            if not attached:
                _stop(home)
            raise
    return LocalServers(record, home, owned=attached is None)


def stop_servers(data_dir: Path) -> bool:
    """Stop the servers of ``data_dir`` from another process; False if none ran.

    A living owner is asked to end (SIGTERM) and stops them itself; what a dead one left is stopped here.
    """
    record = ServerRecord.read(data_dir)
    owner = record.owner.process() if record else None
    if owner is not None and owner.pid != os.getpid():
        owner.terminate()
        if _ends_within(owner, OWNER_STOP_SECONDS):
            return True
        raise StopForOperator(
            f"process {owner.pid}, which started the servers, does not end: kill it, then stop them again"
        )
    if not data_dir.exists():
        return False
    home = find_home(data_dir)
    with _locked(data_dir):
        return _stop(home)


def _programs(home: ServerHome, *, durable: bool = True) -> tuple[ServerProgram, ServerProgram]:
    return Postgres(home, durable=durable), Valkey(home, durable=durable)


def _ensure(program: ServerProgram) -> ServerProgram:
    """Return when ``program`` answers; starts it unless a process of its folder runs already."""
    for _ in range(START_ATTEMPTS):
        child = None
        if program.process() is None:
            if not port_is_free(program.access.port):
                program.move_to_free_port()
            program.prepare()
            child = program.spawn()
            _started.append(child)
        if _wait_until_answers(program, child):
            return program
        time.sleep(START_PAUSE_SECONDS)
    raise StopForOperator(f"{program.name} does not start; the end of its log:\n{_log_end(program)}")


def _wait_until_answers(program: ServerProgram, child: subprocess.Popen[bytes] | None) -> bool:
    """True when it answers, False when the child ended. Raises StopForOperator after the time limit."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if program.process() is not None and program.answers():
            return True
        if child is not None and child.poll() is not None:
            return False
        if child is None and program.process() is None:
            return False
        time.sleep(POLL_SECONDS)
    raise StopForOperator(
        f"{program.name} runs but does not answer on port {program.access.port} within "
        f"{START_TIMEOUT_SECONDS:.0f} s; the end of its log:\n{_log_end(program)}"
    )


def _stop(home: ServerHome) -> bool:
    """Stop what runs in the folder, whoever started it; the record goes first: nobody shall attach now."""
    ServerRecord.remove(home.data_dir)
    # Valkey first: a worker that loses its broker stops taking jobs, and then loses its database.
    stopped = [_stop_program(program) for program in reversed(_programs(home))]
    return any(stopped)


def _stop_program(program: ServerProgram) -> bool:
    process = program.process()
    if process is None:
        return False
    for number, seconds in program.stop_steps:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        if _ends_within(process, seconds):
            return True
    raise StopForOperator(f"{program.name} (process {process.pid}) does not end")


def _ends_within(process: psutil.Process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not has_ended(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    for child in _started:
        child.poll()  # collects it, should it be ours
    return True


def _mark(program: ServerProgram) -> ProcessMark:
    process = program.process()
    if process is None:
        raise StopForOperator(f"{program.name} ended right after its start:\n{_log_end(program)}")
    return ProcessMark.of(process.pid)


def _log_end(program: ServerProgram) -> str:
    log = program.home.log(program.name)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-LOG_LINES_SHOWN:] or ["(empty)"])


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """One start or stop at a time; the kernel frees the lock of a process that dies."""
    with (data_dir / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, where nobody else handles them."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    replaced: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                replaced.append(number)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)
