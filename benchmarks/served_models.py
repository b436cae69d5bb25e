"""What models cost: in process, cold, by the hundred; and where their answers are stored."""

from __future__ import annotations

import statistics
import time
from datetime import datetime
from typing import Final

import redis

from benchmarks import freqai_peer
from benchmarks.callers import open_line
from benchmarks.champions import LIMITS, Ground, Json, copy_champion, inline_features
from benchmarks.measurement import Measurement
from benchmarks.workers import Pool
from ml.candles import Candles
from ml.features import WINDOW
from ml.inference import answer
from ml.keys import ModelKey
from ml.sightings import Window
from ml.signals import parse_signals
from tasks import prediction_log

__all__ = ["cold", "drain", "in_process", "many_models"]

ROUNDS: Final = 5
IN_PROCESS: Final = 100
"""Answers a round."""
COLD: Final = 21
MODELS: Final = 500
IN_PROCESS_LIMIT_MS: Final = 0.6
COLD_LIMIT_MS: Final = 15.0
MODELS_LIMIT_MIB: Final = 400.0
KEYS_A_REQUEST: Final = 16
"""While a request is answered its models stay, whatever the cache's bound: 256 would be 256 at once."""


def in_process(ground: Ground, candles: Candles) -> list[Measurement]:
    """Features and model of one signal without any wire, and FreqAI's in turns."""
    signal = ground.signals[0]
    closed = datetime.fromisoformat(signal["time"])
    raw = ground.window.until(closed).slice(-WINDOW)
    find_model = ground.cache().find
    seconds: dict[str, list[float]] = {"named": [], "found": [], "theirs": []}

    def ask(question: Json) -> float:
        requests = parse_signals(question, default_interval=raw.interval, now=closed)
        began = time.perf_counter()
        sightings = Window(raw).see(requests, [closed])
        answer("one", requests, sightings, find_model, now=closed, limits=LIMITS)
        return time.perf_counter() - began

    unnamed = {name: value for name, value in signal.items() if name != "patterns"}
    with freqai_peer.live(candles) as ask_freqai:
        for turn in range(1 + ROUNDS):
            if not turn:
                ask(signal)
            seconds["named"] += [ask(signal) for _ in range(IN_PROCESS)]
            seconds["found"] += [ask(unnamed) for _ in range(IN_PROCESS)]
            if ask_freqai is not None:
                seconds["theirs"].append(ask_freqai())
    ours = 1000 * statistics.median(seconds["named"])
    theirs = 1000 * statistics.median(seconds["theirs"]) if seconds["theirs"] else None
    note = f"{ground.trees} trees"
    if theirs is not None:
        size = f"{freqai_peer.FEATURES} features, {freqai_peer.LIVE_TREES} trees"
        note += f"; FreqAI takes {theirs / ours:.0f} x, {size}"
    return [
        Measurement(
            "features and model of one signal, in process",
            ours,
            "ms",
            IN_PROCESS_LIMIT_MS,
            len(seconds["named"]),
            note,
            theirs,
            "" if theirs is None else freqai_peer.NAME,
        ),
        Measurement(
            "the same, its patterns found too",
            1000 * statistics.median(seconds["found"]),
            "ms",
            None,
            len(seconds["found"]),
        ),
    ]


def cold(ground: Ground) -> Measurement:
    """A model that nobody has asked for: from the database to its first answer."""
    signal = ground.signals[0]
    closed = datetime.fromisoformat(signal["time"])
    requests = parse_signals(signal, default_interval=ground.window.interval, now=closed)
    sightings = Window(ground.window).see(requests, [closed])
    milliseconds = []
    for _ in range(1 + COLD):
        cache = ground.cache()
        began = time.perf_counter()
        (one,) = answer("one", requests, sightings, cache.find, now=closed, limits=LIMITS)
        milliseconds.append(1000 * (time.perf_counter() - began))
        assert one.served is not None
        assert cache.loads == 1
        size_kb = one.served.predictor.booster_bytes / 1000
    note = f"{ground.trees} trees, {size_kb:.0f} kB"
    name = "cold model, from database to answer"
    return Measurement(name, statistics.median(milliseconds[1:]), "ms", COLD_LIMIT_MS, COLD, note)


def many_models(pool: Pool, *, own_trees: bool) -> Measurement:
    """Memory of a worker that has answered for many keys."""
    signal, key = inline_features(pool.ground)
    prefix = "OWN" if own_trees else "SHARED"
    symbols = [f"{prefix}{number}" for number in range(MODELS)]
    booster_bytes = copy_champion(pool.ground, key, symbols, own_trees=own_trees)
    with pool.worker(prefix.lower()) as worker, open_line(pool.ours) as ours:
        before = worker.rss_mib()
        for at in range(0, MODELS, KEYS_A_REQUEST):
            some = symbols[at : at + KEYS_A_REQUEST]
            answers = ours.by_list([signal | {"symbol": symbol} for symbol in some])
            assert [one["model"] for one in answers] == [
                str(ModelKey(symbol, key.interval, key.regime)) for symbol in some
            ]
        after = worker.rss_mib()
    trees = (
        f"each with its own {pool.ground.trees} trees" if own_trees else f"sharing {pool.ground.trees} trees"
    )
    note = f"{before:.0f} MiB before them; {booster_bytes / 1000:.0f} kB of trees stored"
    return Measurement(
        f"memory of a worker, {MODELS} models {trees}", after, "MiB", MODELS_LIMIT_MIB, 1, note
    )


def drain(pool: Pool) -> Measurement:
    """Rows a second from the stream, where all those answers lie, into the table."""
    with redis.Redis.from_url(pool.ours) as client:
        waiting = client.xlen(prediction_log.STREAM)
        began = time.perf_counter()
        done = prediction_log.drain(client, pool.ground.resources.transaction, consumer="benchmark")
        seconds = time.perf_counter() - began
    assert not done.rejected
    note = f"{done.rows:,} rows in {seconds:.1f} s; {done.entries:,} of {waiting:,} requests that waited"
    return Measurement("prediction log into PostgreSQL", done.rows / seconds, "rows/s", None, 1, note)
