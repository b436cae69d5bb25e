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

from ml.errors import StopForOperator
from ml.keys import ALL_REGIMES, ModelKey
from runtime.settings import PREFIX, Settings, load_settings, servers_configured
from worker.commands.demo_drift import OLD, show_drift, show_regret, train_old_champion
from worker.commands.demo_steps import POLL_SECONDS, alphaplus, follow, show_command, step
from worker.server_home import DEMO_MARKER

if TYPE_CHECKING:
    pass

__all__ = ["demo"]

NOW = datetime(2019, 9, 3, 0, 30, tzinfo=UTC)
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
STOP_SECONDS = 60.0
NOT_SET = ("DATABASE_URL", "REDIS_URL", "CLOCK", "REPLAY_START")


@click.command()
@click.option("--exit/--stay", "leave", default=None, help="End after the tables, or keep it all running.")
def demo(leave: bool | None) -> None:
    """From nothing to answers: servers, real candles, beat, workers, a drift, eight trainings, four weeks.

    Without --exit or --stay it stays up until Ctrl-C where a terminal shows it, and ends where none does.
    Everything is kept in the data folder, where a second demo finds it again.
    """
    settings = load_settings()
    _refuse_real_system(settings)
    leave = not (sys.stdin.isatty() and sys.stdout.isatty()) if leave is None else leave
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    started = time.monotonic()
    with _system(console, settings) as log:
        step(console, "1  Real candles", "candles", "sample")
        step(console, "", "candles", "list")
        drifts = _drift(console, load_settings())
        console.rule("4  Training through the queue", align="left")
        _train(console, load_settings())
        step(console, "", "jobs", "--limit", str(len(KEYS)))
        step(console, "", "models", "--limit", str(len(KEYS)))
        console.rule("5  Who answers for each key", align="left")
        _show_answering(console, load_settings())
        console.rule("6  Four weeks, candle by candle, through the detector and the workers", align="left")
        newest = _stream(console, load_settings())
        step(console, "7  What became of the answers", "accuracy")
        step(console, "", "predictions", "--limit", "6")
        if newest:
            step(console, "8  A past answer, made again from its record", "replay", newest)
        if drifts:
            _regret(console)
        step(console, "10  What beat will send, and when", "schedule", "status")
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
    environment |= {f"{PREFIX}CLOCK": "replay", f"{PREFIX}REPLAY_START": OLD.isoformat()}
    console.rule("0  Servers, beat, workers, Flower", align="left")
    show_command(console, ("up",))
    with log.open("wb") as output:
        up = subprocess.Popen(
            # The guard ends it also where this process is killed.
            [sys.executable, "-P", "-m", "worker.guard", str(os.getpid()), *alphaplus(), "up"],
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


def _wait_until_ready(console: Console, up: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with console.status("starting PostgreSQL, Valkey, beat, five workers, Flower"):
        while log.read_text(errors="replace").count(" ready.") < 5:
            if up.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise StopForOperator(f"the system does not start; the end of {log}:\n{tail}")
            time.sleep(POLL_SECONDS)
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith(("Starting", "Flower")):
            console.print(line, soft_wrap=True)
    console.print(f"Logs of all processes: {log}", soft_wrap=True)


def _drift(console: Console, settings: Settings) -> bool:
    from worker.celery import app

    shown = train_old_champion(console, app, settings)
    if shown:
        show_drift(console, app, settings, NOW)
    return shown


def _regret(console: Console) -> None:
    from worker.celery import app

    show_regret(console, app)


def _train(console: Console, settings: Settings) -> None:
    """Send the eight keys; the first by the literal `celery call`; show their progress until all ended."""
    from worker.celery import app

    symbol, regime = KEYS[0]
    arguments = ("call", "tasks.train", "--args", f"{symbol},{regime}")
    show_command(console, arguments, "celery")
    called = subprocess.run(
        [sys.executable, "-m", "celery", *arguments], check=True, capture_output=True, text=True
    )
    ids = {ModelKey(symbol, settings.default_interval, regime): called.stdout.split()[-1]}
    for symbol, regime in KEYS[1:]:
        sent = app.send_task("tasks.train", args=[symbol, regime], kwargs={"reason": "demo"})
        ids[ModelKey(symbol, settings.default_interval, regime)] = sent.id
    console.print(f"and {len(KEYS) - 1} more like it. The first makes the shared fit, the others find it.")
    follow(console, app.resources.engine, ids)


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
