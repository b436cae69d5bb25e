"""Does the ensemble pay where its gate says so? A walk forward over the candles of a folder.

    python -m benchmarks.ensemble_study --candles DIR --members 3

DIR holds SYMBOL-1h.csv.gz files with the columns open_time (UTC), open, high, low, close, volume; without
it the wheel's hourly BTC and ETH are used. At each cut the single fit and the ensemble are made from what
is known, each key's gate chooses on its calibrate rows, and both are judged on the rows up to the next cut,
which neither fit, calibration nor gate has seen. Differences are gains over the single fit, over 0 where it
was beaten, with the 5th and 95th percentile of a paired block bootstrap. Regret is what a rule lost to
whoever knew, for every key and cut, which of the two would do better.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.pools import read_rows
from feeds import samples
from ml.artifact import booster_margin, load_booster
from ml.calibration import fit_calibration
from ml.candles import resample
from ml.config import EnsembleConfig, FitConfig, SplitConfig, TrainingConfig
from ml.dataset import build_rows
from ml.ensemble import EnsembleVerdict, choose, fit_ensemble
from ml.errors import TrainingRefused
from ml.evaluation import block_multiplicities
from ml.keys import ALL_REGIMES, MODEL_REGIMES, ModelKey, interval_duration
from ml.noise import clean
from ml.rows import SignalRows
from ml.splits import SplitTimes, split
from ml.training import FittedBooster, bootstrap_block, fit_booster, own_rows

INTERVAL = "1h"
SAMPLES = 200
JUDGED_SHARE = 0.5
"""Of all rows, the newest: cut into as many spans as there are cuts."""
SINGLE, ENSEMBLE, GATE = range(3)
"""Columns of answers, (n, 3)."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One key after one cut."""

    key: ModelKey
    verdict: EnsembleVerdict
    close_time: NDArray[np.datetime64]
    label: Floats
    """(n,) of the later rows."""
    confidence: Floats
    """(n, 3) of the single fit, the ensemble, and the one that the gate chose."""


