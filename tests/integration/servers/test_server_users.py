"""Which system user the servers run as, and what that user may reach."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg2
import pytest

from tests.integration.servers.contents import store, stored
from worker import server_home
from worker.local import local_servers

pytestmark = pytest.mark.servers


AS_ROOT = os.geteuid() == 0


def test_neither_server_runs_as_root(data_dir: Path) -> None:
    with local_servers(data_dir) as servers:
        uids = {psutil.Process(m.pid).uids() for m in (servers.record.postgres, servers.record.valkey)}
        assert uids == {(servers.home.user.uid,) * 3}
        assert servers.home.user.uid != 0
        assert psutil.Process(servers.record.postgres.pid).gids() == (servers.home.user.gid,) * 3


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
