"""`alphaplus worker | beat | flower | up`: the system's processes, one at a time or all in one terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.text import Text

from ml.errors import StopForOperator
from runtime.queues import DRIFT, INFERENCE, MAINTENANCE, QUEUES, TRAINING
from runtime.server_record import ServerRecord
from runtime.settings import Settings, load_settings, servers_configured
from worker.processes import (
    SOFT_SHUTDOWN_SECONDS,
    beat_argv,
    become,
    flower_argv,
    flower_environment,
    worker_argv,
    worker_environment,
)
from worker.server_home import DEMO_MARKER
from worker.supervisor import Program, Supervisor

__all__ = ["beat", "flower", "up", "worker"]

STOP_SECONDS = SOFT_SHUTDOWN_SECONDS + 10.0
MAX_PROCESSES = 64
COLORS = ("cyan", "green", "magenta", "yellow", "blue")


@click.command(short_help="A worker of one or more queues.")
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE...", type=click.Choice(QUEUES))
@click.option("--concurrency", type=int, help="Children or threads; by default what suits the queue.")
@click.option("--name", help="The node's name before @host.  [default: the queues and the process id]")
@click.option(
    "--processes",
    type=click.IntRange(1, MAX_PROCESSES),
    help="A pool of so many workers, restarted when they die; SIGTTIN adds one, SIGTTOU takes one away.",
)
def worker(queues: tuple[str, ...], concurrency: int | None, name: str | None, processes: int | None) -> None:
    """A worker of one or more queues: training, drift, inference, maintenance; or a pool of them.

    Start as many as you like, on as many machines. SIGTERM lets a task end for up to 20 s, then hands
    it back to its queue; without one it ends at once. An inference worker answers one request at a time:
    scale it by --processes.
    """
    _require_servers(load_settings())
    name = name or f"{'-'.join(queues)}-{os.getpid()}"
    if processes is None:
        become(
            worker_argv(*queues, concurrency=concurrency, name=name), worker_environment(os.environ, *queues)
        )
    else:
        _run_pool(lambda place: _pool_member(queues, concurrency, f"{name}-{place}"), processes)


def _pool_member(queues: Sequence[str], concurrency: int | None, name: str) -> Program:
    argv = worker_argv(*queues, concurrency=concurrency, name=name)
    return Program(name=name, argv=argv, environment=worker_environment(os.environ, *queues))


def _run_pool(member: Callable[[int], Program], processes: int) -> None:
    """Keep ``processes`` members running, as many more or fewer as signals have asked for since."""
    stop = threading.Event()
    asked: list[int] = []
    programs = [member(place) for place in range(1, processes + 1)]
    supervisor = Supervisor(
        programs, _LineWriter(Console(highlight=False, soft_wrap=True), programs), stop_seconds=STOP_SECONDS
    )
    size, started = processes, processes

    def scale() -> None:
        nonlocal size, started
        while asked:
            if asked.pop(0) == signal.SIGTTIN and size < MAX_PROCESSES:
                size, started = size + 1, started + 1
                supervisor.add(member(started))
            elif size > 1:
                size -= 1
                supervisor.retire_last()

    for number in (signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, lambda number, _frame: asked.append(number))
    with _stops(stop):
        supervisor.run(stop, scale)


@click.command(short_help="The scheduler.")
def beat() -> None:
    """The scheduler. Several may run: one works, the others wait to take over."""
    _require_servers(load_settings())
    become(beat_argv(), os.environ)


@click.command(short_help="Flower: workers and tasks in the browser.")
def flower() -> None:
    """Flower, on http://127.0.0.1:5555 with a password.

    Its FLOWER_* variables are respected. Without FLOWER_BASIC_AUTH a login is made once and kept in
    the data folder, in the file flower-login.
    """
    settings = load_settings()
    _require_servers(settings)
    become(flower_argv(), flower_environment(os.environ, settings.data_dir))


@click.command(short_help="Servers, beat and workers in this terminal; Ctrl-C stops all.")
@click.option(
    "--inference",
    "inference_workers",
    type=click.IntRange(1, MAX_PROCESSES),
    default=2,
    show_default=True,
    help="Inference workers.",
)
def up(inference_workers: int) -> None:
    """Servers, beat, a worker for each queue and Flower, in this terminal; Ctrl-C stops all.

    Starts PostgreSQL and Valkey under the data folder unless ALPHAPLUS_DATABASE_URL and
    ALPHAPLUS_REDIS_URL name others, brings the database to this version's schema, and restarts what dies.
    """
    settings = load_settings()
    _refuse_demo(settings)
    console = Console(highlight=False, soft_wrap=True)
    stop = threading.Event()
    with _only_one(settings.data_dir), _stops(stop), _servers(settings, console) as look_after_servers:
        settings = load_settings()
        from db.schema import upgrade

        upgrade(settings.required_database_url)
        programs = _programs(settings, inference_workers, colored=console.is_terminal)
        _greet(console, settings, programs)
        write = _LineWriter(console, programs)
        Supervisor(programs, write, stop_seconds=STOP_SECONDS).run(stop, look_after_servers)
        console.print("Stopping the servers.")
    console.print("Stopped.")


def _refuse_demo(settings: Settings) -> None:
    """The demo's data is of 2019: a system on the wall's clock would add today's candles to it."""
    if settings.clock == "wall" and (settings.data_dir / DEMO_MARKER).exists():
        raise StopForOperator(
            f"{settings.data_dir} holds the demo; look at it again with `alphaplus demo`, or set "
            "ALPHAPLUS_DATA_DIR to another folder (or delete this one) for a system of your own"
        )


