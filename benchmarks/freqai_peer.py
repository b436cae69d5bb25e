"""Our fit, and our answer to one candle, beside FreqAI's: the same XGBoost release, in the same run.

FreqAI (freqtrade, GPL-3.0) is no dependency: it lives in a venv of its own, and its own class does its fit::

    python -m venv .venv-freqai && .venv-freqai/bin/pip install -r benchmarks/freqai-requirements.txt
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measurement import Measurement
from benchmarks.peer_process import Arrays, Turn, peer_process
from ml.candles import OHLCV, Candles
from ml.config import FitConfig, TrainingConfig
from ml.features import FEATURE_NAMES, WINDOW, market_features
from ml.rows import SignalRows
from ml.splits import SplitTimes
from ml.training import fit_booster

__all__ = ["LIVE_TREES", "NAME", "PYTHON", "live", "measure"]

PYTHON = Path(__file__).parents[1] / ".venv-freqai" / "bin" / "python"
NAME = "FreqAI 2026.9"
FEATURES = 40
TRAIN_SHARE = 0.80039
"""46,736 of the 58,392 hourly candles that have a label, the figure that the peer was first timed with."""
HORIZON_BARS = 12
RUNS = 5
LIVE_TREES = 400
LIVE_TRAINED = 4_000
"""Candles: enough for trees as deep as ours; how many there were does not change how long an answer takes."""
LIVE_WARM_UP = 5


def measure(candles: Candles, *, runs: int = RUNS) -> list[Measurement]:
    """Nanoseconds per row and tree of one fit of 40 features, FreqAI's beside ours.

    Without ``.venv-freqai`` the row has our figure alone, and says how to get the other.
    """
    rows = _labelled(candles)
    train = round(TRAIN_SHARE * len(rows))
    # All trees are grown: early stopping that never stops still looks at the validation rows each round,
    # as FreqAI's fit does.
    config = TrainingConfig(fit=FitConfig(early_stopping_rounds=400))
    times = SplitTimes(rows.close_time[train], *(rows.close_time[-1:] + np.timedelta64(1, "D")).repeat(2))
    ours, theirs = [], []
    with _freqai(rows, train, config.fit) as fit_freqai:
        for run in range(1 + runs):  # in turns, so that a busy moment does not fall on one side alone
            started = time.perf_counter()
            fit_booster(rows, config, interval=candles.interval, times=times)
            ours.append(time.perf_counter() - started)
            if fit_freqai is not None:
                theirs.append(fit_freqai())
            if run == 0:
                ours.clear()
                theirs.clear()
    to_ns = 1e9 / (train * config.fit.n_estimators)
    seconds = statistics.median(ours)
    name = f"fit of {train:,} rows x {FEATURES} features, per row and tree"
    if not theirs:
        note = f"{seconds:.2f} s; for the peer see benchmarks/freqai_peer.py"
        return [Measurement(name, seconds * to_ns, "ns", None, runs, note)]
    peer = statistics.median(theirs)
    note = f"{seconds:.2f} s against {peer:.2f} s"
    return [Measurement(name, seconds * to_ns, "ns", peer * to_ns, runs, note, peer * to_ns, NAME)]


def _labelled(candles: Candles) -> SignalRows:
    """One row a candle: its first 40 features, and whether the close is higher 12 candles later."""
    features = market_features(candles)[:-HORIZON_BARS, :FEATURES].astype(np.float32)
    label = (candles.close[HORIZON_BARS:] > candles.close[:-HORIZON_BARS]).astype(np.float64)
    count = len(label)

    def full(value: float, dtype: type = np.float64) -> NDArray[Any]:
        return np.full(count, value, dtype)

    return SignalRows(
        symbols=("BTCUSDT",),
        feature_names=FEATURE_NAMES[:FEATURES],
        symbol_code=full(0, np.int16),
        close_time=candles.close_time[:-HORIZON_BARS],
        direction=full(1, np.int8),
        regime=full(0, np.int8),
        patterns=full(1, np.uint64),
        pattern_confidence=full(0.5),
        features=features,
        entry_price=candles.close[:-HORIZON_BARS],
        atr=full(1.0),
        label=label,
        # The label is known at once here: nothing is purged, so that both sides grow on the same rows.
        label_end=candles.close_time[:-HORIZON_BARS],
        gross_return_atr=full(0.0),
        cost_atr=full(0.0),
        uniqueness=full(1.0),
    )


@contextmanager
def _freqai(rows: SignalRows, train: int, fit: FitConfig) -> Iterator[Turn | None]:
    """A function that makes FreqAI fit the same rows once and returns its seconds; None without its venv."""
    matrix: Arrays = {
        "train": rows.features[:train],
        "validation": rows.features[train:],
        "train_labels": rows.label[:train],
        "validation_labels": rows.label[train:],
    }
    with peer_process(PYTHON, "freqai_fit.py", matrix, _parameters(fit)) as ask:
        yield ask


@contextmanager
def live(candles: Candles) -> Iterator[Turn | None]:
    """A function that makes FreqAI answer for the newest candle, and returns its seconds; None without it.

    Its features are those of its own example, ``LIVE_TREES`` trees are all grown, and it is given the candles
    that we are given.

    Args:
        candles: hourly; the newest ``WINDOW`` are the live window, some before them are trained on.
    """
    newest = candles.slice(-LIVE_TRAINED - WINDOW)
    columns: Arrays = {"date": newest.open_time} | {name: getattr(newest, name) for name in OHLCV}
    options = {"model": _parameters(FitConfig(n_estimators=LIVE_TREES)), "window": WINDOW}
    with peer_process(PYTHON, "freqai_live.py", columns, options) as ask:
        if ask is not None:
            for _ in range(LIVE_WARM_UP):
                ask()
        yield ask


def _parameters(fit: FitConfig) -> dict[str, Any]:
    """XGBoost's, by the names that FreqAI hands on."""
    return {
        "n_estimators": fit.n_estimators,
        "max_depth": fit.max_depth,
        "learning_rate": fit.learning_rate,
        "subsample": fit.subsample,
        "colsample_bytree": fit.colsample_bytree,
        "reg_lambda": fit.reg_lambda,
        "min_child_weight": fit.min_child_weight,
        "max_bin": fit.max_bin,
        "random_state": fit.seed,
        "n_jobs": fit.threads,
    }
