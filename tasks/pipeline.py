"""The stages of a training job: load, clean, regimes, labels, fit, evaluate, save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from db import artifacts, candles, jobs, registry
from ml.artifact import Model, Predictor
from ml.candles import Candles
from ml.config import TrainingConfig
from ml.dataset import build_rows, check_candles
from ml.errors import KeyRejected
from ml.keys import ModelKey
from ml.noise import clean
from ml.promotion import Decision, decide
from ml.rows import SignalRows
from ml.training import Challenger, FittedBooster, fit_booster, fit_key
from tasks.base import Resources
from tasks.lease import Lease
from tasks.promotion import Judged, save_challenger
from tasks.shared_fit import Slot, fit_address, save_fit, single_flight

__all__ = ["Run", "train_key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a claimed job is to do."""

    key: ModelKey
    job: jobs.TrainingJob
    config: TrainingConfig


def train_key(resources: Resources, lease: Lease, run: Run) -> dict[str, Any]:
    """Train, judge and save a challenger of ``run.key``; one transaction writes its fate.

    Returns:
        The job's outcome, as on its row.

    Raises:
        KeyRejected: no candles are stored for the symbol and interval.
        TrainingRefused: the data cannot carry a model.
        LeaseLost: another worker took the job.
    """
    known = _known_candles(resources, run)
    slot = fit_address(run.key, run.config, known)
    with single_flight(resources, lease, slot.address) as found:
        symbols = slot.symbols if found is None else (run.key.symbol,)
        tables = _signal_rows(resources, lease, run, symbols)
        fitted = _fit(resources, lease, run, slot, tables, found)
    judged = _judge(resources, lease, run, tables[run.key.symbol], fitted, reused=found is not None)
    with lease.stage("save"), resources.transaction() as session:
        lease.require(session)
        outcome = save_challenger(session, resources, run.key, run.job, judged)
        model_id = int(outcome["model_id"])
        jobs.finish(session, lease.job_id, lease.token, state="succeeded", outcome=outcome, model_id=model_id)
    return {"state": "succeeded", **outcome}


def _known_candles(resources: Resources, run: Run) -> Mapping[str, str]:
    """Fingerprint of each symbol's candles at the job's data cut; the key's own symbol is among them."""
    with resources.transaction() as session:
        known = candles.fingerprint(session, run.key.interval, known_at=run.job.as_of)
    if run.key.symbol not in known:
        stored = ", ".join(sorted(known)) or "none yet"
        raise KeyRejected(
            "symbol",
            run.key.symbol,
            f"a symbol with {run.key.interval} candles known at {run.job.as_of:%Y-%m-%d %H:%M} UTC: {stored}",
            "import some with `alphaplus candles import` or `alphaplus candles sync`",
        )
    return known


def _signal_rows(resources: Resources, lease: Lease, run: Run, symbols: tuple[str, ...]) -> dict[str, SignalRows]:
    """Candles as known at the cut -> labelled signals, one table per symbol."""
    raw: dict[str, Candles] = {}
    with lease.stage("load") as counts, resources.transaction() as session:
        for symbol in symbols:
            raw[symbol] = candles.read(session, symbol, run.key.interval, known_at=run.job.as_of)
        counts.update(candles=sum(map(len, raw.values())), symbols=len(symbols))
    for series in raw.values():
        check_candles(series, run.config.split)
    with lease.stage("clean") as counts:
        cleaned = {symbol: clean(series).candles for symbol, series in raw.items()}
        counts.update(candles=sum(map(len, cleaned.values())))
    ...
    return {}


def _fit(
    resources: Resources,
    lease: Lease,
    run: Run,
    slot: Slot,
    tables: Mapping[str, SignalRows],
    found: FittedBooster | None,
) -> FittedBooster:
    """The shared fit: the one found, or made now from the pool's rows and kept for the next job."""
    with lease.stage("fit") as counts:
        if found is not None:
            counts.update(rows=0, trees=found.trees)
            return found
        pooled = SignalRows.concatenate([tables[symbol] for symbol in slot.symbols])
        if run.config.pool == "key" and run.key.regime != ALL_REGIMES:
            pooled = pooled.take(pooled.regime == REGIMES.index(run.key.regime))
        fitted = fit_booster(pooled, run.config, on_round=lambda done, of: lease.progress(done / of))
        save_fit(resources, slot.address, fitted)
        counts.update(rows=fitted.rows, trees=fitted.trees)
        return fitted


def _judge(
    resources: Resources, lease: Lease, run: Run, rows: SignalRows, fitted: FittedBooster, *, reused: bool
) -> Judged:
    """Calibrate and evaluate on the key's own rows, beside the champion on the same ones."""
    with lease.stage("evaluate") as counts:
        challenger = fit_key(run.key, rows, fitted, run.config, as_of=run.job.as_of)
        with resources.transaction() as session:
            champion = registry.champion(session, run.key)
            ...
        counts.update(rows=challenger.evaluation.rows)
    return judged
