"""What runs under a data folder: the file ``running.json``, by which commands find each other's servers."""

from __future__ import annotations

import contextlib
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

import psutil
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

__all__ = ["ProcessMark", "ServerRecord", "write_private"]

RECORD_NAME = "running.json"
START_TIME_TOLERANCE_SECONDS = 2.0
"""psutil derives a start time from the boot time, which moves when the wall clock is set."""


class ProcessMark(BaseModel):
    """A process, named so that a later one with the same number is not taken for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started: float
    """Seconds since the epoch."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Mark a running process. Raises psutil.NoSuchProcess."""
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, or None if it has ended (a zombie has) or its number has passed to another."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) <= START_TIME_TOLERANCE_SECONDS
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process() is not None


class ServerRecord(BaseModel):
    """The servers of one data folder, as ``running.json`` holds them. It has passwords: mode 0600."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: str
    redis_url: str
    postgres: ProcessMark
    valkey: ProcessMark
    owner: ProcessMark
    """The command that started them and stops them at its end."""
    clock: Literal["wall", "replay"] = "wall"
    replay_start: AwareDatetime | None = None
    started_at: datetime

    @property
    def alive(self) -> bool:
        """Whether both servers run."""
        return self.postgres.alive and self.valkey.alive

    @classmethod
    def read(cls, data_dir: Path) -> Self | None:
        """The record of ``data_dir``, whether what it names still runs or not; None if there is none.

        A record that another version wrote in another form counts as none: the servers it names are
        found again by their own files.
        """
        try:
            return cls.model_validate_json((data_dir / RECORD_NAME).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, data_dir: Path) -> None:
        """Replace the record of ``data_dir`` in one step."""
        write_private(data_dir / RECORD_NAME, self.model_dump_json(indent=2))

    @staticmethod
    def remove(data_dir: Path) -> None:
        """Forget what ran."""
        (data_dir / RECORD_NAME).unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step, mode 0600: a reader sees the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
