"""``alphaplus drift check | summary | retrain | thresholds | actions | regret``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta

import click
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import drift as checks
from db import drift_actions, drift_history, references, registry, thresholds
from db.session import transaction
from ml.alarms import SeverityLimits
from ml.errors import ConfigRejected, InputRejected, KeyRejected
from ml.keys import ModelKey, check_symbol
from runtime.settings import Settings, load_settings
from worker.actor import check_reason, cli_actor
from worker.clock import make_clock
from worker.database import command_engine
from worker.drift_checking import Checked, send_checks
from worker.drift_summary import summarise
from worker.drift_tables import (
    action_json,
    action_text,
    actions_table,
    alert_json,
    checks_table,
    features_table,
    summary_table,
    threshold_json,
    thresholds_table,
    unchecked_text,
    verdicts_table,
)
from worker.tables import console

__all__ = ["drift"]

as_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
interval_option = click.option("--interval", help="Of the candles.  [default: the default interval]")
reason_option = click.option("--reason", help="Kept with it; required where something is changed.")


@click.group()
def drift() -> None:
    """How far the market has moved from what the champions were trained on, and what is done about it."""


@drift.command()
@click.argument("symbol", required=False)
@click.argument("regime", required=False)
@interval_option
@click.option("--all", "every", is_flag=True, help="Every key that has a champion.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Stay until it is done.")
@click.option(
    "--timeout", type=click.FloatRange(0.01, 3600), default=60.0, show_default=True, help="Seconds."
)
@as_json_option
@click.pass_context
def check(
    context: click.Context,
    /,
    *,
    symbol: str | None,
    regime: str | None,
    interval: str | None,
    every: bool,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Compare the newest signals of a key with what its champion was trained on, through the queue.

    An alarm is a result: the exit code is 0, and 1 where the one key named could not be checked, or a check
    of --all failed or was not done in time; the others are shown all the same.

    \b
    alphaplus drift check BTCUSDT trending
    alphaplus drift check --all
    """
    if every == (symbol is not None) or (regime is None) != (symbol is None):
        raise click.UsageError("give SYMBOL REGIME, or --all")
    if math.isnan(timeout):
        raise click.BadParameter("nan is no number of seconds.", context, param_hint="--timeout")
    settings = load_settings()
    with command_engine(settings) as engine:
        if symbol is None or regime is None:
            keys = _champions(engine)
        else:
            keys = [_with_champion(engine, _key(settings, symbol, interval, regime))]
        found = send_checks(keys, timeout_seconds=timeout if wait else None)
        if not wait:
            _print_sent(found, as_json)
        elif every:
            _print_verdicts(found, as_json)
            if any(one.error is not None for one in found):
                context.exit(1)
        elif found:
            if found[0].error is not None:
                raise found[0].error
            with transaction(engine) as session:
                _print_check(session, found[0], as_json)
            if found[0].rows is None:
                context.exit(1)


@drift.command()
@click.option("--days", type=click.IntRange(1, 3650), default=7, show_default=True)
@click.option("--symbol", help="Of this symbol only.")
@as_json_option
def summary(*, days: int, symbol: str | None, as_json: bool) -> None:
    """Every key over some days: newest scores, how often it was loud, and what is being done."""
    if symbol is not None:
        check_symbol(symbol)
    settings = load_settings()
    now = make_clock(settings).now()
    with command_engine(settings) as engine, transaction(engine) as session:
        champions = registry.champions(session)
        calibrated = references.calibrated(session, [row.id for row in champions])
        found = summarise(
            [row.key for row in champions],
            drift_history.newest(session, until=now, days=days),
            drift_history.daily(session, until=now, days=days),
            [*drift_actions.open_actions(session), *drift_history.snoozing(session, now)],
            now=now,
            span_days=days,
            uncalibrated=[row.key for row in champions if row.id not in calibrated],
        )
    found = [one for one in found if symbol in (None, one.key.symbol)]
    if as_json:
        click.echo(json.dumps([one.to_json() for one in found], indent=2))
    elif found:
        console().print(summary_table(found, days=days))
    else:
        click.echo("No key has a champion, so nothing can drift. `alphaplus train SYMBOL REGIME` makes one.")


