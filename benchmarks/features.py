"""From candles to labelled rows, step by step, in memory."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measurement import Measurement, median_seconds
from ml.candles import Candles
from ml.config import LabelConfig
from ml.dataset import build_rows, read_market
from ml.features import FEATURES, WINDOW, market_features
from ml.labels import triple_barrier
from ml.noise import clean
from ml.patterns import PATTERN_NAMES, PATTERN_WINDOW, detect
from ml.regimes import classify
from ml.regimes import measure as measure_regimes

__all__ = ["measure"]

STATED_CANDLES = 58_000
"""The limits are stated for 58,404 candles; fewer are measured, but not held against them."""
RUNS = 9
LIVE_RUNS = 501
"""What takes a fraction of a millisecond."""


def measure(candles: Candles) -> list[Measurement]:
    """Time each step on hourly candles of one symbol; milliseconds."""
    cleaned = clean(candles).candles
    found = detect(cleaned)
    atr = measure_regimes(cleaned).atr[found.at]
    raw_window, window = candles.slice(-WINDOW), cleaned.slice(-WINDOW)
    newest = window.slice(-PATTERN_WINDOW)
    config = LabelConfig()
    signals = f"{len(found):,} signals"
    steps: list[tuple[str, Callable[[], object], float | None, str]] = [
        ("noise filter", lambda: clean(candles), None, f"{len(candles) - len(cleaned)} dropped"),
        (f"{len(FEATURES)} features", lambda: market_features(cleaned), 150, f"{len(candles):,} candles"),
        (f"{len(PATTERN_NAMES)} patterns", lambda: detect(cleaned), 80, signals),
        ("regimes alone", lambda: classify(cleaned), None, "shared with the features when both are made"),
        (
            "triple barrier",
            lambda: triple_barrier(cleaned, found.at, found.direction, atr, config),
            60,
            signals,
        ),
        (
            "rows: all of it, with confidence",
            lambda: build_rows(cleaned, symbol="BTCUSDT", config=config),
            400,
            signals,
        ),
    ]
    live: list[tuple[str, Callable[[], object], float | None, str]] = [
        ("noise filter, live window", lambda: clean(raw_window), 0.1, f"{len(window):,} candles"),
        ("features of one live window", lambda: read_market(window, 1), None, "with regime"),
        (
            "patterns of one candle",
            lambda: detect(newest),
            None,
            f"{PATTERN_WINDOW} candles, {len(PATTERN_NAMES)} patterns",
        ),
        ("features, 64 rows of a window", lambda: read_market(window, 64), None, "with regimes"),
    ]
    comparable = len(candles) >= STATED_CANDLES
    timed = [(*step, RUNS, comparable) for step in steps] + [(*step, LIVE_RUNS, True) for step in live]
    return [
        Measurement(
            name=name,
            median=1000 * median_seconds(step, runs=runs),
            unit="ms",
            limit=limit if counts else None,
            runs=runs,
            note=note,
        )
        for name, step, limit, note, runs, counts in timed
    ]
