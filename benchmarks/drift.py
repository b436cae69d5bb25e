"""Drift: the analysis of one key beside Evidently's, a check through a worker, an hour of 500 keys.

The workers' clock is the wall's, as in production: the candles are real ones, moved in time so that the last
one closed at the last full hour.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from benchmarks import drift_workers, evidently_peer
from benchmarks.champions import Ground, lay
from benchmarks.measurement import Measurement, median_seconds
from benchmarks.peer_process import Turn
from benchmarks.workers import Pool
from db import registry
from ml.alarms import SeverityLimits
from ml.candles import Candles
from ml.config import DriftConfig, LabelConfig
from ml.dataset import build_rows
from ml.drift import make_reference
from ml.drift_calibration import drift_reference
from ml.drift_check import check_features
from ml.drift_null import feature_null
from ml.keys import REGIMES, ModelKey
from ml.noise import clean
from ml.rows import SignalRows
from tasks.stored_model import load

__all__ = ["measure"]

FEATURES: Final = 40
REFERENCE_ROWS: Final = 50_000
CURRENT_ROWS: Final = 10_000
ANALYSIS_LIMIT_MS: Final = 60.0
RUNS: Final = 31
PEER_RUNS: Final = 3
OURS_A_TURN: Final = 5
CALIBRATION_RUNS: Final = 3

Say = Callable[[str], None]
Matrix = NDArray[np.float32]


def measure(
    candles: Candles, *, symbol: str, database_url: str, redis_url: str, folder: Path, say: Say
) -> list[Measurement]:
    """Every row about drift.

    Args:
        candles: real ones, of one symbol.
        symbol: theirs.
        database_url: of an empty database.
        redis_url: of the server whose database 5 nobody uses.
        folder: for the worker's log.
        say: told what begins.
    """
    say("drift: one key's analysis, beside Evidently's")
    rows = _analysis(candles)
    ground = lay(
        candles, symbol=symbol, database_url=database_url, held_back=drift_workers.CHECKED_CANDLES, say=say
    )
    say("drift: the calibration of a model")
    rows += _calibrations(ground, candles)
    rows += drift_workers.measure(ground, Pool(ground, redis_url, folder), say)
    ground.resources.engine.dispose()
    return rows


def _analysis(candles: Candles) -> list[Measurement]:
    """KS, stability index, p-values and score of every feature, from the stored reference on."""
    reference_rows, current, names, close_time = _samples(candles)
    importance = np.full(FEATURES, 1 / FEATURES)
    reference = make_reference(reference_rows, names, importance, max_sample=None)
    null = feature_null(reference_rows, close_time, importance, reference, DriftConfig(), seed=1)
    budget = DriftConfig().false_retrainings_per_month

    def analyse() -> object:
        return check_features(reference, null, current, SeverityLimits(), budget_per_month=budget)

    def scipy_alone() -> float:
        return _seconds(lambda: [ks_2samp(reference_rows[:, at], current[:, at]) for at in range(FEATURES)])

    size = f"{FEATURES} features, {REFERENCE_ROWS:,} and {CURRENT_ROWS:,} rows; KS, PSI, p-values, score"
    name = "drift analysis of one key, in process"
    median = 1000 * median_seconds(analyse, runs=RUNS)
    rows = [Measurement(name, median, "ms", ANALYSIS_LIMIT_MS, RUNS, size)]
    rows.append(_beside("scipy, KS alone", analyse, scipy_alone, "scipy.stats.ks_2samp, a call a feature"))
    methods: tuple[Literal["ks", "psi"], ...] = ("ks", "psi")
    for method in methods:
        with evidently_peer.reports(reference_rows, current, method) as report:
            what = f"Evidently, {method.upper()} alone"
            rows.append(_beside(what, analyse, report, evidently_peer.NAME))
    return rows


def _beside(what: str, analyse: Callable[[], object], peer: Turn | None, peer_name: str) -> Measurement:
    """In turns, so that a busy moment does not fall on one side alone."""
    ours, theirs = [], []
    for turn in range(1 + PEER_RUNS):
        ours += [_seconds(analyse) for _ in range(OURS_A_TURN)]
        if peer is not None:
            theirs.append(peer())
        if turn == 0:
            ours.clear()
            theirs.clear()
    median, name = 1000 * statistics.median(ours), f"the same beside {what}"
    if not theirs:
        note = "for the peer see benchmarks/evidently_peer.py"
        return Measurement(name, median, "ms", None, len(ours), note)
    longer = 1000 * statistics.median(theirs)
    return Measurement(name, median, "ms", None, PEER_RUNS, _ratio(median, longer), longer, peer_name)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _ratio(ours: float, peer: float) -> str:
    return f"the peer takes {peer / ours:,.0f} x as long"


def _samples(candles: Candles) -> tuple[Matrix, Matrix, tuple[str, ...], NDArray[np.datetime64]]:
    """Features of real signals where there are enough, the newest the current ones; else noise.

    Returns:
        Reference (n, F), current (m, F), the names (F,), and the close time (n,) of the reference's rows.
    """
    rows = build_rows(clean(candles).candles, symbol="BTCUSDT", config=LabelConfig())
    names = rows.feature_names[:FEATURES]
    # With the 59,501 signals of the stated candles the two overlap by 499 rows, which changes no timing.
    if len(rows) >= REFERENCE_ROWS + CURRENT_ROWS // 2:
        features = rows.features[:, :FEATURES]
        return features[:REFERENCE_ROWS], features[-CURRENT_ROWS:], names, rows.close_time[:REFERENCE_ROWS]
    normal = np.random.default_rng(1).standard_normal((REFERENCE_ROWS + CURRENT_ROWS, FEATURES), np.float32)
    hours = np.datetime64("2020-01-01T00:00:00.000000") + np.arange(REFERENCE_ROWS) * np.timedelta64(1, "h")
    return normal[:REFERENCE_ROWS], normal[REFERENCE_ROWS:], names, hours


def _calibrations(ground: Ground, candles: Candles) -> list[Measurement]:
    """What training adds for one model: its reference, and what its statistics come to without drift."""
    rows = build_rows(clean(candles).candles, symbol=ground.symbol, config=LabelConfig())
    return [_calibration(ground, key, rows) for key in (ground.champions[0], ground.champions[-1])]


def _calibration(ground: Ground, key: ModelKey, rows: SignalRows) -> Measurement:
    with ground.resources.transaction() as session:
        champion = registry.champion(session, key)
        assert champion is not None
        predictor = load(session, champion)
    of_key = rows.labelled & (rows.regime == REGIMES.index(key.regime) if key.regime in REGIMES else True)
    own = rows.take(of_key)
    n = len(own)
    trained, unseen, test = (own.take(np.arange(a, b)) for a, b in ((0, n), (n // 2, n), (3 * n // 4, n)))
    started = time.perf_counter()
    for _ in range(CALIBRATION_RUNS):
        drift_reference(
            trained,
            unseen,
            test,
            unseen_confidence=predictor.confidence(unseen.features),
            importance=tuple(np.full(test.features.shape[1], 1 / test.features.shape[1])),
            config=DriftConfig(),
            seed=1,
        )
    seconds = (time.perf_counter() - started) / CALIBRATION_RUNS
    note = f"{DriftConfig().null_months} months simulated; {n:,} rows"
    return Measurement(f"calibration of {key}", seconds, "s", None, CALIBRATION_RUNS, note)
