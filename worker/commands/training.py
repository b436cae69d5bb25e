"""`alphaplus train`, `jobs`, `models` and `model show`."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence

import click
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import candles, registry
from db import jobs as job_rows
from db.models import FINISHED_STATES, JOB_STATES, MODEL_STATES, ModelRow, TrainingJob
from db.session import transaction
from ml.errors import KeyRejected
from ml.keys import ModelKey
from runtime.settings import load_settings
from worker.database import command_engine
from worker.tables import (
    console,
    gates_table,
    has_edge,
    job_json,
    jobs_table,
    metrics_table,
    model_json,
    models_table,
    outcome_text,
    sources_of,
    time_text,
)

__all__ = ["jobs", "model", "models", "train"]

POLL_SECONDS = 0.25
WATCH_SECONDS = 1.0
NO_WORKER_SECONDS = 10.0

as_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command()
@click.argument("symbol")
@click.argument("regime")
@click.option("--interval", help="Of the candles.  [default: the default interval]")
@click.option("--reason", default="manual", show_default=True, help="Kept on the job's row.")
@click.option("--wait", is_flag=True, help="Stay until it is done, with its progress.")
@as_json_option
def train(*, symbol: str, regime: str, interval: str | None, reason: str, wait: bool, as_json: bool) -> None:
    """Train one model through the queue.

    With --wait the exit code is 0 when a model was made, promoted or rejected with its reasons, and 1 when
    the data carry none or the job failed.

    \b
    alphaplus train BTCUSDT trending --wait
    """
    settings = load_settings()
    key = ModelKey(symbol, interval or settings.default_interval, regime)
    with command_engine(settings) as engine:
        _require_candles(engine, key)
        job_id = _send(key, reason)
        if not wait:
            with transaction(engine) as session:
                _print_job(session, job_id, as_json)
            return
        try:
            state = _follow(engine, job_id)
        except KeyboardInterrupt:
            click.echo(f"\nJob {job_id} goes on; `alphaplus jobs` shows it.", err=True)
            raise
        with transaction(engine) as session:
            _print_job(session, job_id, as_json)
    if state != "succeeded":
        click.get_current_context().exit(1)


@click.command()
@click.option("--symbol", help="Of this symbol only.")
@click.option("--state", type=click.Choice(JOB_STATES), help="In this state only.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
@as_json_option
def jobs(*, symbol: str | None, state: str | None, limit: int, watch: bool, as_json: bool) -> None:
    """Training jobs, newest first."""
    with command_engine(load_settings()) as engine:
        if as_json:
            with transaction(engine) as session:
                found, made = _jobs(session, symbol, state, limit)
            listed = [job_json(job, made.get(job.model_id or 0)) for job in found]
            click.echo(json.dumps(listed, indent=2))
            return

        def current() -> Table:
            with transaction(engine) as session:
                return jobs_table(*_jobs(session, symbol, state, limit))

        if not watch:
            console().print(current())
            return
        with Live(current(), console=console(), auto_refresh=False) as live:
            try:
                while True:
                    time.sleep(WATCH_SECONDS)
                    live.update(current(), refresh=True)
            except KeyboardInterrupt:
                return


@click.command()
@click.option("--symbol", help="Of this symbol only.")
@click.option("--state", type=click.Choice(MODEL_STATES), help="In this state only.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@as_json_option
def models(*, symbol: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """Models, newest first, with how good they are on rows they never saw."""
    with command_engine(load_settings()) as engine, transaction(engine) as session:
        found = registry.models(session, symbol=symbol, state=state, limit=limit)
        sources = sources_of(candles.series(session))
    if as_json:
        click.echo(json.dumps([model_json(row, sources) for row in found], indent=2))
    else:
        console().print(models_table(found, sources))


@click.group()
def model() -> None:
    """One model: metrics, gates, reasons."""


@model.command()
@click.argument("parts", nargs=-1, required=True, metavar="KEY")
@click.option("--version", type=click.IntRange(1), help="[default: the champion, else the newest]")
@as_json_option
def show(parts: tuple[str, ...], version: int | None, as_json: bool) -> None:
    """One model of KEY, which is SYMBOL/INTERVAL/REGIME or SYMBOL REGIME."""
    settings = load_settings()
    key = parse_key(parts, settings.default_interval)
    with command_engine(settings) as engine, transaction(engine) as session:
        row = registry.get(session, key, version)
        sources = sources_of(candles.series(session))
    if row is None:
        which = "no model" if version is None else f"no version {version}"
        raise click.ClickException(f"{key} has {which}; `alphaplus models` lists what there is")
    if as_json:
        click.echo(json.dumps(model_json(row, sources), indent=2))
    else:
        _print_model(row, sources.get((row.symbol, row.interval), "no longer stored"))


def parse_key(parts: Sequence[str], default_interval: str) -> ModelKey:
    """``BTCUSDT/1h/trending``, ``BTCUSDT/trending``, and the same with spaces.

    Raises:
        KeyRejected: it has other than two or three parts, or one is not of the vocabulary.
    """
    names = [name for part in parts for name in part.replace("/", " ").split()]
    if len(names) == 2:
        names.insert(1, default_interval)
    if len(names) != 3:
        raise KeyRejected("key", " ".join(parts), "SYMBOL/INTERVAL/REGIME or SYMBOL REGIME")
    return ModelKey(*names)


def _require_candles(engine: Engine, key: ModelKey) -> None:
    with transaction(engine) as session:
        stored = candles.symbols(session, key.interval)
    if key.symbol not in stored:
        limit = f"a symbol with {key.interval} candles: {', '.join(stored) or 'none yet'}"
        raise KeyRejected("symbol", key.symbol, limit, "see `alphaplus candles --help`")


def _send(key: ModelKey, reason: str) -> str:
    """The job's row first, then its message; the job's id is the task's."""
    from tasks.train import record_queued
    from worker.celery import app, require_broker

    require_broker()

    job_id = str(uuid.uuid4())
    user = os.environ.get("USER") or f"user {os.getuid()}"
    arguments = [key.symbol, key.regime, key.interval, reason, user]
    record_queued(app.resources, job_id, arguments, {})
    app.send_task("tasks.train", args=arguments, task_id=job_id)
    return job_id


