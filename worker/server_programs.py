"""The two programs that `worker/local.py` runs: how each is prepared, started, asked, found and stopped."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from ml.errors import StopForOperator
from runtime.server_record import write_private
from worker.server_home import POSTGRES_MAJOR, ServerHome

__all__ = ["HOST", "Access", "Postgres", "ServerProgram", "Valkey", "free_port", "has_ended", "port_is_free"]

HOST = "127.0.0.1"
ROLE = DATABASE = "alphaplus"
VALKEY_DATABASES = 64
VALKEY_MEMORY_BYTES = 512 << 20
"""As docker-compose.yml gives its own."""
INITDB_TIMEOUT_SECONDS = 120


class Access(BaseModel):
    """How to reach a server; kept from start to start in a file of mode 0600."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    password: str
    port: int


class ServerProgram(ABC):
    """One server of a data folder, running or not."""

    name: str
    stop_steps: tuple[tuple[signal.Signals, float], ...]
    """Signals to stop it, gentlest first, each with the seconds it is given."""

    def __init__(self, home: ServerHome, *, durable: bool = True) -> None:
        self.home = home
        self.durable = durable

    @abstractmethod
    def prepare(self) -> None:
        """Make the server's folder and files as the next start needs them; called while it does not run."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line; it must not hold the password, for every user can read it."""

    @abstractmethod
    def process(self) -> psutil.Process | None:
        """The running server of this folder, whoever started it."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it takes our password and answers now."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, with the password."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where its data lie."""

    @cached_property
    def access(self) -> Access:
        """Password and port, made at the first start."""
        try:
            return Access.model_validate_json(self._access_path.read_bytes())
        except FileNotFoundError:
            access = Access(password=secrets.token_urlsafe(24), port=free_port())
            write_private(self._access_path, access.model_dump_json())
            return access
        except ValidationError as error:
            raise StopForOperator(
                f"{self._access_path} is damaged; restore it from a backup: {error}"
            ) from error

    def move_to_free_port(self) -> None:
        """Take another port than the one before."""
        access = self.access.model_copy(update={"port": free_port()})
        write_private(self._access_path, access.model_dump_json())
        self.access = access

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the program in a session of its own, so that Ctrl-C in a terminal goes to its owner alone."""
        with self.home.log(self.name).open("ab") as log:
            self.home.log(self.name).chmod(0o600)
            return subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self.environment,
                umask=0o077,
                start_new_session=True,
                **self.home.user.popen_options,
            )

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the user's: PGPORT, PGDATA and the like would change what is started."""
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

    @property
    def _access_path(self) -> Path:
        return self.home.data_dir / f"{self.name}.json"


class Postgres(ServerProgram):
    """PostgreSQL. SIGINT stops it fast (clients are cut off), SIGQUIT leaves recovery to the next start."""

    name = "postgres"
    stop_steps = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))

    @property
    def folder(self) -> Path:
        """The cluster."""
        return self.home.postgres_data

    @property
    def url(self) -> str:
        """SQLAlchemy's form."""
        return f"postgresql+psycopg2://{ROLE}:{self.access.password}@{HOST}:{self.access.port}/{DATABASE}"

    def prepare(self) -> None:
        """Make the cluster if there is none; checks that an old one is of our major version."""
        # PostgreSQL takes a zombie, or another process with the number, for a server that runs. Should
        # processes of a killed server linger, its shared memory still keeps a second one out.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        version_file = self.folder / "PG_VERSION"
        if not version_file.exists():
            self._make_cluster()
        found = version_file.read_text(encoding="ascii").strip()
        if found != str(POSTGRES_MAJOR):
            raise StopForOperator(
                f"{self.folder} was made by PostgreSQL {found} and the installed one is {POSTGRES_MAJOR}: "
                "dump it with the old one and load it into a new folder"
            )

    def command(self) -> list[str]:
        """Foreground server on the loopback only."""
        options = {
            "listen_addresses": HOST,
            "port": self.access.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %a ",
        }
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(self.home.postgres_programs / "postgres"), "-D", str(self.folder), *settings]

    def process(self) -> psutil.Process | None:
        """By ``postmaster.pid``, if that number still is a PostgreSQL of this folder."""
        return _process_of(self.folder / "postmaster.pid", lambda found: str(self.folder) in found.cmdline())

    def answers(self) -> bool:
        """Logs in and makes sure that our database is there."""
        import psycopg2

        try:
            connection = psycopg2.connect(
                host=HOST,
                port=self.access.port,
                user=ROLE,
                password=self.access.password,
                dbname="postgres",
                connect_timeout=5,
            )
        except psycopg2.OperationalError:
            return False
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            connection.close()
        return True

    def _make_cluster(self) -> None:
        # Under another name first: an initdb that was killed half way must not be taken for a cluster.
        making = self.folder.with_name("postgres.making")
        shutil.rmtree(making, ignore_errors=True)
        self.home.make_owned_folder(making)
        password_file = making.with_name("postgres.password")
        try:
            write_private(password_file, self.access.password)
            self.home.user.own(password_file)
            command = [
                str(self.home.postgres_programs / "initdb"), "-D", str(making), "--username", ROLE,
                "--pwfile", str(password_file), "--auth", "scram-sha-256", "--encoding", "UTF8",
                "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8",
                *([] if self.durable else ["--no-sync"]),
            ]  # fmt: skip
            done = subprocess.run(
                command, cwd=making, env=self.environment, capture_output=True, text=True, check=False,
                timeout=INITDB_TIMEOUT_SECONDS, start_new_session=True, **self.home.user.popen_options,
            )  # fmt: skip
            if done.returncode != 0:
                raise StopForOperator(f"initdb failed: {(done.stderr or done.stdout).strip()}")
        finally:
            password_file.unlink(missing_ok=True)
        making.rename(self.folder)


