"""``alphaplus predict | predictions | replay | accuracy``."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from ml.errors import InputRejected, KeyRejected
from ml.keys import MODEL_REGIMES, check_symbol
from runtime.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.models import Prediction
    from tasks.detect import Detection
    from tasks.remake import Remade

__all__ = ["accuracy", "predict", "predictions", "replay"]

MOST_SHOWN = 10_000
"""Newest predictions among which --open, --resolved and a shortened id are looked for."""
DECISIONS = ("accept", "reject", "abstain")

as_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command()
@click.argument("symbol")
@click.option("--interval", help="Of the candles.  [default: the default interval]")
@click.option("--direction", type=click.Choice(["long", "short"]), help="Which way the signal points.")
@click.option("--pattern", "patterns", multiple=True, help="As CDLENGULFING; repeatable.  [default: found]")
@click.option("--confidence", type=float, help="The pattern's own, 0 to 1.  [default: its hit rate]")
@click.option("--time", "moment", help="Close of the signal's candle, ISO-8601.  [default: the newest]")
@click.option("--timeout", type=click.FloatRange(0.01, 3600), default=5.0, show_default=True, help="Seconds.")
@as_json_option
def predict(
    *,
    symbol: str,
    interval: str | None,
    direction: str | None,
    patterns: tuple[str, ...],
    confidence: float | None,
    moment: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Ask the inference workers about a signal; without --direction, about those of the newest candle.

    An abstention is an answer, too: it says why, and what to do.

    \b
    alphaplus predict BTCUSDT
    alphaplus predict BTCUSDT --direction long --pattern CDLENGULFING --confidence 0.57
    """
    settings = load_settings()
    interval = interval or settings.default_interval
    signal: dict[str, Any] = {"symbol": symbol, "interval": interval}
    optional = {"patterns": list(patterns) or None, "confidence": confidence, "time": moment}
    given = {name: value for name, value in optional.items() if value is not None}
    if direction is not None:
        signals = [signal | given | {"direction": 1 if direction == "long" else -1}]
        _check(signals, settings)
    elif given:
        raise InputRejected("direction", None, "long or short, for the signal is described by other options")
    else:
        from worker.prediction_tables import no_signal_text

        found = _newest(settings, symbol, interval)
        if not found.signals:
            click.echo(no_signal_text(found), err=as_json)
            if as_json:
                click.echo("[]")
            return
        signals = found.messages()
    answers = _ask(settings, signals, timeout)
    if as_json:
        click.echo(json.dumps(answers, indent=2))
        return
    from worker.prediction_tables import answers_table
    from worker.tables import console, time_text

    closed = time_text(datetime.fromisoformat(answers[0]["time"]))
    click.echo(f"{symbol} {interval}, candle closed {closed} UTC")
    console().print(answers_table(answers))


@click.command()
@click.option("--symbol", help="Of this symbol only.")
@click.option("--regime", type=click.Choice(MODEL_REGIMES), help="In this regime only (all: unknown).")
@click.option("--decision", type=click.Choice(DECISIONS), help="With this decision only.")
@click.option("--limit", type=click.IntRange(1, MOST_SHOWN), default=20, show_default=True)
@click.option("--open/--resolved", "is_open", default=None, help="Only those without, or with, an outcome.")
@as_json_option
def predictions(
    *,
    symbol: str | None,
    regime: str | None,
    decision: str | None,
    limit: int,
    is_open: bool | None,
    as_json: bool,
) -> None:
    """Answers given, newest first, and what became of them."""
    from db import predictions as store
    from db.session import transaction
    from worker.database import command_engine
    from worker.prediction_tables import prediction_json, predictions_table
    from worker.tables import console

    if symbol is not None:
        check_symbol(symbol)
    resolved = None if is_open is None else not is_open
    with command_engine(load_settings()) as engine, transaction(engine) as session:
        rows = store.recent(
            session, symbol=symbol, regime=regime, decision=decision, resolved=resolved, limit=limit
        )
    if as_json:
        click.echo(json.dumps([prediction_json(row) for row in rows], indent=2))
    elif rows:
        console().print(predictions_table(rows, now=datetime.now(UTC)))
    else:
        click.echo("No such predictions. `alphaplus predict SYMBOL` asks for one.")


