"""`alphaplus key add | list | freeze | thaw`: keys, while everything runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import click
from sqlalchemy.orm import Session

from db import candles, keys, registry
from db.session import transaction
from ml.errors import BrokerUnavailable, ExchangeUnavailable, ServersMissing
from ml.keys import MODEL_REGIMES, ModelKey, check_symbol, interval_duration
from runtime.settings import Settings, load_settings
from worker.actor import check_reason, cli_actor
from worker.clock import make_clock
from worker.database import command_engine
from worker.key_schedule import crons
from worker.schedule import Entry, Schedule
from worker.tables import console, table, time_text

__all__ = ["key"]

EXCHANGE_SECONDS = 5.0

as_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
interval_option = click.option("--interval", help="Of the candles.  [default: the default interval]")
reason_option = click.option("--reason", required=True, help="Kept in the audit log.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A key as it stands."""

    key: ModelKey
    origin: str
    """``settings``, ``added``, or ``models`` where there is a champion and nobody named the key."""
    version: int | None
    """The champion's."""
    trained: str | None
    """The cron of its schedule entry."""
    candles_until: str | None
    frozen: str | None
    """By whom and why."""


@click.group()
def key() -> None:
    """Add a key while everything runs; freeze one, so that only people change its champion."""


@key.command()
@click.argument("symbol")
@interval_option
@click.option("--cron", help="Of the first regime; the others follow an hour apart.  [default: free hours]")
@as_json_option
def add(symbol: str, interval: str | None, cron: str | None, as_json: bool) -> None:
    """Keep the candles of SYMBOL up to date and train its five keys (four regimes, and all of them weekly).

    Nothing is restarted. Adding it again changes nothing.

    \b
    alphaplus key add SOLUSDT --interval 1h
    """
    settings = load_settings()
    interval = settings.default_interval if interval is None else interval
    check_symbol(symbol)
    interval_duration(interval)
    schedule = _schedule()
    entries = schedule.entries()
    chosen = crons(entries, cron)
    with command_engine(settings) as engine:
        with transaction(engine) as session:
            stored = candles.find_series(session, symbol, interval)
        doubt = None if stored is not None else _ask_exchange(settings, symbol, interval)
        with transaction(engine) as session:
            new = keys.add(
                session,
                symbol,
                interval,
                now=make_clock(settings).now(),
                actor=cli_actor(),
                hmac_key=settings.audit_key,
            )
    scheduled = _add_entries(schedule, entries, settings, (symbol, interval), chosen)
    if as_json:
        shown = [{"name": one.name, "cron": one.cron, "next_run": _iso(one)} for one in scheduled]
        report = {"symbol": symbol, "interval": interval, "added": list(map(str, new)), "scheduled": shown}
        click.echo(json.dumps(report | {"candles": stored is not None, "doubt": doubt}, indent=2))
        return
    if not new and not scheduled:
        click.echo(f"{symbol} {interval} was added before: nothing changed.")
        return
    _print_next(settings, symbol, interval, scheduled, stored, doubt)


@key.command("list")
@as_json_option
def list_(as_json: bool) -> None:
    """Every key of the settings, added at run time, frozen, or with a champion."""
    settings = load_settings()
    entries = _entries()
    with command_engine(settings) as engine, transaction(engine) as session:
        found = _known(session, settings, entries or [])
    if as_json:
        fields = ("origin", "version", "trained", "candles_until", "frozen")
        listed = [{"key": str(one.key)} | {name: getattr(one, name) for name in fields} for one in found]
        click.echo(json.dumps(listed, indent=2))
        return
    made = table("Model key", "From", ">v", "Trained (UTC)", "Candles until", "Why")
    made.columns[-1].header = "Frozen"
    for one in found:
        version = "-" if one.version is None else str(one.version)
        trained = "?" if entries is None else one.trained or "-"
        until = "-" if one.candles_until is None else one.candles_until
        made.add_row(str(one.key), one.origin, version, trained, until, one.frozen or "")
    console().print(made)
    if entries is None:
        click.echo("The schedule is not known: Redis does not answer.", err=True)


@key.command()
@click.argument("symbol")
@click.argument("regime")
@interval_option
@reason_option
@as_json_option
def freeze(symbol: str, regime: str, interval: str | None, reason: str, as_json: bool) -> None:
    """Leave the champion of SYMBOL REGIME to people: no promotion and no rollback by the system."""
    _say(symbol, regime, interval, reason, as_json, freezing=True)


@key.command()
@click.argument("symbol")
@click.argument("regime")
@interval_option
@reason_option
@as_json_option
def thaw(symbol: str, regime: str, interval: str | None, reason: str, as_json: bool) -> None:
    """Let the system change the champion of SYMBOL REGIME again."""
    _say(symbol, regime, interval, reason, as_json, freezing=False)


