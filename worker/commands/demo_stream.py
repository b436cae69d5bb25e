"""The demo's second half: candle after candle through the detector and the inference workers."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import redis
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy.engine import Engine

from client import PredictionClient
from db import candles, outcomes
from db.session import transaction
from ml.candles import to_datetime
from ml.errors import StopForOperator
from runtime.clock import WallClock
from runtime.settings import Settings
from tasks.detect import read_signals
from tasks.prediction_log import STREAM
from worker.replay import move_replay, replay_position

__all__ = ["store_and_resolve", "stream"]

ANSWER_SECONDS = 20.0
STORE_SECONDS = 120.0
POLL_SECONDS = 0.2


class _Tally:
    """What has been answered so far, and how long it took."""

    def __init__(self) -> None:
        self.decisions: Counter[str] = Counter()
        self.milliseconds: list[float] = []
        self.began = time.monotonic()

    def add(self, answers: Sequence[dict[str, Any]], seconds: float) -> None:
        self.decisions.update(answer["decision"] for answer in answers)
        self.milliseconds.append(1000 * seconds)

    def __str__(self) -> str:
        answered = self.decisions.total()
        rate = answered / max(time.monotonic() - self.began, 1e-3)
        p50, p99 = 0.0, 0.0
        if len(self.milliseconds) > 1:
            cuts = statistics.quantiles(self.milliseconds, n=100, method="inclusive")
            p50, p99 = cuts[49], cuts[98]
        parts = " ".join(f"{name} {self.decisions[name]}" for name in ("accept", "reject", "abstain"))
        return f"{answered:,} answers  {rate:3.0f}/s  p50 {p50:.1f} ms  p99 {p99:.1f} ms  {parts}"


def stream(console: Console, engine: Engine, settings: Settings, symbols: Sequence[str]) -> str:
    """Let each stored candle after the replay's position close, an hour at a time; one answer's id.

    The detector finds the patterns of each symbol's new candle, and asks the workers through the queue.
    """
    hours = _hours_ahead(engine, settings, symbols[0])
    tally = _Tally()
    newest = ""
    columns = (TextColumn("{task.fields[day]}"), BarColumn(20), TextColumn("{task.description}"))
    redis_url = settings.required_redis_url
    with (
        PredictionClient(redis_url, timeout_seconds=ANSWER_SECONDS) as client,
        ThreadPoolExecutor(len(symbols)) as detectors,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        bar = progress.add_task("", total=len(hours), day="")

        def detect(symbol: str, moment: datetime) -> tuple[list[dict[str, Any]], float]:
            with transaction(engine) as session:
                found = read_signals(
                    session,
                    symbol=symbol,
                    interval=settings.default_interval,
                    now=moment,
                    max_age_bars=settings.max_signal_age_bars,
                )
            if not found.signals:
                return [], 0.0
            started = time.perf_counter()
            answers = client.predict(found.messages(), request_id=found.request_id)
            return answers, time.perf_counter() - started

        for moment in hours:
            move_replay(redis_url, moment)
            for answers, seconds in detectors.map(detect, symbols, [moment] * len(symbols)):
                if answers:
                    tally.add(answers, seconds)
                newest = next((one["prediction_id"] for one in answers if one["confidence"]), newest)
            progress.update(bar, advance=1, description=str(tally), day=f"{moment:%Y-%m-%d %H:%M}")
    if not hours:
        console.print("The stored candles end here: an earlier run has streamed them.")
    return newest


def store_and_resolve(console: Console, app: Any, settings: Settings) -> None:
    """Wait until beat's tasks have stored every answer, then have the outcomes written."""
    deadline = time.monotonic() + STORE_SECONDS
    with redis.Redis.from_url(settings.required_redis_url) as client, console.status("storing the answers"):
        while client.xlen(STREAM):
            _require_time(deadline, "the answers are not stored")
            time.sleep(POLL_SECONDS)
    with console.status("resolving the outcomes"):
        sent = app.send_task("tasks.resolve_outcomes")
        while _still_due(app.resources.engine, app.resources.clock.now()):
            _require_time(deadline, f"the outcomes are not written (task {sent.id})")
            time.sleep(POLL_SECONDS)


def _still_due(engine: Engine, now: datetime) -> bool:
    with transaction(engine) as session:
        return bool(outcomes.due(session, now, 1))


def _require_time(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise StopForOperator(f"{what} after {STORE_SECONDS:g} s; the log of the processes says why")


def _hours_ahead(engine: Engine, settings: Settings, symbol: str) -> list[datetime]:
    """Closes of the symbol's candles after the replay's position."""
    now = replay_position(settings.required_redis_url)() or settings.replay_start
    with transaction(engine) as session:
        ahead = candles.read(
            session, symbol, settings.default_interval, known_at=WallClock().now(), start=now
        )
    # A candle that opened before the position closes after it.
    first = [] if now is None else [now.replace(minute=0) + timedelta(hours=1)]
    closes = [to_datetime(close) for close in ahead.close_time]
    return sorted({moment for moment in (*first, *closes) if now is None or moment > now})