def _follow(engine: Engine, job_id: str) -> str:
    """Show the job's progress until it ends; returns the state it ended in."""
    out = console(stderr=True)
    columns = TextColumn("{task.description:<10}"), BarColumn(40), TextColumn("{task.percentage:>3.0f} %")
    shown = ""
    told_at = time.monotonic() + NO_WORKER_SECONDS
    with Progress(*columns, TimeElapsedColumn(), console=out, disable=not out.is_terminal) as progress:
        bar = progress.add_task("queued", total=1.0)
        while True:
            with transaction(engine) as session:
                job = _get(session, job_id)
            stage = job.stage or job.state if job.state == "running" else job.state
            progress.update(bar, completed=job.progress, description=stage)
            if stage != shown and not out.is_terminal:
                out.print(stage)  # a log has no bar
            shown = stage
            if job.state in FINISHED_STATES:
                return job.state
            if job.state == "queued" and time.monotonic() > told_at:
                told_at = float("inf")
                out.print("No worker has taken it yet; `alphaplus worker training` starts one.")
            time.sleep(POLL_SECONDS)


def _get(session: Session, job_id: str) -> TrainingJob:
    job = job_rows.get(session, job_id)
    if job is None:
        raise click.ClickException(f"the row of job {job_id} is gone")
    return job


def _print_job(session: Session, job_id: str, as_json: bool) -> None:
    job = _get(session, job_id)
    made = registry.by_id(session, [job.model_id]).get(job.model_id) if job.model_id is not None else None
    if as_json:
        click.echo(json.dumps(job_json(job, made), indent=2))
        return
    click.echo(f"{job.key}: job {job.id} {job.state}. {outcome_text(job, made)}".rstrip())
    if made is not None:
        console().print(gates_table(made.decision))


def _print_model(row: ModelRow, source: str) -> None:
    out = console()
    out.print(f"{row.key}, version {row.version}: {row.state}")
    metrics = row.metrics
    facts = {
        "candles": source,
        "data until": time_text(row.data_cut),
        "judged on": "{rows} rows, {first_close} to {last_close}".format_map(metrics),
        "base rate": f"{metrics.get('base_rate', float('nan')):.3f}",
        "threshold": f"{metrics.get('threshold', float('nan')):.3f}",
        "promoted": time_text(row.promoted_at) or "never",
        "edge": "yes" if has_edge(row) else "none: no confidence is expected to earn its fees and slippage",
        "job": row.job_id or "",
        "artifact": row.artifact_sha256,
        "options": row.config_digest,
    }
    for name, fact in facts.items():
        out.print(f"  {name:<11} {fact}", soft_wrap=True)
    out.print(metrics_table(metrics))
    out.print(gates_table(row.decision))


def _jobs(
    session: Session, symbol: str | None, state: str | None, limit: int
) -> tuple[Sequence[TrainingJob], dict[int, ModelRow]]:
    found = job_rows.recent(session, limit, symbol=symbol, state=state)
    return found, registry.by_id(session, (job.model_id for job in found if job.model_id is not None))
