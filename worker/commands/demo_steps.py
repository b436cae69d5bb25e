"""How the demo does things: each step a command that a user would type, a training followed to its end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ml.errors import StopForOperator
from ml.keys import ModelKey

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["alphaplus", "follow", "show_command", "step"]

TRAIN_SECONDS = 600.0
POLL_SECONDS = 0.25


def alphaplus() -> list[str]:
    """The command line of this installation."""
    return [str(Path(sys.executable).with_name("alphaplus"))]


def step(console: Console, title: str, *arguments: str) -> None:
    """Run one `alphaplus` command as a user would, its output straight to the terminal."""
    if title:
        console.rule(title, align="left")
    show_command(console, arguments)
    done = subprocess.run([*alphaplus(), *arguments], check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)  # the command has said why


def show_command(console: Console, arguments: Sequence[str], program: str = "alphaplus") -> None:
    """Print a command as it would be typed."""
    console.print(f"[bold]$ {program} {' '.join(arguments)}[/bold]")
    console.file.flush()


def follow(console: Console, engine: Engine, ids: Mapping[ModelKey, str]) -> None:
    """Show the jobs' progress until all have ended. Raises StopForOperator: one failed, or took too long."""
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
