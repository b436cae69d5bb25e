"""The stages of a training job: load, clean, regimes, labels, fit, evaluate, save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from sqlalchemy.orm import Session

from db import candles, registry
from ml.artifact import Predictor
from ml.candles import Candles
from ml.comparison import compare
from ml.dataset import check_candles, label_signals, read_market
from ml.ensemble import choose
from ml.errors import ArtifactCorrupt, KeyRejected, RetryLater, TrainingRefused
from ml.live_weights import ServedConfidence
from ml.noise import clean
from ml.probes import answers, no_look_ahead
from ml.promotion import GateResult, Trial, decide, next_trial
from ml.rows import SignalRows
from ml.training import Challenger, FittedBooster, fit_key, pool_rows
from tasks.promotion import Judged, save_challenger
from tasks.run import Run
from tasks.served import served_confidence
from tasks.shared_fit import Slot, find_fits, fit_slots, make_fits, pool_symbols
from tasks.stored_model import load

__all__ = ["train_key"]

log = structlog.get_logger(__name__)


def train_key(run: Run) -> dict[str, Any]:
    """Train, judge and save a challenger of ``run.key``; one transaction writes its fate.

    Returns:
        The job's outcome, as on its row.

    Raises:
        KeyRejected: no candles are stored for the symbol and interval.
        TrainingRefused: the data cannot carry a model.
        LeaseLost: another worker took the job.
    """
    known = _known_candles(run)
    served = _served(run, known)
    slots = fit_slots(run.key, run.config, known, served)
    found = find_fits(run, slots)
    reused = len(found) == len(slots)
    tables, raw, left_out = _signal_rows(run, known, (run.key.symbol,) if reused else slots[0].symbols)
    rows = tables[run.key.symbol]
    fitted, ensemble = _chosen(run, rows, _fits(run, slots, tables, served, found))
    judged = _judge(run, rows, raw, fitted, reused=reused, left_out=left_out)
    with run.lease.stage("save"):
        return _save(run, judged, {"live_outcomes": fitted.rows.get("served", 0)} | ensemble)


def _known_candles(run: Run) -> Mapping[str, str]:
    """Fingerprint of each symbol's candles at the job's data cut; the key's own symbol is among them."""
    with run.resources.transaction() as session:
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


def _served(run: Run, known: Mapping[str, str]) -> ServedConfidence | None:
    """What champions answered live of the pool's signals; None where the options ask for nothing of it."""
    if not run.config.live.weighs:
        return None
    symbols = pool_symbols(run.key, run.config, known)
    with run.resources.transaction() as session:
        return served_confidence(session, symbols, run.key.interval, cut=run.job.as_of)


def _signal_rows(
    run: Run, known: Mapping[str, str], symbols: tuple[str, ...]
) -> tuple[dict[str, SignalRows], Candles, dict[str, str]]:
    """Candles as known at the cut -> labelled signals, a table a symbol; the key's own candles before the
    noise filter; and who was left out, why."""
    with run.lease.stage("load") as counts, run.resources.transaction() as session:
        raw = {
            symbol: candles.read(session, symbol, run.key.interval, known_at=run.job.as_of)
            for symbol in symbols
        }
        if candles.fingerprint(session, run.key.interval, known_at=run.job.as_of) != known:
            # A fit is kept under the address of what it learned from: of no other candles.
            raise RetryLater(f"{run.key}: older candles came in while they were read; reading again")
        counts["rows"] = sum(map(len, raw.values()))
    with run.lease.stage("clean") as counts:
        cleaned, left_out = _clean(run, raw)
        counts["rows"] = sum(map(len, cleaned.values()))
    with run.lease.stage("regimes") as counts:
        markets = {symbol: read_market(series) for symbol, series in cleaned.items()}
        counts["rows"] = sum(map(len, cleaned.values()))
    with run.lease.stage("labels") as counts:
        tables = {
            symbol: label_signals(market, symbol=symbol, config=run.config.labels, traded=raw[symbol])
            for symbol, market in markets.items()
        }
        counts["rows"] = sum(map(len, tables.values()))
    return tables, raw[run.key.symbol], left_out


