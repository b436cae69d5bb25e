"""The system's own PostgreSQL and Valkey: started, attached to, taken over, stopped, found again."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis
from sqlalchemy.engine import make_url

from ml.errors import StopForOperator
from runtime.server_record import ProcessMark, ServerRecord
from tests.processes import RunningProcess, run_command, script
from worker import server_home
from worker.local import LocalServers, local_servers, start_servers, stop_servers
from worker.server_programs import Access, free_port

pytestmark = pytest.mark.servers

AS_ROOT = os.geteuid() == 0


def make_top() -> Path:
    """A folder that any user can pass through."""
    top = Path(tempfile.mkdtemp(prefix="alphaplus-own-"))
    top.chmod(0o711)
    return top


@pytest.fixture
def new_data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder that does not exist yet; what runs in it is stopped after the test."""
    top = make_top()
    monkeypatch.setattr(server_home, "ROOT_STATE", top / "var-lib")
    yield top / "data"
    stop_servers(top / "data")
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data folder whose cluster is made, stopped."""
    top = make_top()
    with local_servers(top / "data", durable=False):
        pass
    yield top / "data"
    shutil.rmtree(top)


@pytest.fixture
def data_dir(new_data_dir: Path, made: Path) -> Path:
    """A data folder as an earlier start left it; saves each test the second that initdb takes."""
    subprocess.run(["cp", "-a", str(made), str(new_data_dir)], check=True)
    for name in ("postgres", "valkey"):
        access = new_data_dir / f"{name}.json"
        kept = Access.model_validate_json(access.read_text())
        access.write_text(kept.model_copy(update={"port": free_port()}).model_dump_json())
    return new_data_dir


def connect(record: ServerRecord) -> psycopg2.extensions.connection:
    url = make_url(record.database_url)
    connection = psycopg2.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database
    )
    connection.autocommit = True
    return connection


def store(record: ServerRecord, value: str) -> None:
    connection = connect(record)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        cursor.execute("INSERT INTO kept VALUES (%s)", (value,))
    connection.close()
    with redis.Redis.from_url(record.redis_url) as client:
        client.rpush("kept", value)


def stored(record: ServerRecord) -> tuple[list[str], list[str]]:
    connection = connect(record)
    with connection.cursor() as cursor:
        cursor.execute("SELECT value FROM kept ORDER BY value")
        rows = [value for (value,) in cursor.fetchall()]
    connection.close()
    with redis.Redis.from_url(record.redis_url, decode_responses=True) as client:
        return rows, client.lrange("kept", 0, -1)


def gone(record: ServerRecord) -> bool:
    return not record.postgres.alive and not record.valkey.alive


def test_data_are_found_again_on_the_same_ports_after_a_stop(new_data_dir: Path) -> None:
    with local_servers(new_data_dir) as first:
        store(first.record, "one")
    assert gone(first.record)
    assert ServerRecord.read(new_data_dir) is None

    with local_servers(new_data_dir) as second:
        assert stored(second.record) == (["one"], ["one"])
        assert second.record.database_url == first.record.database_url
        assert second.record.redis_url == first.record.redis_url


def test_what_is_kept_survives_power_loss_and_a_full_memory(data_dir: Path) -> None:
    with local_servers(data_dir) as servers:
        connection = connect(servers.record)
        with connection.cursor() as cursor:
            settings = []
            for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
                cursor.execute(f"SHOW {name}")
                settings.append(cursor.fetchone())
        connection.close()
        assert settings == [("on",)] * 4
        with redis.Redis.from_url(servers.record.redis_url, decode_responses=True) as client:
            wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
            assert client.config_get(*wanted) == wanted


def test_both_listen_on_the_loopback_only_and_want_the_password(data_dir: Path) -> None:
    with local_servers(data_dir) as servers:
        for mark in (servers.record.postgres, servers.record.valkey):
            listening = psutil.Process(mark.pid).net_connections("inet")
            assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        url = make_url(servers.record.database_url)
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(
                host=url.host, port=url.port, user=url.username, password="x", dbname=url.database
            )
        with (
            redis.Redis(host="127.0.0.1", port=make_url(servers.record.redis_url).port or 0) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()


def test_passwords_are_in_files_of_mode_0600_and_on_no_command_line(new_data_dir: Path) -> None:
    with local_servers(new_data_dir) as servers:
        passwords = {
            make_url(servers.record.database_url).password,
            make_url(servers.record.redis_url).password,
        }
        holders = {
            path
            for folder in {servers.home.data_dir, servers.home.valkey_data}
            for path in folder.iterdir()
            if path.is_file() and any(str(password) in path.read_text() for password in passwords)
        }
        assert {path.name for path in holders} == {
            "running.json",
            "postgres.json",
            "valkey.json",
            "valkey.conf",
        }
        assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}
        for mark in (servers.record.postgres, servers.record.valkey):
            command_line = " ".join(psutil.Process(mark.pid).cmdline())
            assert not any(str(password) in command_line for password in passwords)


def test_neither_server_runs_as_root(data_dir: Path) -> None:
    with local_servers(data_dir) as servers:
        uids = {psutil.Process(m.pid).uids() for m in (servers.record.postgres, servers.record.valkey)}
        assert uids == {(servers.home.user.uid,) * 3}
        assert servers.home.user.uid != 0
        assert psutil.Process(servers.record.postgres.pid).gids() == (servers.home.user.gid,) * 3


def test_a_second_start_on_the_folder_attaches_and_leaves_the_servers_running(data_dir: Path) -> None:
    replay_start = datetime(2019, 10, 1, tzinfo=UTC)
    with local_servers(data_dir, clock="replay", replay_start=replay_start) as first:
        # This process is the owner of the first; the second is another process, as in another terminal.
        env = {"PATH": os.environ["PATH"], "HOME": str(data_dir), "ALPHAPLUS_DATA_DIR": str(data_dir)}
        second = run_command([script("alphaplus"), "servers", "start"], env)
        assert second.exit_code == 0
        assert f"process {os.getpid()} started them" in second.stdout
        assert first.record.alive
        record = ServerRecord.read(data_dir)
        assert record is not None
        assert (record.clock, record.replay_start) == ("replay", replay_start)
        assert (record.postgres, record.valkey, record.owner) == (
            first.record.postgres,
            first.record.valkey,
            first.record.owner,
        )


def test_two_folders_are_two_independent_pairs(data_dir: Path) -> None:
    with local_servers(data_dir) as one, local_servers(data_dir / "other", durable=False) as other:
        store(one.record, "of one")
        store(other.record, "of the other")
        assert stored(one.record) == (["of one"], ["of one"])
        assert stored(other.record) == (["of the other"], ["of the other"])
        other.stop()
        assert stored(one.record) == (["of one"], ["of one"])


def start_in_another_process(
    processes: Callable[..., RunningProcess], data_dir: Path
) -> tuple[RunningProcess, ServerRecord]:
    env = {"PATH": os.environ["PATH"], "HOME": str(data_dir.parent), "ALPHAPLUS_DATA_DIR": str(data_dir)}
    process = processes([script("alphaplus"), "servers", "start"], env)
    process.wait_for_line("Ctrl-C stops them")
    record = ServerRecord.read(data_dir)
    assert record is not None
    return process, record


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


@pytest.mark.skipif(not AS_ROOT, reason="only root's servers run as another user")
def test_as_root_under_a_closed_home_no_permission_is_widened(new_data_dir: Path) -> None:
    home = new_data_dir.parent / "closed"
    home.mkdir(mode=0o700)
    with local_servers(home / "data") as servers:
        store(servers.record, "kept")
        assert servers.home.state_dir.is_relative_to(server_home.ROOT_STATE)
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
    with local_servers(home / "data") as again:
        assert again.home.state_dir == servers.home.state_dir
        assert stored(again.record) == (["kept"], ["kept"])


@pytest.mark.skipif(not AS_ROOT, reason="only root's servers run as another user")
def test_as_root_programs_that_the_servers_cannot_reach_are_copied_once(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaches = server_home.ServerUser.reaches

    def reaches_no_package(user: server_home.ServerUser, path: Path) -> bool:
        return "site-packages" not in path.parts and reaches(user, path)

    monkeypatch.setattr(server_home.ServerUser, "reaches", reaches_no_package)
    with local_servers(data_dir) as servers:
        assert servers.home.postgres_programs.is_relative_to(data_dir / "programs")
        assert servers.home.valkey_program.is_relative_to(data_dir / "programs")
        executable = Path(psutil.Process(servers.record.postgres.pid).exe())
        assert executable == servers.home.postgres_programs / "postgres"
    inode = executable.stat().st_ino
    with local_servers(data_dir):
        assert executable.stat().st_ino == inode


ORDINARY_USER = """
import os, sys
from pathlib import Path
import psutil
from worker.local import local_servers
# Root's Python may lie in root's home: import all that a start needs while this process may read it.
with local_servers(Path(sys.argv[1]).parents[1] / "imports", durable=False):
    pass
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))
for start in range(2):
    with local_servers(Path(sys.argv[1])) as servers:
        assert servers.home.data_dir == servers.home.state_dir
        print(psutil.Process(servers.record.postgres.pid).uids().real, servers.record.alive)