def _require_servers(settings: Settings) -> None:
    """Raises ServersMissing here, in words, rather than as Celery's traceback."""
    _ = settings.required_redis_url, settings.required_database_url


def _programs(settings: Settings, inference_workers: int, *, colored: bool) -> list[Program]:
    environment = dict(os.environ)
    if colored and "ALPHAPLUS_LOG_FORMAT" not in environment:
        environment["ALPHAPLUS_LOG_FORMAT"] = "console"  # through a pipe a program sees no terminal
    flower_options = flower_environment(environment, settings.data_dir)
    flower_options["FLOWER_PORT"] = str(_free_port(int(flower_options["FLOWER_PORT"])))
    workers = {TRAINING: TRAINING, DRIFT: DRIFT, MAINTENANCE: MAINTENANCE}
    workers |= {f"{INFERENCE}-{place}": INFERENCE for place in range(1, inference_workers + 1)}
    return [
        *(
            Program(
                name=name,
                argv=worker_argv(queue, name=name),
                environment=worker_environment(environment, queue),
            )
            for name, queue in workers.items()
        ),
        Program(name="beat", argv=beat_argv(), environment=environment),
        Program(name="flower", argv=flower_argv(), environment=flower_options),
    ]


def _free_port(preferred: int) -> int:
    """``preferred`` if nothing listens there, else one that the system gives."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            free: int = probe.getsockname()[1]
            return free
    raise StopForOperator("no port of 127.0.0.1 is free for Flower")


def _greet(console: Console, settings: Settings, programs: list[Program]) -> None:
    flower = programs[-1].environment
    user = flower["FLOWER_BASIC_AUTH"].partition(":")[0]
    where = "FLOWER_BASIC_AUTH" if os.environ.get("FLOWER_BASIC_AUTH") else settings.data_dir / "flower-login"
    console.print(f"Flower    http://127.0.0.1:{flower['FLOWER_PORT']} (user {user}, password in {where})")
    console.print("Schedule  alphaplus schedule status")
    console.print("Train     celery call tasks.train --args BTCUSDT,trending")
    console.print("Ask       alphaplus predict BTCUSDT")
    console.print("Ctrl-C stops everything.\n")


class _LineWriter:
    """Prints a program's line after its name, from any thread."""

    def __init__(self, console: Console, programs: list[Program]) -> None:
        self._console = console
        self._width = max(len(program.name) for program in programs)
        self._color = {program.name: COLORS[index % len(COLORS)] for index, program in enumerate(programs)}

    def __call__(self, name: str, line: str) -> None:
        prefix = Text(f"{name:>{self._width}} │ ", style=self._color.get(name, COLORS[0]))
        self._console.print(prefix + Text.from_ansi(line))


@contextlib.contextmanager
def _servers(settings: Settings, console: Console) -> Iterator[Callable[[], None]]:
    """The system's own servers, unless others are configured; yields what starts again one that died."""
    if servers_configured():
        yield lambda: None
        return
    from worker.local import local_servers, start_servers

    def look_after() -> None:
        record = ServerRecord.read(settings.data_dir)
        if record is None or not record.alive:
            console.print("A server has ended; starting it again.")
            start_servers(settings.data_dir)

    console.print(f"Starting PostgreSQL and Valkey under {settings.data_dir}")
    with local_servers(settings.data_dir, clock=settings.clock, replay_start=settings.replay_start):
        yield look_after


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """One `alphaplus up` a data folder; the kernel frees the lock of one that was killed."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "up.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StopForOperator(
                f"`alphaplus up` runs already with the data folder {data_dir}; "
                "set ALPHAPLUS_DATA_DIR to start a second system"
            ) from None
        yield


@contextlib.contextmanager
def _stops(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal set ``stop``."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