def _clean(run: Run, raw: Mapping[str, Candles]) -> tuple[dict[str, Candles], dict[str, str]]:
    """Without noise. A symbol of the pool whose candles carry no model is left out of the fit; the same
    candles always leave out the same symbols, so the fit's address need not say so.

    Raises:
        TrainingRefused: the key's own symbol is such a one.
    """
    kept, left_out = {}, {}
    for symbol, series in raw.items():
        cleaned = clean(series).candles
        try:
            check_candles(cleaned, run.config.split, symbol=symbol, dropped=len(series) - len(cleaned))
        except TrainingRefused as error:
            if symbol == run.key.symbol:
                raise
            log.warning("symbol_left_out_of_pool", symbol=symbol, reason=error.reason, detail=error.detail)
            left_out[symbol] = str(error)
            continue
        kept[symbol] = cleaned
    return kept, left_out


def _fits(
    run: Run,
    slots: tuple[Slot, ...],
    tables: Mapping[str, SignalRows],
    served: ServedConfidence | None,
    found: tuple[FittedBooster, ...],
) -> tuple[FittedBooster, ...]:
    """The shared fits: those found, and what is missing, made now and kept for the next job."""
    with run.lease.stage("fit") as counts:
        if len(found) == len(slots):
            return found
        pooled = pool_rows(run.key, list(tables.values()), run.config.pool)
        counts["rows"] = len(pooled)
        return make_fits(run, slots, found, pooled, served)


def _chosen(
    run: Run, rows: SignalRows, fits: tuple[FittedBooster, ...]
) -> tuple[FittedBooster, dict[str, Any]]:
    """The fit that serves the key best, and the outcome's part that says why where there was a choice."""
    if len(fits) == 1:
        return fits[0], {}
    single, ensemble = fits
    fitted, verdict = choose(run.key, rows, single, ensemble, run.config)
    log.info("ensemble_judged", **verdict.to_json())
    return fitted, {"ensemble": verdict.to_json()}


def _judge(
    run: Run,
    rows: SignalRows,
    raw: Candles,
    fitted: FittedBooster,
    *,
    reused: bool,
    left_out: dict[str, str],
) -> Judged:
    """Calibrate and evaluate on the key's own rows, beside the champion on rows that neither has seen."""
    with run.lease.stage("evaluate") as counts:
        challenger = fit_key(run.key, rows, fitted, run.config, as_of=run.job.as_of)
        with run.resources.transaction() as session:
            champion = registry.champion(session, run.key)
            incumbent = None if champion is None else _incumbent(session, champion, challenger)
            trial = None if champion is None or incumbent is None else _trial(session, run, champion)
            stored = [
                series
                for series in candles.series(session)
                if series.interval == run.key.interval and series.symbol in fitted.symbols
            ]
        comparison = compare(challenger, incumbent, run.config)
        decision = decide(
            challenger.evaluation,
            comparison,
            challenger.drift.test_score,
            run.config.gates,
            trial=trial,
            probes=_probes(challenger, fitted, raw, seed=run.config.fit.seed),
        )
        counts["rows"] = challenger.evaluation.rows
    return Judged(
        challenger=challenger,
        champion=champion,
        champion_evaluation=comparison.champion,
        decision=decision,
        sources={series.symbol: series.source for series in stored},
        fit_reused=reused,
        left_out=left_out,
    )


def _trial(session: Session, run: Run, champion: registry.ModelRow) -> Trial:
    """What this training may spend: every model of the key counts, whatever became of it."""
    cuts = registry.trials(session, run.key, since=None)
    return next_trial(cuts, champion_cut=champion.data_cut, cut=run.job.as_of, gates=run.config.gates)


def _probes(
    challenger: Challenger, fitted: FittedBooster, raw: Candles, *, seed: int
) -> tuple[GateResult, ...]:
    """What cannot be told from a metric."""
    return (
        answers(challenger.predictor, fitted.ubjson, challenger.test, seed=seed),
        no_look_ahead(challenger.test, raw, seed=seed),
    )


def _incumbent(session: Session, champion: registry.ModelRow, challenger: Challenger) -> Predictor | None:
    """The champion, if it can answer at all. None where its bytes are damaged or its features are not
    today's: it answers no signal any more, so there is nothing to beat and the absolute gates decide.
    """
    try:
        incumbent = load(session, champion)
    except ArtifactCorrupt as error:
        log.exception("champion_unreadable", version=champion.version, error=str(error))
        return None
    same = incumbent.model.feature_names == challenger.model.feature_names
    return incumbent if same else None


def _save(run: Run, judged: Judged, fit_outcome: dict[str, Any]) -> dict[str, Any]:
    with run.resources.transaction() as session:
        run.lease.require(session)
        outcome = save_challenger(session, run, judged) | fit_outcome
        run.lease.finish(session, outcome=outcome, model_id=outcome["model_id"])
    return {"state": "succeeded", **outcome}