def _say(
    symbol: str, regime: str, interval: str | None, reason: str, as_json: bool, *, freezing: bool
) -> None:
    settings = load_settings()
    of = ModelKey(symbol, settings.default_interval if interval is None else interval, regime)
    why = check_reason(reason)
    now, actor, signed_by = make_clock(settings).now(), cli_actor(), settings.audit_key
    with command_engine(settings) as engine, transaction(engine) as session:
        change = keys.freeze if freezing else keys.thaw
        changed = change(session, of, now=now, actor=actor, why=why, hmac_key=signed_by)
        row = keys.frozen(session, of)
        held = (
            None if row is None else f"by {row.frozen_by}, {time_text(row.frozen_at)} UTC: {row.frozen_why}"
        )
    if as_json:
        click.echo(json.dumps({"key": str(of), "changed": changed, "frozen": held}, indent=2))
    elif freezing:
        state = "is frozen" if changed else "was frozen before: nothing changed"
        click.echo(
            f"{of} {state} ({held}). Retrainings go on; what they make is rejected until it is thawed."
        )
    else:
        click.echo(f"{of} {'is thawed' if changed else 'is not frozen: nothing changed'}.")


def _ask_exchange(settings: Settings, symbol: str, interval: str) -> str | None:
    """Why it is not known whether the exchange has the symbol; None where it has. Raises KeyRejected."""
    if settings.clock == "replay":
        return "a replay asks no exchange; it needs candles that are stored"
    from feeds.exchange import Backoff, Exchange

    url = None if settings.exchange_url is None else str(settings.exchange_url)
    exchange = Exchange(
        settings.exchange, url=url, timeout_seconds=EXCHANGE_SECONDS, backoff=Backoff(attempts=1)
    )
    try:
        now = exchange.now()
        exchange.after(symbol, interval, now - 3 * interval_duration(interval), closed_by=now)
    except ExchangeUnavailable as error:
        return f"{settings.exchange} could not be asked whether it has them: {error}"
    finally:
        exchange.close()
    return None


def _add_entries(
    schedule: Schedule,
    entries: list[Entry],
    settings: Settings,
    series: tuple[str, str],
    chosen: dict[str, str],
) -> list[Entry]:
    """An entry for each key that has none: one that was paused, removed or changed stays so."""
    symbol, interval = series
    have = {entry.key(settings.default_interval) for entry in entries}
    of_entry = None if interval == settings.default_interval else interval
    return [
        schedule.add(symbol, regime, chosen[regime], interval=of_entry)
        for regime in MODEL_REGIMES
        if ModelKey(symbol, interval, regime) not in have
    ]


def _print_next(
    settings: Settings,
    symbol: str,
    interval: str,
    scheduled: list[Entry],
    stored: candles.Series | None,
    doubt: str | None,
) -> None:
    click.echo(f"{symbol} {interval} is added. What happens next:")
    sync = f"alphaplus candles sync --symbol {symbol} --interval {interval}"
    if doubt is not None:
        click.echo(f"  candles   none stored; {doubt}")
        click.echo(f"            the sync asks each minute; at once: `{sync}`")
    elif stored is None:
        click.echo(f"  candles   within a minute two years of them, from {settings.exchange};")
        click.echo(f"            `{sync}` fetches them at once")
    else:
        click.echo(f"  candles   stored up to {time_text(stored.last_open)} UTC, kept up to date from now on")
    for entry in scheduled:
        what = entry.name.removeprefix("train-")
        click.echo(f"  training  {what}: {entry.cron} UTC, next {time_text(entry.next_run)}")
    click.echo("  answers   abstentions (no_model) until a model passes its gates; see `alphaplus models`")


def _known(session: Session, settings: Settings, entries: list[Entry]) -> list[Known]:
    said = {row.key: row for row in keys.rows(session)}
    champions = {row.key: row for row in registry.champions(session)}
    series = {(one.symbol, one.interval): one.last_open for one in candles.series(session)}
    cron_of = {entry.key(settings.default_interval): entry for entry in entries}
    named = [
        ModelKey(symbol, settings.default_interval, regime)
        for symbol in settings.symbols
        for regime in MODEL_REGIMES
    ]
    order = {regime: place for place, regime in enumerate(MODEL_REGIMES)}

    def known(of: ModelKey) -> Known:
        row, champion, entry = said.get(of), champions.get(of), cron_of.get(of)
        last = series.get((of.symbol, of.interval))
        added = row is not None and row.added_at is not None
        frozen = None if row is None or row.frozen_at is None else f"{row.frozen_why} ({row.frozen_by})"
        return Known(
            key=of,
            origin="settings" if of in named else "added" if added else "models",
            version=None if champion is None else champion.version,
            trained=None if entry is None else entry.cron if entry.state == "active" else entry.state,
            candles_until=None if last is None else time_text(last),
            frozen=frozen,
        )

    every = {*named, *said, *champions}
    return [known(of) for of in sorted(every, key=lambda of: (of.symbol, of.interval, order[of.regime]))]


def _schedule() -> Schedule:
    """Importing the application takes half a second: not for `--help`."""
    from worker.celery import app

    return Schedule(app)


def _entries() -> list[Entry] | None:
    """The schedule as it stands; None where Redis does not answer."""
    try:
        return _schedule().entries()
    except (BrokerUnavailable, ServersMissing):
        return None


def _iso(entry: Entry) -> Any:
    return None if entry.next_run is None else entry.next_run.astimezone(UTC).isoformat()