"""


@pytest.mark.skipif(not AS_ROOT, reason="every other test is the ordinary user's case then")
def test_an_ordinary_user_runs_both_servers_as_itself(new_data_dir: Path) -> None:
    user = pwd.getpwnam("nobody")
    if not server_home.ServerUser(user.pw_uid, user.pw_gid, switch=True).reaches(Path(psycopg2.__file__)):
        pytest.skip("the environment lies where only root can read it")
    home = new_data_dir.parent / "home"
    home.mkdir(mode=0o700)
    os.chown(home, user.pw_uid, user.pw_gid)
    command = [sys.executable, "-c", ORDINARY_USER, str(home / "data"), str(user.pw_uid), str(user.pw_gid)]
    done = subprocess.run(
        command, env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{user.pw_uid} True\n" * 2, "")


def test_status_shows_addresses_and_no_password(data_dir: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(data_dir), "ALPHAPLUS_DATA_DIR": str(data_dir)}
    none = run_command([script("alphaplus"), "servers", "status"], env)
    assert none.exit_code == 3
    assert "`alphaplus up` starts them" in none.stdout
    servers: LocalServers
    with local_servers(data_dir) as servers:
        shown = run_command([script("alphaplus"), "servers", "status", "--json"], env)
        plain = run_command([script("alphaplus"), "servers", "status"], env)
    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == {
        "running": True,
        "configured": False,
        "data_dir": str(data_dir),
        "postgres": {
            "address": f"127.0.0.1:{make_url(servers.record.database_url).port}",
            "pid": servers.record.postgres.pid,
        },
        "valkey": {
            "address": f"127.0.0.1:{make_url(servers.record.redis_url).port}",
            "pid": servers.record.valkey.pid,
        },
        "owner_pid": os.getpid(),
        "clock": "wall",
        "replay_start": None,
    }
    assert str(make_url(servers.record.database_url).password) not in shown.stdout + plain.stdout


def test_with_both_urls_configured_nothing_is_started(new_data_dir: Path) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(new_data_dir),
        "ALPHAPLUS_DATA_DIR": str(new_data_dir),
        "ALPHAPLUS_DATABASE_URL": "postgresql://somebody@db.example/alphaplus",
        "ALPHAPLUS_REDIS_URL": "redis://redis.example/0",
    }
    done = run_command([script("alphaplus"), "servers", "start"], env)
    assert done.exit_code == 0
    assert "nothing to start" in done.stdout
    assert not new_data_dir.exists()
