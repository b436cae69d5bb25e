"""Do live outcomes make the next model better? A walk forward: serve a span, learn from it, serve the next.

    python -m benchmarks.live_learning BTCUSDT=BTCUSDT-1h.csv.gz ETHUSDT=ETHUSDT-1h.csv.gz

Every 90 days a model is trained on what is known, as a training job does it, and serves the next 90. At the
last ten cuts it is trained again with the error of all that was served weighing (`live.error_weight`); beside
each stands the same weight made of one constant confidence, which knows nothing of what was served. Lines
are differences in the 90 days after each cut, with the 5th and 95th percentile of a block bootstrap.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.pools import read_rows
from ml.candles import to_datetime
from ml.config import FitConfig, LiveConfig, TrainingConfig
from ml.errors import TrainingRefused
from ml.evaluation import BLOCK_HORIZONS, block_multiplicities
from ml.keys import ALL_REGIMES, MODEL_REGIMES, REGIMES, ModelKey
from ml.live_weights import ServedConfidence, Signal
from ml.rows import SignalRows
from ml.training import Challenger, fit_booster, fit_key

INTERVAL = "1h"
SPAN = np.timedelta64(90, "D")
SERVED_SPANS, JUDGED_SPANS = 21, 10
SAMPLES = 200
WEIGHTS = (0.25, 0.5, 1.0)
METRICS = ("AUC", "Brier skill", "precision", "net return")
CONFIDENCE, THRESHOLD, BASE_RATE = range(3)
"""Columns of answers, (n, 3): NaN where the key had no model."""
Floats = NDArray[np.float64]
Arm = tuple[str, float]
"""What weighed, and how much."""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="SYMBOL=FILE")
    parser.add_argument("--seed", type=int, default=FitConfig().seed)
    arguments = parser.parse_args()
    files = [entry.partition("=") for entry in arguments.files]
    rows = SignalRows.concatenate([read_rows(symbol, file, INTERVAL) for symbol, _, file in files])
    config = TrainingConfig(bootstrap_samples=100, fit=FitConfig(seed=arguments.seed, threads=1))
    judged, answered = walk(rows, config)
    arms = {arm: resampled(judged, given) for arm, given in answered.items()}
    rates = {arm: f"{given[:, CONFIDENCE].mean():.4f}" for arm, given in answered.items()}
    print(f"hit rate {judged.label.mean():.4f}, mean confidence {rates}")
    print(f"| compared | rows | {' | '.join(METRICS)} |\n|---|---|{'---|' * len(METRICS)}")
    for weight in WEIGHTS:
        served, constant = arms["served", weight], arms["constant", weight]
        print(line(f"{weight} over off", len(judged), arms["off", 0.0], served))
        print(line(f"a constant at {weight} over off", len(judged), arms["off", 0.0], constant))
        print(line(f"{weight} over the constant", len(judged), constant, served))


def walk(rows: SignalRows, config: TrainingConfig) -> tuple[SignalRows, Mapping[Arm, Floats]]:
    """The rows that were judged, and each arm's answers to them."""
    last = rows.close_time[-1] - SERVED_SPANS * SPAN
    served: dict[Signal, float] = {}
    spans: list[NDArray[np.intp]] = []
    found: dict[Arm, list[Floats]] = {}
    for number in range(SERVED_SPANS):
        cut = last + number * SPAN
        at = np.flatnonzero((rows.close_time >= cut) & (rows.close_time < cut + SPAN))
        past, coming = known_at(rows, cut), rows.take(at)
        now = answers(past, coming, config, cut, None)
        if number >= SERVED_SPANS - JUDGED_SPANS:
            spans.append(at)
            for arm, learned in (("off", 0.0), now), *retrained(past, coming, config, cut, served):
                found.setdefault(arm, []).append(learned)
        confidence = now[:, CONFIDENCE]
        given = ~np.isnan(confidence)
        served |= dict(zip(signals(coming.take(given)), confidence[given].tolist(), strict=True))
    judged = rows.take(np.concatenate(spans))
    arms = {arm: np.concatenate(parts) for arm, parts in found.items()}
    keep = judged.labelled & ~np.isnan(arms["off", 0.0][:, CONFIDENCE])
    return judged.take(keep), {arm: given[keep] for arm, given in arms.items()}


