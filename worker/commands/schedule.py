"""`alphaplus schedule status | list | add | remove | pause | resume`."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from db import candles, jobs, registry
from db.models import ModelRow, TrainingJob
from ml.errors import StoreUnavailable
from worker.celery import app
from worker.schedule import Beat, Entry, Schedule, entry_name
from worker.tables import console, job_json, outcome_text, span_text, table, time_text

__all__ = ["schedule"]

LastJobs = dict[str, tuple[TrainingJob, ModelRow | None]]

as_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
interval_option = click.option("--interval", help="Of the candles.  [default: the default interval]")
target_argument = click.argument("target", nargs=-1, required=True, metavar="NAME | SYMBOL REGIME")


@click.group()
def schedule() -> None:
    """What runs when, in UTC; changes hold at once, without a restart, and over restarts."""


@schedule.command("list")
@as_json_option
def list_(as_json: bool) -> None:
    """Every entry, the soonest first."""
    _print_entries(Schedule(app).entries(), as_json)


@schedule.command()
@as_json_option
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Whether a beat works, what runs next, and what became of the last runs. Exit code 1 without a beat."""
    stored = Schedule(app)
    beat, entries = stored.beat(), stored.entries()
    last = _last_jobs(entries)
    if as_json:
        found = {
            "beat": None if beat is None else _plain(asdict(beat)),
            "entries": [
                _entry_json(entry) | {"last_job": _job_json(*last.get(entry.name, (None, None)))}
                for entry in entries
            ],
        }
        click.echo(json.dumps(found, indent=2))
    else:
        _print_status(beat, entries, last)
    if beat is None:
        context.exit(1)


@schedule.command()
@click.argument("symbol")
@click.argument("regime")
@click.argument("cron")
@interval_option
@as_json_option
def add(symbol: str, regime: str, cron: str, interval: str | None, as_json: bool) -> None:
    """Train SYMBOL REGIME by CRON, five fields in UTC; replaces the entry of that key.

    \b
    alphaplus schedule add SOLUSDT trending "0 9 * * *"
    """
    added = Schedule(app).add(symbol, regime, cron, interval=interval)
    _print_entries([added], as_json)
    _warn_of_missing_candles(added)


@schedule.command()
@target_argument
@interval_option
def remove(target: tuple[str, ...], interval: str | None) -> None:
    """Take an entry out. One that the system ships stays out until it is resumed."""
    name = _name(target, interval)
    Schedule(app).remove(name)
    click.echo(f"{name} is removed.")


@schedule.command()
@target_argument
@interval_option
@as_json_option
def pause(target: tuple[str, ...], interval: str | None, as_json: bool) -> None:
    """Send nothing for an entry until it is resumed."""
    _print_entries([Schedule(app).pause(_name(target, interval))], as_json)


@schedule.command()
@target_argument
@interval_option
@as_json_option
def resume(target: tuple[str, ...], interval: str | None, as_json: bool) -> None:
    """Let a paused entry run again from its next time on, or bring back a removed one of the system's own."""
    _print_entries([Schedule(app).resume(_name(target, interval))], as_json)


def _name(target: tuple[str, ...], interval: str | None) -> str:
    if len(target) > 2:
        raise click.UsageError("give an entry's name, or SYMBOL REGIME")
    return target[0] if len(target) == 1 else entry_name(target[0], target[1], interval)


def _last_jobs(entries: list[Entry]) -> LastJobs:
    """The newest job of each entry's model key, and its model; none where the database does not answer."""
    resources = app.resources
    found: LastJobs = {}
    try:
        with resources.transaction() as session:
            for entry in entries:
                key = entry.key(resources.settings.default_interval)
                for job in jobs.recent(session, 1, key=key) if key is not None else ():
                    made = registry.by_id(session, [job.model_id] if job.model_id is not None else [])
                    found[entry.name] = job, next(iter(made.values()), None)
    except StoreUnavailable as error:
        click.echo(f"The last runs are not known: {error}", err=True)
    return found


def _print_status(beat: Beat | None, entries: list[Entry], last: LastJobs) -> None:
    out = console()
    if beat is None:
        out.print("No beat works: nothing is sent. Start one with `alphaplus beat` or `alphaplus up`.")
    else:
        age = (datetime.now(UTC) - beat.last_tick).total_seconds()
        out.print(f"Beat works: process {beat.pid} on {beat.host}, last tick {span_text(max(0.0, age))} ago.")
    made = table("Entry", "Next run (UTC)", "Last job", "State", "Outcome")
    for entry in entries:
        job, model = last.get(entry.name, (None, None))
        made.add_row(
            entry.name,
            time_text(entry.next_run) or entry.state,
            time_text(job.queued_at) if job else "",
            job.state if job else "",
            outcome_text(job, model) if job else "",
        )
    out.print(made)


def _warn_of_missing_candles(entry: Entry) -> None:
    """An entry may be added before its candles, but somebody has to fetch them."""
    resources = app.resources
    key = entry.key(resources.settings.default_interval)
    try:
        with resources.transaction() as session:
            stored = {(one.symbol, one.interval) for one in candles.series(session)}
    except StoreUnavailable:
        return  # the entry is in Redis, and whether there are candles shows when it runs
    if key is not None and (key.symbol, key.interval) not in stored:
        click.echo(
            f"No {key.interval} candles of {key.symbol} are stored yet, so its trainings will be refused: "
            f"add it to ALPHAPLUS_SYMBOLS, or run `alphaplus candles sync --symbol {key.symbol} "
            f"--interval {key.interval}`.",
            err=True,
        )


def _print_entries(entries: list[Entry], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_entry_json(entry) for entry in entries], indent=2))
        return
    made = table("Entry", "Cron (UTC)", "Task", "State", "Origin", "Next run (UTC)")
    for entry in entries:
        made.add_row(
            entry.name,
            entry.cron,
            entry.task.removeprefix("tasks."),
            entry.state,
            entry.origin,
            time_text(entry.next_run),
        )
    console().print(made)


def _entry_json(entry: Entry) -> dict[str, Any]:
    return _plain(asdict(entry))


def _job_json(job: TrainingJob | None, model: ModelRow | None) -> dict[str, Any] | None:
    return None if job is None else job_json(job, model)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }
