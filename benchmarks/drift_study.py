"""How often does drift of features alarm where nothing drifts, what does it find, what do later rows score?

    python -m benchmarks.drift_study                  # the wheel's hourly BTC and ETH
    python -m benchmarks.drift_study --candles DIR    # SYMBOL-1h.csv.gz files: open_time, open, high, ...
    python -m benchmarks.drift_study --plots docs     # and the figures of docs/drift.md
    python -m benchmarks.drift_study --kinds          # features, scores, calibration and accuracy together

Each key learns from the rows before its test span, as a training does. False alarms: ten years of those
rows in blocks, drawn with other seeds than the null's; retrainings triggered a month by the features alone,
with the upper 95 % bound. Shifts: windows of 200 such rows, the three most important features moved up or
down by chance. Later rows: the newest 250 at each tenth row of the test span; nobody knows how much of what
they score is drift. All kinds: fifty years, see ``benchmarks.drift_joint``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_joint import Champion, OutcomeRows, joint_rate
from benchmarks.drift_power import (
    RETRAINED,
    Learned,
    alarm_rate,
    shifted_windows,
    smallest_shift,
)
from benchmarks.ensemble_study import folder_rows, wheel_rows
from benchmarks.svg_plot import Plot
from ml.alarms import BUDGET_SCORE, DAYS_PER_MONTH, SEVERITIES, SeverityLimits, triggered
from ml.config import FitConfig, SplitConfig, TrainingConfig
from ml.errors import TrainingRefused
from ml.keys import MODEL_REGIMES, ModelKey
from ml.rows import SignalRows
from ml.training import fit_booster, own_rows

INTERVAL: Final = "1h"
BLOCKS: Final = (7.0, 14.0, 30.0)
MONTHS: Final = 120.0
JOINT_MONTHS: Final = 600.0
"""Alarms of outcomes come in clumps, some lives many and most none: ten lives are too few."""
SHIFTED_ROWS: Final = 200
RUNS: Final = 100
EVERY_ROWS: Final = 10
SEED: Final = 20_000
CURVE: Final = np.round(np.arange(0, 0.81, 0.1), 1)
BANDS: Final = dict(zip(SEVERITIES, ("#f4f7f4", "#fdf6d8", "#fbe3b5", "#f6c4a0", "#eda08f"), strict=True))
COLORS: Final = {"BTCUSDT": "#d9822b", "ETHUSDT": "#4462b5"}
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """One key."""

    key: ModelKey
    learned: Learned
    later: SignalRows


def main() -> None:
    """Print a Markdown table, and write the figures where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candles", type=Path, metavar="DIR")
    parser.add_argument("--plots", type=Path, metavar="DIR")
    parser.add_argument("--kinds", action="store_true", help="only the table of all kinds together")
    arguments = parser.parse_args()
    rows = wheel_rows() if arguments.candles is None else folder_rows(arguments.candles)
    if arguments.kinds:
        print_kinds(rows, TrainingConfig(fit=FitConfig(threads=1), bootstrap_samples=100))
        return
    blocks = " | ".join(f"false, {days:g}-day blocks" for days in BLOCKS)
    print(f"| key | rows | {blocks} | 1 sigma | smallest | later rows | a month |")
    print(f"|---|---|{'---|' * len(BLOCKS)}---|---|---|---|")
    keys = []
    for studied in study(rows, TrainingConfig(fit=FitConfig(threads=1))):
        print(line(studied), flush=True)
        keys.append(studied)
    if arguments.plots is not None:
        arguments.plots.mkdir(exist_ok=True)
        (arguments.plots / "drift-year.svg").write_text(year_plot(keys[0]), encoding="utf-8")
        (arguments.plots / "drift-power.svg").write_text(power_plot(keys), encoding="utf-8")


def print_kinds(rows: SignalRows, config: TrainingConfig) -> None:
    """The table of false retrainings by all kinds, by the rows that outcomes are drawn from."""
    cells = [(outcomes, days) for outcomes in get_args(OutcomeRows) for days in BLOCKS]
    print(f"| key | {' | '.join(f'{outcomes}, {days:g}-day blocks' for outcomes, days in cells)} |")
    print(f"|---|{'---|' * len(cells)}")
    fitted = fit_booster(rows, config, interval=INTERVAL)
    for symbol, regime in itertools.product(rows.symbols, MODEL_REGIMES):
        key = ModelKey(symbol, INTERVAL, regime)
        try:
            champion = Champion.of(key, rows, fitted, config)
        except TrainingRefused as refused:
            print(f"| {symbol} {regime} | {refused} |")
            continue
        found = []
        for number, (outcomes, days) in enumerate(cells):
            rate = joint_rate(
                champion, outcomes=outcomes, block_days=days, months=JOINT_MONTHS, seed=SEED + 10 * number
            ).all_kinds
            found.append(f"{rate.per_month:.2f} [{rate.upper:.2f}]")
        print(f"| {symbol} {regime} | {' | '.join(found)} |", flush=True)