def main() -> None:
    """Print a Markdown table and the regrets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candles", type=Path, metavar="DIR")
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--span-ratio", type=float, default=EnsembleConfig().span_ratio)
    parser.add_argument("--seed", type=int, default=FitConfig().seed)
    arguments = parser.parse_args()
    config = TrainingConfig(
        fit=FitConfig(seed=arguments.seed, threads=1),
        split=SplitConfig(min_test_rows=30),  # of a span between two cuts
        ensemble=EnsembleConfig(members=arguments.members, span_ratio=arguments.span_ratio),
    )
    rows = wheel_rows() if arguments.candles is None else folder_rows(arguments.candles)
    judged = list(walk(rows, config, arguments.cuts))
    print(f"members {arguments.members}, span_ratio {arguments.span_ratio}, {arguments.cuts} cuts\n")
    print("| key | gate on | rows | AUC | AUC, ensemble | Brier, ensemble | Brier, gate's choice |")
    print("|---|---|---|---|---|---|---|")
    for key in dict.fromkeys(one.key for one in judged):
        print(line(f"{key.symbol} {key.regime}", [one for one in judged if one.key == key], config))
    groups = {
        "every regime's key": [one for one in judged if one.key.regime != ALL_REGIMES],
        "every `all` key": [one for one in judged if one.key.regime == ALL_REGIMES],
    }
    for name, group in groups.items():
        print(line(f"**{name}**", group, config))
    for name, group in groups.items():
        print_regret(name, group)


def wheel_rows() -> SignalRows:
    """Labelled signals of the sample candles."""
    labels = TrainingConfig().labels
    return SignalRows.concatenate(
        [
            build_rows(
                clean(resample(samples.load(symbol, now=datetime.now(UTC)), INTERVAL)).candles,
                symbol=symbol,
                config=labels,
            )
            for symbol in samples.SYMBOLS
        ]
    )


def folder_rows(folder: Path) -> SignalRows:
    """Labelled signals of every hourly series in the folder."""
    files = sorted(folder.glob(f"*-{INTERVAL}.csv.gz"))
    return SignalRows.concatenate(
        [read_rows(file.name.partition("-")[0], str(file), INTERVAL) for file in files]
    )


def walk(rows: SignalRows, config: TrainingConfig, cuts: int) -> Iterator[Judged]:
    """Every key after every cut; a key that is refused there is left out."""
    known = rows.close_time[rows.labelled]
    edges = [known[int((1 - JUDGED_SHARE + JUDGED_SHARE * i / cuts) * len(known))] for i in range(cuts)]
    for cut, end in zip(edges, [*edges[1:], known[-1] + np.timedelta64(1, "us")], strict=True):
        table = rows.take(rows.close_time < end)
        times = times_at(table, cut, config.split)
        single = fit_booster(table, config, interval=INTERVAL, times=times)
        ensemble = fit_ensemble(single, table, config)
        for symbol, regime in itertools.product(rows.symbols, MODEL_REGIMES):
            try:
                yield judge(ModelKey(symbol, INTERVAL, regime), table, (single, ensemble), config)
            except TrainingRefused as refused:
                print(f"{symbol} {regime} at {cut}: {refused}\n")


def times_at(rows: SignalRows, cut: np.datetime64, config: SplitConfig) -> SplitTimes:
    """The parts of a training whose test part begins at the cut, in the usual proportions."""
    known = rows.close_time[rows.labelled & (rows.label_end <= cut)]
    fit_share = 1 - config.calibrate_share / (1 - config.test_share)
    early_stop = known[int(fit_share * (1 - config.early_stop_share) * len(known))]
    return SplitTimes(early_stop, known[int(fit_share * len(known))], cut)


def judge(
    key: ModelKey,
    rows: SignalRows,
    fits: tuple[FittedBooster, FittedBooster],
    config: TrainingConfig,
) -> Judged:
    """The gate's choice, and both fits' answers to the test part. Raises TrainingRefused."""
    single, ensemble = fits
    _, verdict = choose(key, rows, single, ensemble, config)
    own = own_rows(key, rows)
    embargo = config.split.embargo_bars * interval_duration(INTERVAL)
    parts = split(own, single.times, embargo=embargo)
    learned = own.labelled & (own.label_end <= single.times.test_start)
    calibrate, test = own.take(parts.calibrate), own.take(parts.test)
    answers = []
    for fitted in fits:
        booster = load_booster(fitted.ubjson)
        calibration = fit_calibration(
            config.calibration,
            booster_margin(booster, calibrate.features),
            calibrate.label,
            calibrate.uniqueness,
            base_rate=float(own.label[learned].mean()),
        )
        answers.append(calibration.confidence(booster_margin(booster, test.features)))
    answers.append(answers[ENSEMBLE if verdict.used else SINGLE])
    return Judged(
        key=key,
        verdict=verdict,
        close_time=test.close_time,
        label=test.label,
        confidence=np.column_stack(answers),
    )


def line(name: str, group: Sequence[Judged], config: TrainingConfig) -> str:
    """One row of the table: cuts at which the gate was on, and gains on the rows after all cuts."""
    close_time = np.concatenate([one.close_time for one in group])
    order = np.argsort(close_time, kind="stable")
    label = np.concatenate([one.label for one in group])[order]
    confidence = np.concatenate([one.confidence for one in group])[order]
    draws = block_multiplicities(
        close_time[order], block=bootstrap_block(group[0].key, config), samples=SAMPLES, seed=1
    )
    weights = itertools.chain([np.ones(len(label))], itertools.chain.from_iterable(draws))
    found = np.array([gains(label, confidence, weight) for weight in weights])
    auc, *differences = found.T
    cells = [
        f"{d[0]:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        for d, digits in zip(differences, (3, 5, 5), strict=True)
        for low, high in [np.quantile(d[1:], (0.05, 0.95))]
    ]
    on = sum(one.verdict.used for one in group)
    return f"| {name} | {on} of {len(group)} | {len(label):,} | {auc[0]:.3f} | {' | '.join(cells)} |"


def gains(label: Floats, confidence: Floats, weight: Floats) -> tuple[float, float, float, float]:
    """AUC of the single fit, the ensemble's gain in it, and two gains in Brier score, of weighted rows."""
    auc = [
        float(roc_auc_score(label, confidence[:, arm], sample_weight=weight)) for arm in (SINGLE, ENSEMBLE)
    ]
    brier = weight @ (confidence - label[:, None]) ** 2 / weight.sum()
    return auc[0], auc[1] - auc[0], brier[SINGLE] - brier[ENSEMBLE], brier[SINGLE] - brier[GATE]


def print_regret(name: str, group: Sequence[Judged]) -> None:
    """Mean loss in Brier score of three rules against the better fit of each key and cut."""
    totals = np.array([((one.confidence - one.label[:, None]) ** 2).sum(axis=0) for one in group])
    rows = sum(len(one.label) for one in group)
    best = totals[:, [SINGLE, ENSEMBLE]].min(axis=1)
    regret = (totals - best[:, None]).sum(axis=0) / rows
    right = sum((total[GATE] == least) for total, least in zip(totals, best, strict=True))
    print(
        f"\n{name.capitalize()}: regret of never {regret[SINGLE]:.5f}, of always {regret[ENSEMBLE]:.5f}, "
        f"of the gate {regret[GATE]:.5f}; the gate chose the better one {right} times of {len(group)}."
    )


if __name__ == "__main__":
    main()
