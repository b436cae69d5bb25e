"""`alphaplus demo`: the whole system from nothing, on real candles, by the commands a user would type."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ml.errors import StopForOperator
from ml.keys import ALL_REGIMES, ModelKey
from runtime.settings import PREFIX, Settings, load_settings, servers_configured
from worker.server_home import DEMO_MARKER

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["demo"]

REPLAY_START = datetime(2019, 9, 3, 0, 30, tzinfo=UTC)
"""Four weeks before the sample candles end: to the system those weeks have yet to come."""
KEYS = (
    ("BTCUSDT", "trending"),
    ("BTCUSDT", "sideways"),
    ("BTCUSDT", "volatile"),
    ("BTCUSDT", "consolidation"),
    ("ETHUSDT", "trending"),
    ("ETHUSDT", "sideways"),
    ("BTCUSDT", ALL_REGIMES),
    ("ETHUSDT", ALL_REGIMES),
)
START_SECONDS = 120.0
TRAIN_SECONDS = 600.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.25
NOT_SET = ("DATABASE_URL", "REDIS_URL", "CLOCK", "REPLAY_START")


@click.command()
@click.option("--exit/--stay", "leave", default=None, help="End after the tables, or keep it all running.")
def demo(leave: bool | None) -> None:
    """From nothing to answers: servers, real candles, beat, workers, eight trainings, four weeks of signals.

    Without --exit or --stay it stays up until Ctrl-C where a terminal shows it, and ends where none does.
    Everything is kept in the data folder, where a second demo finds it again.
    """
    settings = load_settings()
    _refuse_real_system(settings)
    leave = not (sys.stdin.isatty() and sys.stdout.isatty()) if leave is None else leave
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    started = time.monotonic()
    with _system(console, settings) as log:
        _step(console, "1  Real candles", "candles", "sample")
        _step(console, "", "candles", "list")
        console.rule("2  Training through the queue", align="left")
        _train(console, load_settings())
        _step(console, "3  What was trained", "jobs", "--limit", str(len(KEYS)))
        _step(console, "", "models")
        console.rule("4  Who answers for each key", align="left")
        _show_answering(console, load_settings())
        console.rule("5  Four weeks, candle by candle, through the detector and the workers", align="left")
        newest = _stream(console, load_settings())
        _step(console, "6  What became of the answers", "accuracy")
        _step(console, "", "predictions", "--limit", "6")
        if newest:
            _step(console, "7  A past answer, made again from its record", "replay", newest)
        _step(console, "8  What beat will send, and when", "schedule", "status")
        _show_next(console, log, settings, time.monotonic() - started)
        if not leave:
            console.print("Everything keeps running until Ctrl-C.")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()


def _refuse_real_system(settings: Settings) -> None:
    """The demo's clock is a replay: it must not share a folder, or a server, with a real system."""
    if servers_configured():
        raise StopForOperator(
            f"{PREFIX}DATABASE_URL and {PREFIX}REDIS_URL are set; the demo starts its own servers: unset both"
        )
    folder = settings.data_dir
    if (folder / "postgres.json").exists() and not (folder / DEMO_MARKER).exists():
        raise StopForOperator(
            f"{folder} holds a system that is no demo; set {PREFIX}DATA_DIR to another folder"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o711)
    (folder / DEMO_MARKER).touch()