@click.command()
@click.argument("prediction_id")
@click.option("--features", "with_features", is_flag=True, help="Show every feature, by name.")
@as_json_option
@click.pass_context
def replay(context: click.Context, /, *, prediction_id: str, with_features: bool, as_json: bool) -> None:
    """Make a past prediction again, to the last bit, and say what it used.

    PREDICTION_ID may be shortened to its first 8 characters. The exit code is 0 where everything came out as
    recorded, 1 where something did not, 2 where there is no such prediction.
    """
    from db.session import transaction
    from tasks.remake import remade_json, remake
    from worker.database import command_engine

    settings = load_settings()
    with command_engine(settings) as engine, transaction(engine) as session:
        row = find_prediction(session, prediction_id)
        if row is None:
            limit = "the id of a stored prediction; answers are stored a few seconds after they are given"
            raise InputRejected("prediction_id", prediction_id, limit, "`alphaplus predictions` lists them")
        remade = remake(session, row, max_signal_age_bars=settings.max_signal_age_bars)
    if as_json:
        click.echo(json.dumps(remade_json(remade, with_features=with_features), indent=2))
    else:
        _show_remade(remade, with_features=with_features)
    if not remade.identical:
        context.exit(1)


@click.command()
@click.option("--days", type=click.IntRange(1, 3650), help="[default: ALPHAPLUS_LIVE_WINDOW_DAYS]")
@click.option("--symbol", help="Of this symbol only.")
@as_json_option
def accuracy(*, days: int | None, symbol: str | None, as_json: bool) -> None:
    """How the answers turned out, key by key, beside the patterns alone."""
    from db.session import transaction
    from tasks.outcomes import live_accuracy
    from worker.clock import make_clock
    from worker.database import command_engine
    from worker.prediction_tables import accuracy_tables
    from worker.tables import console

    if symbol is not None:
        check_symbol(symbol)
    settings = load_settings()
    until = make_clock(settings).now()
    since = until - timedelta(days=days or settings.live_window_days)
    with command_engine(settings) as engine, transaction(engine) as session:
        kept = live_accuracy(session, since=since, until=until, symbol=symbol)
    if as_json:
        click.echo(json.dumps([{"key": str(key)} | one.to_json() for key, one in kept], indent=2))
    elif kept:
        for shown in accuracy_tables(kept):
            console().print(shown)
    else:
        click.echo(
            "No signal has an outcome yet: it takes until its horizon has passed and its candles are in. "
            "`alphaplus predictions --open` lists those that wait."
        )


def find_prediction(session: Session, text: str) -> Prediction | None:
    """A prediction by its id, or by the beginning of it, 8 characters at least.

    Raises:
        InputRejected: no id, or the beginning of several.
    """
    from db import predictions as store

    limit = "a prediction's id, or its first 8 characters or more; `alphaplus predictions` lists them"
    begins = text.lower().replace("-", "")
    if not 8 <= len(begins) <= 32 or not set(begins) <= set("0123456789abcdef"):
        raise InputRejected("prediction_id", text, limit)
    if len(begins) == 32:
        return store.get(session, UUID(begins))
    found = store.beginning(session, begins, 2)
    if len(found) > 1:
        raise InputRejected("prediction_id", text, "more of the id: several begin so")
    return found[0] if found else None


def _show_remade(remade: Remade, *, with_features: bool) -> None:
    from worker.prediction_tables import features_table, remade_table, remade_text
    from worker.tables import console

    out = console()
    for line in remade_text(remade):
        out.print(line, soft_wrap=True, markup=False)
    if with_features and remade.features is not None:
        out.print(features_table(remade))
    if not remade.compared:
        return
    out.print(remade_table(remade))
    if remade.identical:
        click.echo("Identical, to the last bit.")
    else:
        click.echo(
            "Not identical: this machine's libraries or processor give other digits, or the row was changed."
        )


def _check(signals: list[dict[str, Any]], settings: Settings) -> None:
    """Refuse what the worker would refuse, without one. Raises InputRejected."""
    from ml.signals import parse_signals
    from worker.clock import make_clock

    now = make_clock(settings).now()
    parse_signals(signals[0], default_interval=settings.default_interval, now=now)


def _newest(settings: Settings, symbol: str, interval: str) -> Detection:
    """The newest candle's signals. Raises KeyRejected where nothing is stored of the series."""
    from db import candles
    from db.session import transaction
    from tasks.detect import read_signals
    from worker.clock import make_clock
    from worker.database import command_engine

    now = make_clock(settings).now()
    max_age_bars = settings.max_signal_age_bars
    with command_engine(settings) as engine, transaction(engine) as session:
        found = read_signals(session, symbol=symbol, interval=interval, now=now, max_age_bars=max_age_bars)
        if found.close_time is None:
            stored = candles.symbols(session, interval)
            limit = f"a symbol with {interval} candles: {', '.join(stored) or 'none yet'}"
            raise KeyRejected("symbol", symbol, limit, "see `alphaplus candles --help`")
    return found


def _ask(settings: Settings, signals: list[dict[str, Any]], timeout: float) -> list[dict[str, Any]]:
    from client import PredictionClient
    from worker.asking import ask

    redis_url = settings.required_redis_url
    with PredictionClient(redis_url, timeout_seconds=timeout) as client:
        return ask(client, signals, redis_url=redis_url)
