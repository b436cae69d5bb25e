"""The training task through a real worker, against the bare fit of the same matrix."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from celery.result import AsyncResult

from benchmarks.measurement import Measurement
from db import candles as stored
from db import jobs
from ml.candles import Candles
from ml.config import TrainingConfig
from ml.dataset import build_rows
from ml.keys import ALL_REGIMES, MODEL_REGIMES, REGIMES, ModelKey, interval_duration
from ml.noise import clean
from ml.rows import SignalRows
from ml.splits import split, split_times
from ml.training import pool_rows
from runtime.clock import data_cut
from runtime.queues import TRAINING
from worker.celery import app
from worker.processes import worker_argv
from worker.replay import move_replay

__all__ = ["REPLAY_DAYS", "measure"]

RUNS = 5
REPLAY_DAYS = 30
"""The replay begins this long before the last candle: each run has a data cut of its own, a day later."""
STAGES_SHOWN = 4
READY_SECONDS = JOB_SECONDS = 300
MADE_LIMIT = 1.5
"""Times the bare fit."""
OWN_LIMIT_SECONDS = 1.5
"""On top of the bare fit."""
FOUND_LIMIT_SECONDS = 1.0
MEMORY_LIMIT_MIB = 600.0
WORKER_RUNS = 3
TWO_WORKERS_LIMIT = 1.6

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Timed:
    """One job. ``task_seconds``: its row's start to its end; ``client_seconds``: sent to answered."""

    task_seconds: float
    client_seconds: float
    started: datetime
    finished: datetime
    outcome: dict[str, Any]
    stages: dict[str, float]
    """Seconds of each."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The candles in the database, and the replay that walks through their last days."""

    candles: Candles
    symbol: str
    folder: Path
    say: Say

    def key(self, regime: str) -> ModelKey:
        """A model key of the benchmark's candles."""
        return ModelKey(self.symbol, self.candles.interval, regime)

    def next_cut(self) -> datetime:
        """Move the replay a day on; return the new data cut."""
        redis_url, now = app.resources.settings.required_redis_url, app.resources.clock.now()
        return data_cut(move_replay(redis_url, now + timedelta(days=1)))

    def rows(self, cut: datetime, config: TrainingConfig) -> SignalRows:
        """What a job at ``cut`` reads, labelled."""
        cleaned = clean(self.candles.until(cut)).candles
        return build_rows(cleaned, symbol=self.symbol, config=config.labels)


def measure(candles: Candles, *, symbol: str, folder: Path, comparable: bool, say: Say) -> list[Measurement]:
    """Every row about the training task. The candles are in the database, and the clock is a replay.

    Args:
        candles: those of the database.
        symbol: theirs.
        folder: for the workers' logs.
        comparable: whether the candles are as many as the limits are stated for.
        say: told what begins.
    """
    bench = Bench(candles, symbol, folder, say)
    rows = [*_pooled(bench), *_own(bench), _two_workers(bench)]
    return rows if comparable else [replace(row, limit=None) for row in rows]


def _pooled(bench: Bench) -> list[Measurement]:
    """The fit that keys share: made by the first job of a data cut, found by the next."""
    config = TrainingConfig()
    bare, made, found = [], [], []
    with _workers(bench, 1, config) as (worker,):
        for run in range(1 + RUNS):
            bench.say(f"training: shared fit, run {run} of {RUNS}" if run else "training: warm-up")
            cut = bench.next_cut()
            bare.append(_bare_seconds(bench.key(ALL_REGIMES), bench.rows(cut, config), config))
            (first,) = _run_jobs([bench.key(ALL_REGIMES)])
            assert not first.outcome["fit_reused"]
            made.append(first)
            found += _run_jobs([bench.key(REGIMES[run % len(REGIMES)])])
            assert found[-1].outcome["fit_reused"]
        memory = _peak_mib(worker)
    bare_median = statistics.median(bare[1:])
    return [
        _row("train, shared fit made in the job", made[1:], MADE_LIMIT * bare_median, bare_median),
        _row("train, shared fit found", found[1:], FOUND_LIMIT_SECONDS, None),
        Measurement("peak memory of a training process", memory, "MiB", MEMORY_LIMIT_MIB, 1),
    ]


def _own(bench: Bench) -> list[Measurement]:
    """A fit of the key's own rows (``pool = key``)."""
    config = TrainingConfig(pool="key")
    bare, own = [], []
    with _workers(bench, 1, config):
        for run in range(1 + RUNS):
            bench.say(f"training: a key's own fit, run {run} of {RUNS}" if run else "training: warm-up")
            key = bench.key(REGIMES[0])
            bare.append(_bare_seconds(key, bench.rows(bench.next_cut(), config), config))
            own += _run_jobs([key])
    bare_median = statistics.median(bare[1:])
    return [_row("train, the key's own fit", own[1:], bare_median + OWN_LIMIT_SECONDS, bare_median)]


def _two_workers(bench: Bench) -> Measurement:
    """Keys a minute of two workers over those of one, each with one thread and fits of its own."""
    config = TrainingConfig.model_validate({"pool": "key", "fit": {"threads": 1}})
    symbols = (bench.symbol, _store_copy(bench))
    # The longest first, so that no worker ends with it alone.
    keys = [
        ModelKey(symbol, bench.candles.interval, regime)
        for regime in reversed(MODEL_REGIMES)
        for symbol in symbols
    ]
    per_minute = []
    for count in (1, 2):
        bench.say(f"training: {count} worker{'s' * (count > 1)}, one thread each")
        with _workers(bench, count, config):
            bench.next_cut()
            _run_jobs(keys[2:6])  # each worker's first job imports the libraries
            per_minute.append(statistics.median(_keys_a_minute(bench, keys) for _ in range(WORKER_RUNS)))
    one, two = per_minute
    return Measurement(
        "keys a minute, two workers over one",
        two / one,
        "x",
        TWO_WORKERS_LIMIT,
        WORKER_RUNS,
        f"{one:.1f} and {two:.1f} a minute, {len(keys)} keys, one thread each",
        at_least=True,
    )


