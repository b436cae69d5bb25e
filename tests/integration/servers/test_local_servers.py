"""The system's own PostgreSQL and Valkey: started, attached to, stopped, found again."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis
from sqlalchemy.engine import make_url

from runtime.server_record import ServerRecord
from tests.integration.servers.contents import connect, gone, store, stored
from tests.processes import run_command, script
from worker.local import LocalServers, local_servers

pytestmark = pytest.mark.servers


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
            wanted = {
                "appendonly": "yes",
                "appendfsync": "no",
                "maxmemory": str(512 << 20),
                "maxmemory-policy": "noeviction",
            }
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