class Valkey(ServerProgram):
    """Valkey; its append-only file is written before each answer, a full memory refuses and drops nothing."""

    name = "valkey"
    stop_steps = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))

    @property
    def folder(self) -> Path:
        """Append-only file, configuration, pid file."""
        return self.home.valkey_data

    @property
    def url(self) -> str:
        """Database 0."""
        return f"redis://:{self.access.password}@{HOST}:{self.access.port}/0"

    def prepare(self) -> None:
        """Write the configuration; the password lies there and not on the command line."""
        if not self.folder.exists():
            self.home.make_owned_folder(self.folder)
        self._pid_file.unlink(missing_ok=True)
        options = {
            "bind": HOST,
            "port": self.access.port,
            "requirepass": self.access.password,
            "dir": f'"{self.folder}"',
            "pidfile": f'"{self._pid_file}"',
            "databases": VALKEY_DATABASES,
            "appendonly": "yes",
            # Written before each answer, so that no kill loses anything. With "everysec" Valkey holds writes
            # back while a sync is under way, and answers meanwhile: a kill in that moment loses them.
            "appendfsync": "no",
            "save": '""',
            # Without a bound the records of answers could take all the machine's while PostgreSQL is away.
            "maxmemory": VALKEY_MEMORY_BYTES,
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        text = "".join(f"{name} {value}\n" for name, value in options.items())
        write_private(self._configuration, text)
        self.home.user.own(self._configuration)

    def command(self) -> list[str]:
        """Foreground server."""
        return [str(self.home.valkey_program), str(self._configuration)]

    def process(self) -> psutil.Process | None:
        """By its pid file, if that number still is a Valkey that works in this folder."""
        return _process_of(self._pid_file, lambda found: Path(found.cwd()) == self.folder.resolve())

    def answers(self) -> bool:
        """Pings it."""
        import redis

        with redis.Redis(
            host=HOST, port=self.access.port, password=self.access.password, socket_timeout=5
        ) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:  # also while it loads its file
                return False

    @property
    def _configuration(self) -> Path:
        return self.folder / "valkey.conf"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "valkey.pid"


def free_port() -> int:
    """A TCP port of the loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of the loopback."""
    with socket.socket() as probe:
        # Connections of a server that just stopped linger; servers listen beside them, and so do we.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone. A zombie is: its parent (PID 1 of some containers) may never ask for it."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _process_of(pid_file: Path, is_ours: Callable[[psutil.Process], bool]) -> psutil.Process | None:
    try:
        found = psutil.Process(int(pid_file.read_bytes().split()[0]))
        return found if not has_ended(found) and is_ours(found) else None
    except (FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess, psutil.AccessDenied):
        return None