@drift.command()
@click.argument("symbol")
@click.argument("regime")
@interval_option
@click.option("--reason", required=True, help="Why; kept in the audit log.")
@as_json_option
def retrain(symbol: str, regime: str, interval: str | None, reason: str, as_json: bool) -> None:
    """Retrain a key's champion now, without waiting for an alert, a slot or a cooldown."""
    from tasks.drift_actions import retrain_now
    from worker.celery import app, require_broker

    settings = load_settings()
    key = _key(settings, symbol, interval, regime)
    check_reason(reason)
    with command_engine(settings) as engine:
        _with_champion(engine, key)
    require_broker()
    done = retrain_now(app.resources, key, actor=cli_actor(), reason=reason, app=app)
    if as_json:
        click.echo(json.dumps(done, indent=2))
        return
    job_id = done["action"]["job_id"]
    what = "is retrained by" if done["began"] else "is being retrained already, by"
    click.echo(f"{key} {what} job {job_id}; `alphaplus jobs` shows it, `alphaplus drift actions` its end.")


@drift.command("thresholds")
@click.argument("symbol", required=False)
@click.argument("regime", required=False)
@interval_option
@click.option("--set", "changes", multiple=True, metavar="NAME=NUMBER", help="As high=0.25; repeatable.")
@click.option("--reset", is_flag=True, help="End its own limits: what is less specific holds again.")
@reason_option
@click.option("--history", "with_history", is_flag=True, help="Those that held before, too.")
@as_json_option
def limits(
    *,
    symbol: str | None,
    regime: str | None,
    interval: str | None,
    changes: tuple[str, ...],
    reset: bool,
    reason: str | None,
    with_history: bool,
    as_json: bool,
) -> None:
    """Which score is called low, medium, high and critical, for every key or for SYMBOL REGIME.

    Limits hold for the key that they name; '*' as SYMBOL, REGIME or --interval stands for any. A feature is
    called drifted over ks or psi. Changes hold from the next check on, and are in the audit log.

    \b
    alphaplus drift thresholds BTCUSDT trending --set high=0.25 --set critical=0.4 --reason "calm summer"
    """
    settings = load_settings()
    scope = _scope(symbol, regime, interval, settings.default_interval)
    changed = _parse_limits(changes)
    if changed and reset:
        raise click.UsageError("--set and --reset exclude each other")
    if (changed or reset) and reason is None:
        raise InputRejected("reason", reason, "why the limits are changed", "add --reason TEXT")
    now = make_clock(settings).now()
    with command_engine(settings) as engine, transaction(engine) as session:
        if changed or reset:
            now = _set_limits(session, settings, scope, None if reset else changed, reason or "", now)
        rows = [row for row in thresholds.history(session, current=not with_history) if _fits(row, scope)]
        in_force = asdict(thresholds.in_force(session, scope, now))
    if as_json:
        found = {"scope": str(scope), "in_force": in_force, "rows": [threshold_json(row) for row in rows]}
        click.echo(json.dumps(found, indent=2))
        return
    who = "every key without limits of its own" if scope == thresholds.Scope() else str(scope)
    click.echo(f"In force for {who}: " + ", ".join(f"{name} {value:g}" for name, value in in_force.items()))
    if rows:
        console().print(thresholds_table(rows))
    else:
        click.echo("These are the system's own; --set changes them.")


@drift.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--open", "only_open", is_flag=True, help="Only what is under way.")
@as_json_option
def actions(*, limit: int, only_open: bool, as_json: bool) -> None:
    """What was done about alerts, newest first, and what came of it."""
    with command_engine(load_settings()) as engine, transaction(engine) as session:
        found = drift_actions.actions(session, state="open" if only_open else None, limit=limit)
    if as_json:
        click.echo(json.dumps([action_json(action) for action in found], indent=2))
    elif found:
        console().print(actions_table(found))
    else:
        click.echo("Nothing was done about drift" + (" that is not finished." if only_open else " yet."))


@drift.command()
@click.option("--days", type=click.IntRange(1, 3650), default=180, show_default=True)
@click.option("--symbol", help="Of this symbol only.")
@as_json_option
def regret(*, days: int, symbol: str | None, as_json: bool) -> None:
    """Which retrainings paid: each promotion beside the model that it replaced, on the weeks after it.

    "Not known" is an answer: the interval of the difference holds 0, or there are too few signals.
    """
    from tasks.regret import regret_ledger
    from worker.regret_tables import entry_json, regret_rates, regret_table, regret_text

    if symbol is not None:
        check_symbol(symbol)
    settings = load_settings()
    now = make_clock(settings).now()
    with command_engine(settings) as engine, transaction(engine) as session:
        found = regret_ledger(session, since=now - timedelta(days=days), until=now, symbol=symbol)
    rates = regret_rates(found)
    if as_json:
        click.echo(json.dumps({"entries": [entry_json(one) for one in found], "rates": rates}, indent=2))
    elif found:
        console().print(regret_table(found))
        click.echo("\n".join(regret_text(rates)))
    else:
        click.echo(
            f"No model took another one's place in the last {days} days, so there is nothing to regret."
        )


