"""``alphaplus detect``: finds the newest candles' patterns and asks the inference workers about them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click
from sqlalchemy.engine import Engine

from client import PredictionClient
from db import candles
from db.session import transaction
from ml.errors import KeyRejected, RetryLater
from ml.keys import check_symbol, interval_duration
from runtime.clock import Clock
from runtime.settings import Settings, load_settings
from tasks.detect import Detection, read_signals
from worker.asking import ask
from worker.clock import make_clock
from worker.database import command_engine
from worker.prediction_tables import answer_line, detection_json, no_signal_text
from worker.tables import console

__all__ = ["detect"]

POLL_SECONDS = 1.0


@click.command()
@click.option("--symbol", "symbols", multiple=True, help="Repeatable.  [default: ALPHAPLUS_SYMBOLS]")
@click.option("--interval", help="Of the candles.  [default: the default interval]")
@click.option("--follow", is_flag=True, help="Go on with each candle that closes, until Ctrl-C.")
@click.option("--timeout", type=click.FloatRange(0.01, 3600), default=5.0, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a line each.")
def detect(
    *, symbols: tuple[str, ...], interval: str | None, follow: bool, timeout: float, as_json: bool
) -> None:
    """Find the newest candle's patterns, and what the models make of them.

    With --follow no candle is answered twice; where the servers are away for a while it waits for them.
    """
    settings = load_settings()
    interval = interval or settings.default_interval
    redis_url = settings.required_redis_url
    with (
        command_engine(settings, pooled=follow) as engine,
        PredictionClient(redis_url, timeout_seconds=timeout) as client,
    ):
        watched = _stored(engine, symbols, interval, settings)
        detector = _Detector(
            settings, engine, make_clock(settings), client, _show_json if as_json else _show_line
        )
        if not follow:
            for symbol in watched:
                detector.look(symbol, interval)
            return
        with contextlib.suppress(KeyboardInterrupt):
            _follow(detector, watched, interval)


Json = dict[str, Any]
Show = Callable[[Detection, list[Json]], None]


class _Detector:
    """Looks at series, and remembers which candle of each it has shown."""

    def __init__(
        self, settings: Settings, engine: Engine, clock: Clock, client: PredictionClient, show: Show
    ) -> None:
        self._settings, self._engine, self._clock = settings, engine, clock
        self._client, self._show = client, show
        self._shown: dict[tuple[str, str], datetime | None] = {}
        """Series -> close of its newest candle, None where there was none."""

    def look(self, symbol: str, interval: str) -> None:
        """Ask about the newest candle's signals, unless that is done. Raises RetryLater, InputRejected."""
        series = (symbol, interval)
        found = self._newest(symbol, interval)
        if found is None or (series in self._shown and self._shown[series] == found.close_time):
            return
        redis_url = self._settings.required_redis_url
        answers: list[Json] = []
        if found.signals:
            # The task that follows each sync asks under the same id: the two are recorded once.
            answers = ask(self._client, found.messages(), redis_url=redis_url, request_id=found.request_id)
        self._show(found, answers)
        self._shown[series] = found.close_time

    def _newest(self, symbol: str, interval: str) -> Detection | None:
        """None where no candle has closed since the one that was shown."""
        now = self._clock.now()
        shown = self._shown.get((symbol, interval))
        max_age_bars = self._settings.max_signal_age_bars
        with transaction(self._engine) as session:
            if shown is not None:
                newer = candles.read(session, symbol, interval, known_at=now, start=shown)
                if not len(newer):
                    return None
            return read_signals(session, symbol=symbol, interval=interval, now=now, max_age_bars=max_age_bars)


def _follow(detector: _Detector, symbols: Sequence[str], interval: str) -> None:
    """Look at every series again and again; where a server is away, say so once and go on."""
    err = console(stderr=True)
    told: dict[str, type[RetryLater]] = {}
    while True:
        for symbol in symbols:
            try:
                detector.look(symbol, interval)
                told.pop(symbol, None)
            except RetryLater as error:
                if told.get(symbol) is not type(error):
                    told[symbol] = type(error)
                    err.print(f"{symbol} {interval}: {error}. Trying on.", soft_wrap=True, markup=False)
        time.sleep(POLL_SECONDS)


def _stored(engine: Engine, symbols: Sequence[str], interval: str, settings: Settings) -> list[str]:
    """The symbols to look at: those named, else those of the settings that have candles.

    Raises:
        KeyRejected: nothing is stored of one that is named, or of any.
    """
    interval_duration(interval)
    with transaction(engine) as session:
        stored = candles.symbols(session, interval)
    watched = list(symbols) or [symbol for symbol in settings.symbols if symbol in stored]
    for symbol in watched or settings.symbols[:1]:
        if check_symbol(symbol) not in stored:
            limit = f"a symbol with {interval} candles: {', '.join(stored) or 'none yet'}"
            raise KeyRejected("symbol", symbol, limit, "see `alphaplus candles --help`")
    return watched


def _show_line(found: Detection, answers: list[Json]) -> None:
    out = console()
    if not found.signals:
        out.print(no_signal_text(found), soft_wrap=True, markup=False)
    for answer in answers:
        out.print(answer_line(answer), soft_wrap=True)


def _show_json(found: Detection, answers: list[Json]) -> None:
    for line in answers or [detection_json(found)]:
        click.echo(json.dumps(line))