def study(rows: SignalRows, config: TrainingConfig) -> Iterator[Studied]:
    """Every key of the rows, with the trees that all share."""
    fitted = fit_booster(rows, config, interval=INTERVAL)
    for symbol, regime in itertools.product(rows.symbols, MODEL_REGIMES):
        key = ModelKey(symbol, INTERVAL, regime)
        own = own_rows(key, rows)
        before = own.close_time < fitted.times.test_start
        if before.sum() < SplitConfig().min_fit_rows:
            continue
        learned = Learned.of(
            own.take(before), np.array(fitted.importance), config.drift, seed=config.fit.seed
        )
        yield Studied(key=key, learned=learned, later=own.take(~before))


def line(studied: Studied) -> str:
    """A row of the table."""
    learned = studied.learned
    rates = [
        alarm_rate(learned, block_days=days, months=MONTHS, seed=SEED + number)
        for number, days in enumerate(BLOCKS)
    ]
    found = found_of(learned, 1.0)
    smallest = smallest_shift(learned, window_rows=SHIFTED_ROWS, runs=RUNS, seed=SEED)
    scores, day = later_scores(studied)
    months = (day[-1] - day[0]) / DAYS_PER_MONTH
    alarms = triggered(scores > BUDGET_SCORE, day, cooldown_days=learned.config.cooldown_days)
    low, middle, high = np.quantile(scores, (0.1, 0.5, 0.9))
    cells = [
        f"{studied.key.symbol} {studied.key.regime}",
        f"{len(learned.rows):,}",
        *(f"{rate.per_month:.2f} [{rate.upper:.2f}]" for rate in rates),
        f"{found} of {RUNS}",
        "over 2" if smallest is None else f"{smallest:.2f}",
        f"{low:.2f}, {middle:.2f}, {high:.2f}",
        f"{alarms / months:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def found_of(learned: Learned, sigma: float) -> int:
    """How many of the runs with a shift of this size are high or critical."""
    windows = shifted_windows(learned, sigma, window_rows=SHIFTED_ROWS, runs=RUNS, seed=SEED)
    return sum(learned.severity(window) in RETRAINED for window in windows)


def later_scores(studied: Studied) -> tuple[Floats, Floats]:
    """Scores of the windows of the test span, and the day of each."""
    window, time = studied.learned.config.window_rows, studied.later.close_time
    ends = np.arange(window, len(studied.later) + 1, EVERY_ROWS)
    scores = [studied.learned.score(studied.later.features[end - window : end]) for end in ends]
    return np.array(scores), (time[ends - 1] - time[0]) / np.timedelta64(1, "D")


def year_plot(studied: Studied) -> str:
    """A year of a key's scores where nothing drifts, drawn as its null is but by another seed."""
    learned, limits = studied.learned, SeverityLimits()
    scores, day = learned.months_without_drift(block_days=learned.config.block_days, months=12, seed=SEED)
    plot = Plot(
        f"A year without drift: {studied.key.symbol} {studied.key.regime}, features",
        x=(0, 73, 146, 219, 292, 365),
        y=(0, 0.1, 0.2, 0.3, 0.4),
        x_label="day",
        y_label="highest drift score of the day",
    )
    edges = [0.0, limits.low, limits.medium, limits.high, limits.critical, 1.0]
    for (name, color), low, high in zip(BANDS.items(), edges[:-1], edges[1:], strict=True):
        plot.band(low, high, color, name)
    day = np.floor(day - day[0])
    first = np.flatnonzero(np.diff(day, prepend=-1.0))
    highest = np.maximum.reduceat(scores, first)
    plot.line(day[first].tolist(), highest.tolist(), "#223", width=1.2)
    return plot.svg()


def power_plot(keys: list[Studied]) -> str:
    """Share of shifted windows that are high or critical, by the size of the shift, a line a key."""
    plot = Plot(
        "Three most important features moved, 200 rows: called high or critical",
        x=(0, 0.2, 0.4, 0.6, 0.8),
        y=(0, 20, 40, 60, 80, 100),
        x_label="shift, in standard deviations of each feature",
        y_label="of 100 runs",
    )
    for studied in keys:
        found = [float(found_of(studied.learned, float(sigma))) for sigma in CURVE]
        plot.line(CURVE.tolist(), found, COLORS.get(studied.key.symbol, "#777"))
    plot.line((0, 0.8), (80, 80), "#999", width=1, dashes="4 3")
    for height, (symbol, color) in zip((100, 92), COLORS.items(), strict=True):
        plot.label(height, symbol, color)
    return plot.svg()


if __name__ == "__main__":
    main()