def _key(settings: Settings, symbol: str, interval: str | None, regime: str) -> ModelKey:
    return ModelKey(symbol, settings.default_interval if interval is None else interval, regime)


def _champions(engine: Engine) -> list[ModelKey]:
    with transaction(engine) as session:
        return [row.key for row in registry.champions(session)]


def _with_champion(engine: Engine, key: ModelKey) -> ModelKey:
    """The key. Raises KeyRejected where it has no champion: there is nothing to hold the market against."""
    with transaction(engine) as session:
        if registry.champion(session, key) is not None:
            return key
    arguments = f"{key.symbol} {key.regime} --interval {key.interval}"
    raise KeyRejected(
        "key",
        str(key),
        "a key with a champion, for drift is measured from what a champion was trained on",
        f"`alphaplus train {arguments}` makes one; `alphaplus models --state champion` lists them",
    )


def _print_sent(found: Sequence[Checked], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([{"key": str(one.key), "task_id": one.task_id} for one in found], indent=2))
        return
    for one in found:
        click.echo(f"{one.key}: sent, as task {one.task_id}")
    click.echo("`alphaplus drift summary` shows what comes of it.")


def _print_verdicts(found: Sequence[Checked], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([one.report for one in found], indent=2))
    elif found:
        console().print(verdicts_table([one.report for one in found]))
    else:
        click.echo("No key has a champion. `alphaplus train SYMBOL REGIME` makes one.")


def _print_check(session: Session, found: Checked, as_json: bool) -> None:
    """The rows that a check left, or those of the check of the same candles before it."""
    alerts = checks.newest_check(session, found.key) if found.rows is not None else []
    features = {alert.id: checks.details(session, alert) for alert in alerts if alert.kind == "features"}
    action_id = (found.report.get("action") or {}).get("id")
    state = None if action_id else "open"
    newest = drift_actions.actions(session, key=found.key, state=state, limit=20)
    done = next((one for one in newest if action_id in (None, one.id)), None)
    if as_json:
        rows = [alert_json(alert, features.get(alert.id, ())) for alert in alerts]
        plain = {"alerts": rows, "action": None if done is None else action_json(done)}
        click.echo(json.dumps(found.report | plain, indent=2))
        return
    if found.rows is None:
        click.echo(unchecked_text(found.report))
        return
    out = console()
    out.print(f"{found.key}: {found.sentence}", soft_wrap=True)
    out.print(checks_table(alerts))
    for alert in alerts:
        if alert.kind == "features":
            out.print(features_table(features[alert.id], alert.limits))
    out.print(action_text(done, found.snoozed_until), soft_wrap=True)


def _scope(
    symbol: str | None, regime: str | None, interval: str | None, default_interval: str
) -> thresholds.Scope:
    """A key where symbol and regime are given; else any, where nothing is."""
    any_ = thresholds.ANY
    if symbol in (None, any_) or regime in (None, any_):
        default_interval = any_
    asked = (symbol, any_), (interval, default_interval), (regime, any_)
    return thresholds.Scope(*(default if part is None else part for part, default in asked))


def _set_limits(
    session: Session,
    settings: Settings,
    scope: thresholds.Scope,
    limits: Mapping[str, float] | None,
    reason: str,
    now: datetime,
) -> datetime:
    """From when on they hold: another's change may have come first."""
    row = thresholds.set_threshold(
        session,
        scope,
        limits,
        now=now,
        actor=cli_actor(),
        why=check_reason(reason),
        hmac_key=settings.audit_key,
    )
    return now if row is None else max(now, row.valid_from)


def _fits(row: thresholds.DriftThreshold, scope: thresholds.Scope) -> bool:
    """Whether the row has to do with the scope: all have with every key."""
    pairs = ((row.symbol, scope.symbol), (row.interval, scope.interval), (row.regime, scope.regime))
    return all(thresholds.ANY in pair or pair[0] == pair[1] for pair in pairs)


def _parse_limits(changes: Sequence[str]) -> dict[str, float]:
    """``high=0.25`` and the like. Raises ConfigRejected for another name, or what is no number."""
    found = {}
    names = list(SeverityLimits.__dataclass_fields__)
    for change in changes:
        name, _, value = change.partition("=")
        if name not in names:
            raise ConfigRejected("set", change, f"NAME=NUMBER, with one of {', '.join(names)} as NAME")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise ConfigRejected(name, value, "a number") from error
    return found