def _keys_a_minute(bench: Bench, keys: Sequence[ModelKey]) -> float:
    bench.next_cut()
    done = _run_jobs(keys)
    assert not any(job.outcome["fit_reused"] for job in done)
    seconds = (max(job.finished for job in done) - min(job.started for job in done)).total_seconds()
    return 60 * len(done) / seconds


def _store_copy(bench: Bench) -> str:
    """The same candles under another symbol: ten keys of one data cut, where one symbol has five."""
    symbol = "COPY" + bench.symbol
    with app.resources.transaction() as session:
        stored.write(
            session,
            symbol=symbol,
            interval=bench.candles.interval,
            candles=bench.candles,
            source=f"{bench.symbol}, copied",
            now=datetime.now(UTC),
        )
    return symbol


def _row(name: str, timed: Sequence[Timed], limit: float, bare: float | None) -> Measurement:
    client = statistics.median(job.client_seconds for job in timed)
    seconds = {stage: statistics.median(job.stages[stage] for job in timed) for stage in timed[0].stages}
    longest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:STAGES_SHOWN]
    stages = ", ".join(f"{stage} {seconds[stage]:.2f}" for stage in longest)
    return Measurement(
        name,
        statistics.median(job.task_seconds for job in timed),
        "s",
        limit,
        len(timed),
        f"to the client {client:.2f} s; {stages}",
        bare,
        "" if bare is None else "bare xgboost",
    )


def _bare_seconds(key: ModelKey, rows: SignalRows, config: TrainingConfig) -> float:
    """One call of XGBClassifier.fit: the mission's 400 trees on the rows that the job's trees grow on."""
    import xgboost

    pooled = pool_rows(key, [rows], config.pool)
    embargo = config.split.embargo_bars * interval_duration(key.interval)
    fit = pooled.take(split(pooled, split_times(pooled, config.split), embargo=embargo).fit)
    model = xgboost.XGBClassifier(
        n_estimators=config.fit.n_estimators,
        max_depth=config.fit.max_depth,
        learning_rate=config.fit.learning_rate,
        subsample=config.fit.subsample,
        colsample_bytree=config.fit.colsample_bytree,
        reg_lambda=config.fit.reg_lambda,
        tree_method="hist",
        n_jobs=config.fit.threads,
        random_state=config.fit.seed,
    )
    started = time.perf_counter()
    model.fit(fit.features, fit.label)
    return time.perf_counter() - started


def _run_jobs(keys: Sequence[ModelKey]) -> list[Timed]:
    """Send one job a key, wait for all."""
    return [_wait(*job) for job in [_send(key) for key in keys]]


def _send(key: ModelKey) -> tuple[AsyncResult, float]:
    started = time.perf_counter()
    return app.send_task("tasks.train", args=[key.symbol, key.regime, key.interval, "benchmark"]), started


def _wait(result: AsyncResult, sent: float) -> Timed:
    outcome = result.get(timeout=JOB_SECONDS)
    client_seconds = time.perf_counter() - sent
    if outcome["state"] != "succeeded":
        raise RuntimeError(f"the benchmark's job ended as {outcome}")
    with app.resources.transaction() as session:
        job = jobs.get(session, result.id)
        assert job is not None
        assert job.started_at is not None
        assert job.finished_at is not None
        task_seconds = (job.finished_at - job.started_at).total_seconds()
        stages = {stage["stage"]: stage["seconds"] or 0.0 for stage in job.stages}
        return Timed(task_seconds, client_seconds, job.started_at, job.finished_at, outcome, stages)


@contextmanager
def _workers(bench: Bench, count: int, config: TrainingConfig) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Training workers with ``config``, by the command that every other start uses; ready when yielded."""
    options = config.model_dump(mode="json", exclude_defaults=True)
    environment = {**os.environ, "ALPHAPLUS_TRAINING": json.dumps(options)}
    names = [f"bench-{index}-of-{count}-{datetime.now(UTC):%H%M%S}" for index in range(count)]
    started = []
    try:
        for name in names:
            with (bench.folder / f"{name}.log").open("wb") as log:
                argv = worker_argv(TRAINING, concurrency=1, name=name)
                started.append(
                    subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
        _await_ready(set(names), started, bench.folder)
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(READY_SECONDS)


def _await_ready(names: set[str], started: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and all(process.poll() is None for process in started):
        answers = app.control.ping(timeout=0.5)
        if names <= {node.partition("@")[0] for answer in answers for node in answer}:
            return
    logs = "\n".join((folder / f"{name}.log").read_text() for name in sorted(names))
    raise RuntimeError(f"a worker ended, or was not ready within {READY_SECONDS} s:\n{logs}")


def _peak_mib(worker: subprocess.Popen[bytes]) -> float:
    """The largest resident set that a child of ``worker`` ever had (VmHWM)."""
    if sys.platform != "linux":
        raise RuntimeError("peak memory is read from /proc")
    peaks = []
    for child in psutil.Process(worker.pid).children():
        status = Path(f"/proc/{child.pid}/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        peaks.append(int(kib) / 1024)
    return max(peaks)
