"""Drift checks through a real worker: after a new candle, and an hour's of 500 keys."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
from celery import Celery

from benchmarks.champions import Ground, copy_champion, write_candles
from benchmarks.measurement import Measurement
from benchmarks.workers import Pool
from db import candles as stored
from db.models import ModelRow
from ml.keys import ModelKey
from runtime.queues import DRIFT

__all__ = ["CHECKED_CANDLES", "measure"]

CHECKED_CANDLES: Final = 9
"""Stored one by one, each followed by a check of every key."""
WARM_UP: Final = 2
"""Of them: the first checks load the models, too."""
CHECK_LIMIT_MS: Final = 150.0
KEYS: Final = 500
HOUR_SECONDS: Final = 3_600.0
KEPT_CANDLES: Final = 4_500
"""Of each copied symbol: the 180 days that a check may look back."""
POLL_SECONDS: Final = 0.1
REPLY_SECONDS: Final = 60
PATIENCE_SECONDS: Final = 1_200

COPY_NULL = """
INSERT INTO ml_drift_nulls (model_id, body)
SELECT copy.id, body FROM ml_drift_nulls, ml_models copy
WHERE model_id = :model_id AND copy.symbol = ANY(:symbols) AND copy.regime = :regime
ON CONFLICT DO NOTHING
"""
DONE = "SELECT count(*) FROM ml_drift_alerts WHERE kind = 'features' AND symbol = ANY(:symbols)"


def measure(ground: Ground, pool: Pool, say: Callable[[str], None]) -> list[Measurement]:
    """A check by a worker of production's command, and 500 of them; its database is PostgreSQL's durable one.

    Args:
        ground: champions with their references; its newest ``CHECKED_CANDLES`` candles are not stored yet.
        pool: starts the worker.
        say: told what begins.
    """
    with (
        pool.worker("drift", queue=DRIFT),
        Celery(broker=pool.ours, backend=pool.ours) as app,
    ):
        say("drift: checks through a worker")
        rows = _new_candles(ground, app)
        say(f"drift: {KEYS} copies of champions")
        symbols = _copies(ground)
        say(f"drift: {KEYS} keys through one worker")
        return [*rows, _hour(ground, app, symbols)]


def _new_candles(ground: Ground, app: Celery) -> list[Measurement]:
    """From sending a check to its reply, which follows the commit of its rows."""
    first: list[float] = []
    others: list[float] = []
    window = ground.window
    for turn, row in enumerate(range(len(window) - CHECKED_CANDLES, len(window))):
        with ground.resources.transaction() as session:
            write_candles(session, ground.symbol, window.slice(row, row + 1))
        took = [_check_ms(app, key) for key in ground.champions]
        if turn >= WARM_UP:
            first.append(took[0])
            others += took[1:]
    name = "drift check through Celery, rows committed"
    return [
        Measurement(
            f"{name}: a symbol's first",
            statistics.median(first),
            "ms",
            CHECK_LIMIT_MS,
            len(first),
            "after a new candle: the signals of the window are made",
        ),
        Measurement(
            f"{name}: its other keys",
            statistics.median(others),
            "ms",
            CHECK_LIMIT_MS,
            len(others),
            "their symbol's signals are in memory",
        ),
    ]


def _check_ms(app: Celery, key: ModelKey) -> float:
    started = time.perf_counter()
    arguments = [key.symbol, key.regime, key.interval]
    report: dict[str, Any] = app.send_task("tasks.check_drift", arguments, queue=DRIFT).get(
        timeout=REPLY_SECONDS
    )
    took = 1000 * (time.perf_counter() - started)
    if report["state"] != "checked":  # not to look would be quick
        raise RuntimeError(f"nothing was checked: {report}")
    return took


def _copies(ground: Ground) -> list[str]:
    """So many symbols that they and the ground's regimes make ``KEYS`` keys, each with its own candles."""
    symbols = [f"KEY{number:03}" for number in range(-(-KEYS // len(ground.champions)))]
    with ground.resources.transaction() as session:
        candles = stored.read(
            session, ground.symbol, ground.window.interval, known_at=ground.resources.clock.now()
        ).slice(-KEPT_CANDLES)
    for symbol in symbols:
        with ground.resources.transaction() as session:
            write_candles(session, symbol, candles)
    for key in ground.champions:
        copy_champion(ground, key, symbols, own_trees=False)
        with ground.resources.transaction() as session:
            own = sa.select(ModelRow.id).where(*ModelRow.of_key(key), ModelRow.state == "champion")
            values = {"model_id": session.scalar(own), "symbols": symbols, "regime": key.regime}
            session.execute(sa.text(COPY_NULL), values)
    return symbols


def _hour(ground: Ground, app: Celery, symbols: list[str]) -> Measurement:
    """What beat sends each hour, until the last key's rows are committed."""
    keys = len(symbols) * len(ground.champions)
    started = time.perf_counter()
    app.send_task("tasks.check_all_drift", queue=DRIFT)
    while _done(ground, symbols) < keys:
        if time.perf_counter() - started > PATIENCE_SECONDS:
            raise RuntimeError(f"{_done(ground, symbols)} of {keys} keys in {PATIENCE_SECONDS} s")
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - started
    return Measurement(
        f"{keys} keys' hourly checks, one drift worker",
        seconds,
        "s",
        HOUR_SECONDS,
        1,
        f"{len(symbols)} symbols of {KEPT_CANDLES:,} candles, {1000 * seconds / keys:.0f} ms a key; "
        f"{HOUR_SECONDS * keys / seconds:,.0f} keys an hour",
    )


def _done(ground: Ground, symbols: list[str]) -> int:
    with ground.resources.transaction() as session:
        return int(session.scalar(sa.text(DONE), {"symbols": symbols}) or 0)