@contextlib.contextmanager
def _system(console: Console, settings: Settings) -> Iterator[Path]:
    """`alphaplus up` in the background for the length of the block, however it ends; yields its log."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    log = settings.data_dir / "demo.log"
    environment = {name: value for name, value in os.environ.items() if name not in _variables(NOT_SET)}
    environment |= {f"{PREFIX}CLOCK": "replay", f"{PREFIX}REPLAY_START": REPLAY_START.isoformat()}
    console.rule("0  Servers, beat, workers, Flower", align="left")
    _show_command(console, ("up",))
    with log.open("wb") as output:
        up = subprocess.Popen(
            # The guard ends it also where this process is killed.
            [sys.executable, "-P", "-m", "worker.guard", str(os.getpid()), *_alphaplus(), "up"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(console, up, log)
        yield log
    finally:
        console.print("Stopping.")
        up.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            up.wait(STOP_SECONDS)
        if up.poll() is None:
            os.killpg(up.pid, signal.SIGKILL)
            up.wait()


def _variables(names: Sequence[str]) -> set[str]:
    return {f"{PREFIX}{name}" for name in names}


def _alphaplus() -> list[str]:
    return [str(Path(sys.executable).with_name("alphaplus"))]


def _wait_until_ready(console: Console, up: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with console.status("starting PostgreSQL, Valkey, beat, four workers, Flower"):
        while log.read_text(errors="replace").count(" ready.") < 4:
            if up.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise StopForOperator(f"the system does not start; the end of {log}:\n{tail}")
            time.sleep(POLL_SECONDS)
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith(("Starting", "Flower")):
            console.print(line, soft_wrap=True)
    console.print(f"Logs of all processes: {log}", soft_wrap=True)


def _step(console: Console, title: str, *arguments: str) -> None:
    """Run one `alphaplus` command as a user would, its output straight to the terminal."""
    if title:
        console.rule(title, align="left")
    _show_command(console, arguments)
    done = subprocess.run([*_alphaplus(), *arguments], check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)  # the command has said why


def _show_command(console: Console, arguments: Sequence[str], program: str = "alphaplus") -> None:
    console.print(f"[bold]$ {program} {' '.join(arguments)}[/bold]")
    console.file.flush()


def _train(console: Console, settings: Settings) -> None:
    """Send the eight keys; the first by the literal `celery call`; show their progress until all ended."""
    from worker.celery import app

    symbol, regime = KEYS[0]
    arguments = ("call", "tasks.train", "--args", f"{symbol},{regime}")
    _show_command(console, arguments, "celery")
    called = subprocess.run(
        [sys.executable, "-m", "celery", *arguments], check=True, capture_output=True, text=True
    )
    ids = {ModelKey(symbol, settings.default_interval, regime): called.stdout.split()[-1]}
    for symbol, regime in KEYS[1:]:
        sent = app.send_task("tasks.train", args=[symbol, regime], kwargs={"reason": "demo"})
        ids[ModelKey(symbol, settings.default_interval, regime)] = sent.id
    console.print(f"and {len(KEYS) - 1} more like it. The first makes the shared fit, the others find it.")
    _follow(console, app.resources.engine, ids)


def _follow(console: Console, engine: Engine, ids: dict[ModelKey, str]) -> None:
    from db import jobs
    from db.models import FINISHED_STATES
    from db.session import transaction

    columns = (
        TextColumn("{task.fields[key]:<26}"),
        BarColumn(30),
        TextColumn("{task.description:<10}"),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + TRAIN_SECONDS
    with Progress(*columns, console=console) as progress:
        bars = {job_id: progress.add_task("queued", total=1.0, key=str(key)) for key, job_id in ids.items()}
        waiting = set(bars)
        while waiting:
            if time.monotonic() > deadline:
                raise StopForOperator(f"{len(waiting)} trainings did not end in {TRAIN_SECONDS:g} s")
            with transaction(engine) as session:
                for job_id in list(waiting):
                    job = jobs.get(session, job_id)
                    if job is None:
                        continue
                    ended = job.state in FINISHED_STATES
                    if ended and job.state != "succeeded":
                        raise StopForOperator(f"{job.key}: {job.state}, {job.outcome}")
                    progress.update(
                        bars[job_id],
                        completed=1.0 if ended else job.progress,
                        description=job.state if job.state != "running" else job.stage or "running",
                    )
                    if ended:
                        progress.stop_task(bars[job_id])
                        waiting.discard(job_id)
            time.sleep(POLL_SECONDS)


def _show_answering(console: Console, settings: Settings) -> None:
    """Who answers a signal of each key: its own champion, the symbol's `all`, or nobody."""
    from db import registry
    from db.session import transaction
    from worker.celery import app

    with transaction(app.resources.engine) as session:
        for symbol, regime in KEYS:
            key = ModelKey(symbol, settings.default_interval, regime)
            own, fallback = registry.champion(session, key), registry.champion(session, key.fallback)
            console.print(f"  {key!s:<26} {_answering(key, own, fallback)}")


def _answering(key: ModelKey, own: Any, fallback: Any) -> str:
    if own is not None:
        return f"its own champion, version {own.version}"
    if fallback is not None and key.regime != ALL_REGIMES:
        return (
            f"the fallback {key.fallback}, version {fallback.version}: no model of its own passed the gates"
        )
    return "nobody: no model passed the gates, so the system abstains"


def _stream(console: Console, settings: Settings) -> str:
    from worker.celery import app
    from worker.commands.demo_stream import store_and_resolve, stream

    symbols = list(dict.fromkeys(symbol for symbol, _ in KEYS))
    newest = stream(console, app.resources.engine, settings, symbols)
    store_and_resolve(console, app, settings)
    return newest


def _show_next(console: Console, log: Path, settings: Settings, seconds: float) -> None:
    console.rule(f"Done in {seconds:.0f} s", align="left")
    console.print("Where to look, in another terminal in this folder:")
    for command, what in {
        "alphaplus model show BTCUSDT trending": "metrics with intervals, gates, reasons",
        "alphaplus predict BTCUSDT": "ask about the newest candle's patterns",
        "celery call tasks.train --args BTCUSDT,trending": "train again: on four more weeks of candles",
        'alphaplus schedule add ETHUSDT volatile "0 9 * * *"': "one more job, without a restart",
        "alphaplus jobs --watch": "the queue as it works",
    }.items():
        console.print(f"  [bold].venv/bin/{command}[/bold]\n      {what}", soft_wrap=True)
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("Flower"):
            console.print(f"  {line}", soft_wrap=True)
    console.print(f"  Data, logs and passwords: {settings.data_dir}", soft_wrap=True)
