"""Killed owners and servers, taken ports, damaged folders: nothing is lost, or a message says what to do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis
from sqlalchemy.engine import make_url

from ml.errors import StopForOperator
from runtime.server_record import ProcessMark, ServerRecord
from tests.integration.servers.contents import gone, start_in_another_process, store, stored
from tests.processes import RunningProcess
from worker.local import local_servers, start_servers, stop_servers

pytestmark = pytest.mark.servers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_owner_stops_the_servers(
    number: signal.Signals, processes: Callable[..., RunningProcess], data_dir: Path
) -> None:
    owner, record = start_in_another_process(processes, data_dir)
    owner.popen.send_signal(number)
    assert owner.popen.wait(30) == (130 if number == signal.SIGINT else 128 + number)
    assert gone(record)
    assert ServerRecord.read(data_dir) is None


def test_stop_from_another_terminal_ends_the_owner_too(
    processes: Callable[..., RunningProcess], data_dir: Path
) -> None:
    owner, record = start_in_another_process(processes, data_dir)
    # The owner stays a zombie until this process asks for it, as under a parent that never does.
    assert stop_servers(data_dir)
    assert owner.popen.wait(30) == 128 + signal.SIGTERM
    assert gone(record)
    assert not stop_servers(data_dir)


def test_servers_of_a_killed_owner_run_on_and_the_next_start_takes_them_over(
    processes: Callable[..., RunningProcess], data_dir: Path
) -> None:
    owner, record = start_in_another_process(processes, data_dir)
    store(record, "before")
    owner.popen.kill()
    owner.popen.wait()
    assert record.alive

    with local_servers(data_dir) as servers:
        assert servers.owned
        assert (servers.record.postgres, servers.record.valkey) == (record.postgres, record.valkey)
        assert servers.record.owner == ProcessMark.of(os.getpid())
        assert stored(servers.record) == (["before"], ["before"])
    assert gone(record)


def test_the_leftovers_of_a_killed_owner_are_stopped_by_stop(
    processes: Callable[..., RunningProcess], data_dir: Path
) -> None:
    owner, record = start_in_another_process(processes, data_dir)
    owner.popen.kill()
    owner.popen.wait()
    assert stop_servers(data_dir)
    assert gone(record)


@pytest.mark.parametrize("lost", ["running.json", "nothing"])
def test_servers_killed_with_their_owner_lose_no_committed_row(
    lost: str, processes: Callable[..., RunningProcess], data_dir: Path
) -> None:
    owner, record = start_in_another_process(processes, data_dir)
    store(record, "committed")
    with redis.Redis.from_url(record.redis_url) as client:
        client.waitaof(1, 0, 5000)  # what the append-only file has is kept: at most one second is not
    owner.popen.kill()
    owner.popen.wait()
    for mark in (record.postgres, record.valkey):
        psutil.Process(mark.pid).kill()
    (data_dir / lost).unlink(missing_ok=True)

    with local_servers(data_dir) as servers:
        assert stored(servers.record) == (["committed"], ["committed"])


def test_one_dead_server_of_a_living_pair_is_started_again_where_it_was(data_dir: Path) -> None:
    with local_servers(data_dir) as servers:
        store(servers.record, "kept")
        psutil.Process(servers.record.valkey.pid).terminate()
        psutil.Process(servers.record.valkey.pid).wait(10)
        again = start_servers(data_dir)
        assert not again.owned
        assert again.record.postgres == servers.record.postgres
        assert again.record.redis_url == servers.record.redis_url
        assert stored(again.record) == (["kept"], ["kept"])
    assert gone(again.record)


def test_a_port_that_another_program_took_is_left_to_it(data_dir: Path) -> None:
    import socket

    with local_servers(data_dir) as first:
        store(first.record, "one")
        port = make_url(first.record.redis_url).port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port or 0))
        other.listen()
        with local_servers(data_dir) as second:
            assert make_url(second.record.redis_url).port != port
            assert stored(second.record) == (["one"], ["one"])


def test_a_recycled_process_number_is_not_taken_for_a_server(data_dir: Path) -> None:
    with local_servers(data_dir) as servers:
        record = servers.record
    # As after a reboot: the file is there, and the numbers in it are those of other processes.
    mine = ProcessMark.of(os.getpid())
    earlier = mine.model_copy(update={"started": mine.started - 1000})
    record.model_copy(update={"postgres": earlier, "valkey": earlier, "owner": earlier}).write(data_dir)
    (servers.home.valkey_data / "valkey.pid").write_text(f"{os.getpid()}\n")
    (servers.home.postgres_data / "postmaster.pid").write_text(f"{os.getpid()}\n")
    found = ServerRecord.read(data_dir)
    assert found is not None
    assert not found.alive
    with local_servers(data_dir) as again:
        assert again.owned
        assert again.record.alive


def test_a_deep_folder_with_spaces_and_letters_of_any_script_works(new_data_dir: Path) -> None:
    deep = new_data_dir.joinpath(*["a folder with ünïcode"] * 8)
    assert len(os.fsencode(deep)) > 107  # more than a socket's path may have
    with local_servers(deep) as servers:
        store(servers.record, "deep")
        assert stored(servers.record) == (["deep"], ["deep"])


def test_an_initdb_that_was_cut_short_is_begun_again(data_dir: Path) -> None:
    with local_servers(data_dir) as servers:
        making = servers.home.postgres_data.with_name("postgres.making")
        servers.home.postgres_data.rename(making)
        psutil.Process(servers.record.postgres.pid).kill()
        (making / "PG_VERSION").unlink()
    with local_servers(data_dir) as again:
        store(again.record, "made")
        assert stored(again.record) == (["made"], ["made"])


def test_a_cluster_of_another_major_version_is_refused_and_left_alone(data_dir: Path) -> None:
    with local_servers(data_dir) as servers:
        pass
    version = servers.home.postgres_data / "PG_VERSION"
    version.write_text("16\n")
    with pytest.raises(StopForOperator, match=r"PostgreSQL 16 .* installed one is 18"):
        start_servers(data_dir)
    assert version.read_text() == "16\n"
    assert ServerRecord.read(data_dir) is None


def test_a_server_that_cannot_start_shows_the_end_of_its_log(data_dir: Path) -> None:
    with local_servers(data_dir) as servers:
        pass
    (servers.home.postgres_data / "global" / "pg_control").unlink()
    with pytest.raises(StopForOperator, match=r"(?s)postgres does not start.*pg_control"):
        start_servers(data_dir)


def test_a_folder_that_cannot_be_made_is_a_clear_error(new_data_dir: Path) -> None:
    new_data_dir.parent.joinpath("file").write_text("")
    with pytest.raises(StopForOperator, match="cannot prepare"):
        start_servers(new_data_dir.parent / "file" / "data")
