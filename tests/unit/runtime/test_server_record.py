"""The record of running servers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from runtime.server_record import ProcessMark, ServerRecord, write_private

pytestmark = pytest.mark.servers


def record_of(mark: ProcessMark) -> ServerRecord:
    return ServerRecord(
        database_url="postgresql+psycopg2://u:secret@127.0.0.1:1/d",
        redis_url="redis://:secret@127.0.0.1:2/0",
        postgres=mark,
        valkey=mark,
        owner=mark,
        clock="replay",
        replay_start=datetime(2019, 10, 1, 2, tzinfo=timezone(timedelta(hours=2))),
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_a_written_record_is_read_back_and_private(tmp_path: Path) -> None:
    record = record_of(ProcessMark.of(os.getpid()))
    record.write(tmp_path)
    assert ServerRecord.read(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["running.json"]
    assert stat.S_IMODE((tmp_path / "running.json").stat().st_mode) == 0o600


def test_a_removed_record_is_none(tmp_path: Path) -> None:
    record_of(ProcessMark.of(os.getpid())).write(tmp_path)
    ServerRecord.remove(tmp_path)
    ServerRecord.remove(tmp_path)
    assert ServerRecord.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"database_url": "x"}'])
def test_a_record_in_another_form_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text(text)
    assert ServerRecord.read(tmp_path) is None


def test_a_process_is_alive_until_it_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = ProcessMark.of(child.pid)
    assert mark.alive
    child.communicate(b"\n")
    assert not mark.alive


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    mark = ProcessMark.of(child.pid)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"\n")
    child.stdin.close()
    child.stdout.read()  # ends when the process has; nobody has waited for it yet
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not mark.alive
    child.stdout.close()
    child.wait()


def test_another_process_with_the_number_is_not_taken_for_the_one_that_had_it() -> None:
    mine = ProcessMark.of(os.getpid())
    assert mine.alive
    assert not ProcessMark(pid=mine.pid, started=mine.started - 60).alive


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "running.json"
    write_private(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\ud800")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["running.json"]
