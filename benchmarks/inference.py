"""Answers: one signal, a list, many callers, a cold model, 500 models; beside an empty Celery task.

The empty task and ours are asked by the same callers in the same run, in turns, so that their difference
holds on a busy machine. The workers' clock is the wall's, as in production: the candles are real ones, moved
in time so that the last one closed at the last full hour.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis

from benchmarks import served_models
from benchmarks.callers import Ask, Crowd, Line, Question, ask_at_once, open_line
from benchmarks.champions import Ground, Json, lay, write_candles
from benchmarks.measurement import Measurement
from benchmarks.workers import Pool, Worker, cpu_seconds
from ml.candles import Candles
from ml.features import WINDOW

__all__ = ["measure", "percentile"]

ROUNDS: Final = 5
ASKED: Final = 200
"""Times a round, each way."""
ASKED_INLINE: Final = 60
LISTED: Final = 64
LISTS_IN_FLIGHT: Final = 4
LIST_SECONDS: Final = 0.8
CALLERS: Final = 16
CROWD_ROUNDS: Final = 3
CROWD_SECONDS: Final = 1.5
HELD_BACK: Final = 14
"""Candles that are stored one by one, each asked for at once."""

ONE_LIMIT_MS, INLINE_LIMIT_MS = 1.2, 3.0
"""On top of the empty task."""
P99_LIMIT_MS: Final = 6.0
LIST_FLOOR: Final = 8_000.0
TWO_WORKERS_FLOOR: Final = 1.6
CORES_OF_TWO: Final = 4
"""Two workers, Redis and the callers: with fewer cores they wait for each other."""

Say = Callable[[str], None]


def measure(
    candles: Candles, *, symbol: str, database_url: str, redis_url: str, folder: Path, say: Say
) -> list[Measurement]:
    """Every row about answers.

    Args:
        candles: real ones, of one symbol.
        symbol: theirs.
        database_url: of an empty database.
        redis_url: of the server whose databases 5 and 6 nobody uses.
        folder: for the workers' logs.
        say: told what begins.
    """
    ground = lay(candles, symbol=symbol, database_url=database_url, held_back=HELD_BACK, say=say)
    pool = Pool(ground, redis_url, folder)
    with ExitStack() as stack:
        first = stack.enter_context(pool.worker("first"))
        stack.enter_context(pool.empty_worker())
        ours, empty = (stack.enter_context(open_line(url)) for url in (pool.ours, pool.empty))
        say("inference: the first signal of a new candle")
        rows = [_new_candles(ground, ours)]
        say("inference: one signal, beside an empty task")
        rows += _beside_empty(ground, ours, empty)
        say(f"inference: lists of {LISTED}")
        rows.append(_lists(ground, ours))
        second = stack.enter_context(pool.worker("second"))
        rows += _crowds(ground, ours, first, second, say)
    say("inference: in process")
    rows += [*served_models.in_process(ground, candles), served_models.cold(ground)]
    for own_trees in (False, True):
        say(f"inference: {served_models.MODELS} models")
        rows.append(served_models.many_models(pool, own_trees=own_trees))
    say("inference: the prediction log")
    rows.append(served_models.drain(pool))
    ground.resources.engine.dispose()
    return rows


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least ``share`` of them are not over: of 100 the 99th is p99."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def _timed_ms(ask: Ask, question: Question, times: int) -> list[float]:
    milliseconds = []
    for _ in range(times):
        began = time.perf_counter()
        ask(question)
        milliseconds.append(1000 * (time.perf_counter() - began))
    return milliseconds


def _answered(answers: Sequence[Json]) -> None:
    """An abstention for want of a model would be quick, and no answer."""
    for one in answers:
        if one["model"] is None:
            raise RuntimeError(f"no model answered: {one}")


def _new_candles(ground: Ground, ours: Line) -> Measurement:
    """What the first to ask waits for after a candle was stored: it is read, cleaned, and features made."""
    milliseconds = []
    close_time = ground.window.close_time
    for row in range(len(close_time) - HELD_BACK, len(close_time)):
        with ground.resources.transaction() as session:
            write_candles(session, ground.symbol, ground.window.slice(row, row + 1))
        closed = close_time[row].astype("datetime64[s]").item().replace(tzinfo=UTC).isoformat()
        signal = ground.signals[0] | {"time": closed}
        milliseconds += _timed_ms(ours.by_get, signal, 1)
    _answered(ours.by_get(ground.signals[0]))
    counted = milliseconds[2:]  # the first ones load the models, too
    return Measurement(
        "first signal of a new candle, .get()", statistics.median(counted), "ms", None, len(counted),
        f"reads {len(ground.window):,} candles; the worker's very first answer {milliseconds[0]:.0f} ms",
    )  # fmt: skip


def _beside_empty(ground: Ground, ours: Line, empty: Line) -> list[Measurement]:
    """One signal from cached candles and one with candles inline, and the empty task with the same."""
    one = ground.signals[0]
    inline = one | {"candles": _ohlcv(ground.window, one)}
    questions: dict[str, tuple[Json, int]] = {"cached": (one, ASKED), "inline": (inline, ASKED_INLINE)}
    ways: dict[tuple[str, str], Ask] = {
        ("empty", ".get()"): empty.by_get,
        ("ours", ".get()"): ours.by_get,
        ("empty", "reply list"): empty.by_list,
        ("ours", "reply list"): ours.by_list,
    }
    rounds: dict[tuple[str, str, str], list[list[float]]] = {}
    for turn in range(1 + ROUNDS):
        for what, (question, times) in questions.items():
            for (who, way), ask in ways.items():
                found = _timed_ms(ask, question, times if turn else times // 4)
                if turn:
                    rounds.setdefault((who, what, way), []).append(found)
    for question, _ in questions.values():
        _answered(ours.by_get(question))
    rows: list[Measurement] = []
    for way in (".get()", "reply list"):
        rows += _way_rows(way, {(who, what): found for (who, what, by), found in rounds.items() if by == way})
    return rows


def _way_rows(way: str, rounds: Mapping[tuple[str, str], Sequence[Sequence[float]]]) -> Iterator[Measurement]:
    """The rows of one way to get replies, from the rounds of each (who, what)."""

    def at(who: str, what: str, share: float) -> float:
        return statistics.median(percentile(found, share) for found in rounds[who, what])

    floor = at("empty", "cached", 0.5)
    yield Measurement(f"empty task, {way}: p50", floor, "ms", None, ROUNDS, f"of {ASKED} a round")
    yield Measurement(f"empty task, {way}: p99", at("empty", "cached", 0.99), "ms", None, ROUNDS)
    median = at("ours", "cached", 0.5)
    note = f"empty + {median - floor:.2f} ms; {median / floor:.2f} x"
    yield Measurement(f"one signal, {way}: p50", median, "ms", floor + ONE_LIMIT_MS, ROUNDS, note)
    p99 = at("ours", "cached", 0.99)
    yield Measurement(f"one signal, {way}: p99", p99, "ms", P99_LIMIT_MS, ROUNDS)
    median, carried = at("ours", "inline", 0.5), at("empty", "inline", 0.5)
    note = (
        f"empty + {median - floor:.2f} ms, of which {carried - floor:.2f} carry the candles; "
        f"p99 {at('ours', 'inline', 0.99):.2f}"
    )
    yield Measurement(
        f"{WINDOW:,} candles inline, {way}: p50", median, "ms", floor + INLINE_LIMIT_MS, ROUNDS, note
    )


def _ohlcv(window: Candles, signal: Json) -> list[list[float]]:
    """The candles up to the signal, as ccxt has them."""
    candles = window.until(datetime.fromisoformat(signal["time"])).slice(-WINDOW)
    columns = (candles.open, candles.high, candles.low, candles.close, candles.volume)
    opened = candles.open_time.astype("datetime64[ms]").astype(int).tolist()
    return [list(row) for row in zip(opened, *(column.tolist() for column in columns), strict=True)]


def _lists(ground: Ground, ours: Line) -> Measurement:
    """Signals a second of one worker that always has a list to do."""
    signals = list(ground.signals[:LISTED])
    assert len(signals) == LISTED
    _answered(ours.by_list(signals))
    per_second = []
    for turn in range(1 + ROUNDS):
        crowd = ask_at_once(ours.client, [signals], callers=LISTS_IN_FLIGHT, seconds=LIST_SECONDS)
        _require_right(crowd)
        if turn:
            per_second.append(LISTED * crowd.per_second)
    return Measurement(
        f"lists of {LISTED} signals, one worker",
        statistics.median(per_second),
        "signals/s",
        LIST_FLOOR,
        ROUNDS,
        f"{LISTED} candle times, long and short; {LISTS_IN_FLIGHT} lists in flight",
        at_least=True,
    )


def _require_right(crowd: Crowd) -> None:
    if crowd.errors or crowd.wrong:
        raise RuntimeError(f"of {crowd.replies} replies {crowd.wrong} were wrong; {crowd.errors} errors")


def _crowds(ground: Ground, ours: Line, first: Worker, second: Worker, say: Say) -> list[Measurement]:
    """Many callers at once: one worker and two, in turns."""
    questions: list[Question] = list(ground.signals[:LISTED])
    server = _redis_process(ours)
    pids = {"workers": [first.popen.pid, second.popen.pid], "callers": [os.getpid()], "Redis": [server]}
    crowds: dict[int, list[Crowd]] = {1: [], 2: []}
    cores: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for turn in range(1 + CROWD_ROUNDS):
        for workers in (1, 2):
            say(f"inference: {CALLERS} callers, {workers} worker{'s' * (workers > 1)}")
            (ours.pause if workers == 1 else ours.resume)(second)
            before = _cpu(pids)
            crowd = ask_at_once(ours.client, questions, callers=CALLERS, seconds=CROWD_SECONDS)
            used = {who: (after - before[who]) / crowd.seconds for who, after in _cpu(pids).items()}
            if turn:
                crowds[workers].append(crowd)
                cores[workers].append(used)
    return [
        *(_crowd_row(workers, crowds[workers], cores[workers]) for workers in (1, 2)),
        _two_over_one(crowds[1], crowds[2]),
    ]


def _crowd_row(workers: int, crowds: Sequence[Crowd], cores: Sequence[Mapping[str, float]]) -> Measurement:
    shares = ", ".join(f"{who} {statistics.median(used[who] for used in cores):.2f}" for who in cores[0])
    return Measurement(
        f"{CALLERS} callers, {workers} worker{'s' * (workers > 1)}",
        _median_crowd(crowds),
        "answers/s",
        None,
        len(crowds),
        f"p99 {_p99_ms(crowds):.1f} ms; cores used: {shares}",
        at_least=True,
    )


def _two_over_one(one: Sequence[Crowd], two: Sequence[Crowd]) -> Measurement:
    total, cores = Crowd(), os.cpu_count() or 1
    for crowd in (*one, *two):
        total.add(crowd)
    return Measurement(
        f"{CALLERS} callers, two workers over one",
        _median_crowd(two) / _median_crowd(one),
        "x",
        TWO_WORKERS_FLOOR if cores >= CORES_OF_TWO else None,
        len(two),
        f"{total.replies:,} replies, {total.errors} errors, {total.wrong} to the wrong caller; "
        f"floor {TWO_WORKERS_FLOOR} from {CORES_OF_TWO} cores on: on the {cores} here two busy loops do "
        f"{_gain_of_two():.2f} x the work of one",
        at_least=True,
    )


def _gain_of_two() -> float:
    """Work that two processes do at once over one's: a machine's second core may be half of its first."""
    count = "import time; end = time.monotonic() + 0.5; n = 0\nwhile time.monotonic() < end: n += 1\nprint(n)"

    def done(processes: int) -> int:
        running = [
            subprocess.Popen([sys.executable, "-c", count], stdout=subprocess.PIPE) for _ in range(processes)
        ]
        return sum(int(process.communicate()[0]) for process in running)

    return statistics.median(done(2) / done(1) for _ in range(CROWD_ROUNDS))


def _median_crowd(crowds: Sequence[Crowd]) -> float:
    return statistics.median(crowd.per_second for crowd in crowds)


def _p99_ms(crowds: Sequence[Crowd]) -> float:
    return 1000 * statistics.median(percentile(crowd.latencies, 0.99) for crowd in crowds)


def _cpu(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {who: sum(map(cpu_seconds, each)) for who, each in pids.items()}


def _redis_process(ours: Line) -> int:
    with redis.Redis.from_url(ours.redis_url) as client:
        info: Any = client.info("server")
    return int(info["process_id"])