def retrained(
    past: SignalRows,
    coming: SignalRows,
    config: TrainingConfig,
    cut: np.datetime64,
    served: Mapping[Signal, float],
) -> Iterator[tuple[Arm, Floats]]:
    """The same training with what was served weighing, and with a constant in its place."""
    constant = dict.fromkeys(served, float(np.mean(list(served.values()))))
    for name, of in ("served", served), ("constant", constant):
        for weight in WEIGHTS:
            live = config.model_copy(update={"live": LiveConfig(error_weight=weight)})
            yield (name, weight), answers(past, coming, live, cut, ServedConfidence(of))


def known_at(rows: SignalRows, cut: np.datetime64) -> SignalRows:
    """The signals before ``cut``, with the outcomes known by then."""
    past = rows.take(rows.close_time < cut)
    return replace(past, label=np.where(past.label_end <= cut, past.label, np.nan))


def answers(
    past: SignalRows,
    coming: SignalRows,
    config: TrainingConfig,
    cut: np.datetime64,
    served: ServedConfidence | None,
) -> Floats:
    """Train every key on ``past`` and answer ``coming``; a regime without a model by its symbol's ``all``."""
    fitted = fit_booster(past, config, interval=INTERVAL, served=served)
    given = np.full((len(coming), 3), np.nan)
    for code, symbol in enumerate(coming.symbols):
        models: dict[str, Challenger] = {}
        for regime in MODEL_REGIMES:
            try:
                key = ModelKey(symbol, INTERVAL, regime)
                models[regime] = fit_key(key, past, fitted, config, as_of=to_datetime(cut))
            except TrainingRefused:
                continue
        for index, regime in enumerate(REGIMES):
            used = models.get(regime, models.get(ALL_REGIMES))
            where = (coming.symbol_code == code) & (coming.regime == index)
            if used is not None and where.any():
                given[where, CONFIDENCE] = used.predictor.confidence(coming.features[where])
                given[where, THRESHOLD] = used.model.threshold.value
                given[where, BASE_RATE] = used.model.base_rate
    return given


def line(name: str, rows: int, before: Floats, after: Floats) -> str:
    """One row of the table: each metric's difference and its interval."""
    difference = after - before
    low, high = np.quantile(difference[1:], (0.05, 0.95), axis=0)
    cells = [f"{v:+.4f} [{lo:+.4f}, {hi:+.4f}]" for v, lo, hi in zip(difference[0], low, high, strict=True)]
    return f"| {name} | {rows:,} | {' | '.join(cells)} |"


def resampled(rows: SignalRows, given: Floats) -> Floats:
    """(1 + SAMPLES, 4) ``METRICS`` of all rows, then of each resample, the same ones for every arm."""
    block = BLOCK_HORIZONS * TrainingConfig().labels.horizon_bars * timedelta(hours=1)
    draws = block_multiplicities(rows.close_time, block=block, samples=SAMPLES, seed=1)
    weights = itertools.chain([np.ones(len(rows))], itertools.chain.from_iterable(draws))
    return np.array([metrics(rows, given, weight) for weight in weights])


def metrics(rows: SignalRows, given: Floats, weight: Floats) -> Floats:
    """(4,) ``METRICS`` of rows that count ``weight`` times each."""
    confidence = given[:, CONFIDENCE]
    positive = weight * (confidence >= given[:, THRESHOLD])
    brier = np.sum(weight * (confidence - rows.label) ** 2)
    known = np.sum(weight * (given[:, BASE_RATE] - rows.label) ** 2)
    return np.array(
        [
            roc_auc_score(rows.label, confidence, sample_weight=weight),
            1 - brier / known,
            np.sum(positive * rows.label) / positive.sum(),
            np.sum(positive * (rows.gross_return_atr - rows.cost_atr)) / positive.sum(),
        ]
    )


def signals(rows: SignalRows) -> list[Signal]:
    """Each row's signal, as served confidences are kept."""
    micros = rows.close_time.astype("datetime64[us]").astype(np.int64).tolist()
    codes, directions = rows.symbol_code.tolist(), rows.direction.tolist()
    return [
        (rows.symbols[code], time, side) for code, time, side in zip(codes, micros, directions, strict=True)
    ]


if __name__ == "__main__":
    main()
