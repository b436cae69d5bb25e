"""What should a key learn from? One table a pool: its own rows, its symbol's, everyone's.

    python benchmarks/pools.py BTCUSDT=BTCUSDT-1h.csv.gz ETHUSDT=ETHUSDT-1h.csv.gz

Files have the columns open_time (UTC), open, high, low, close, volume. Every pool is split at the same times,
so that every model of a key is judged on the same rows, the newest quarter, which none has seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC

import pandas as pd

from ml.candles import Candles
from ml.comparison import compare
from ml.config import TrainingConfig
from ml.dataset import label_signals, read_market
from ml.errors import TrainingRefused
from ml.evaluation import Estimate
from ml.keys import MODEL_REGIMES, ModelKey
from ml.noise import clean
from ml.promotion import decide
from ml.rows import SignalRows
from ml.splits import split_times
from ml.training import Challenger, FittedBooster, fit_booster, fit_key, pool_rows

COLUMNS = (
    "| key | rows | base rate | AUC [low] | Brier skill [low] | F1 | precision | recall | net return | |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|"


def main() -> None:
    """Print a Markdown table for each pool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="SYMBOL=FILE")
    parser.add_argument("--interval", default="1h")
    arguments = parser.parse_args()
    tables = {symbol: read_rows(symbol, file, arguments.interval) for symbol, file in _pairs(arguments.files)}
    for pool in ("key", "symbol", "all"):
        print(f"\npool = {pool}\n\n{COLUMNS}\n{RULE}")
        for line in _lines(tables, TrainingConfig(pool=pool), arguments.interval):
            print(line)


def _pairs(files: list[str]) -> Iterator[tuple[str, str]]:
    for entry in files:
        symbol, _, file = entry.partition("=")
        yield symbol, file


def read_rows(symbol: str, file: str, interval: str) -> SignalRows:
    """The labelled signals of a file's candles, default labels."""
    frame = pd.read_csv(file)
    frame["open_time"] = pd.to_datetime(frame["open_time"], utc=True)
    traded = Candles.from_frame(frame, interval)
    market = read_market(clean(traded).candles)
    return label_signals(market, symbol=symbol, config=TrainingConfig().labels, traded=traded)


def _lines(tables: Mapping[str, SignalRows], config: TrainingConfig, interval: str) -> Iterator[str]:
    everyone = SignalRows.concatenate(list(tables.values()))
    times = split_times(everyone, config.split)
    as_of = pd.Timestamp(everyone.close_time[-1]).to_pydatetime().replace(tzinfo=UTC)
    fits: dict[tuple[str, ...], FittedBooster] = {}
    for key in (ModelKey(symbol, interval, regime) for symbol in tables for regime in MODEL_REGIMES):
        shared = {"key": (key.symbol, key.regime), "symbol": (key.symbol,), "all": ()}[config.pool]
        try:
            if shared not in fits:
                pooled = pool_rows(key, list(tables.values()), config.pool)
                fits[shared] = fit_booster(pooled, config, interval=interval, times=times)
            challenger = fit_key(key, tables[key.symbol], fits[shared], config, as_of=as_of)
        except TrainingRefused as refused:
            yield f"| {key.symbol} {key.regime} | {refused} |"
        else:
            yield _line(key, challenger, config)


def _line(key: ModelKey, challenger: Challenger, config: TrainingConfig) -> str:
    judged = challenger.evaluation
    decision = decide(
        judged,
        compare(challenger, None, config),
        challenger.drift.test_score,
        config.gates,
        trial=None,
        probes=(),  # of what is stored and served; nothing is here
    )
    failed = ", ".join(gate.name.removeprefix("min_") for gate in decision.gates if not gate.passed)
    cells = [
        f"{key.symbol} {key.regime}",
        f"{judged.rows:,}",
        f"{judged.base_rate:.3f}",
        _with_low(judged.auc, ".3f"),
        _with_low(judged.brier_skill, ".2%"),
        *(_shown(metric) for metric in (judged.f1, judged.precision, judged.recall)),
        f"{judged.net_return_positive_atr.value or float('nan'):+.2f}",
        "**promoted**" if decision.promote else f"rejected: {failed}",
    ]
    return "| " + " | ".join(cells) + " |"


def _with_low(estimate: Estimate, form: str) -> str:
    if estimate.value is None or estimate.low is None:
        return "unknown"
    return f"{estimate.value:{form}} [{estimate.low:{form}}]"


def _shown(estimate: Estimate) -> str:
    return "unknown" if estimate.value is None else f"{estimate.value:.3f}"


if __name__ == "__main__":
    main()
