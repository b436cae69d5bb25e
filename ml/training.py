"""From signal rows to a challenger: a fit that keys share, and what is a key's own.

``fit_booster`` grows trees on the pooled rows, once per data cut. ``fit_key`` calibrates them on one key's
own rows, chooses its threshold, judges it on rows that neither saw, and keeps the reference that drift is
measured against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ml.artifact import (
    Model,
    Predictor,
    booster_margin,
    library_versions,
    load_booster,
    sha256_hex,
    verify,
)
from ml.calibration import choose_threshold, fit_calibration, fit_return_bins
from ml.checks import check_fit_rows, check_key_rows
from ml.config import FitConfig, TrainingConfig
from ml.dataset import pattern_hit_rates
from ml.drift_calibration import DriftReference, drift_reference
from ml.evaluation import BLOCK_HORIZONS, Evaluation, evaluate
from ml.fallback import unfit_regimes
from ml.keys import ALL_REGIMES, REGIMES, ModelKey, interval_duration
from ml.labels import recency_weight
from ml.live_weights import ServedConfidence, live_weights
from ml.novelty import make_ranges
from ml.rows import SignalRows
from ml.splits import Split, SplitTimes, split, split_times

if TYPE_CHECKING:
    from xgboost import Booster

__all__ = [
    "Challenger",
    "FittedBooster",
    "bootstrap_block",
    "fit_booster",
    "fit_key",
    "judge",
    "own_rows",
    "pool_rows",
]

OnRound = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedBooster:
    """Trees, and what a later job needs to use them without the rows they grew on."""

    ubjson: bytes
    sha256: str
    interval: str
    feature_names: tuple[str, ...]
    importance: tuple[float, ...]
    """Share of the total gain of each feature; adds to 1."""
    times: SplitTimes
    trees: int
    rows: Mapping[str, int]
    """Rows by part: fit, early_stop; where live outcomes weigh, how many of fit were served as well;
    of an ensemble, fit_1 and on are the shorter members'."""
    symbols: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything but the bytes, as plain values."""
        return {
            "sha256": self.sha256,
            "interval": self.interval,
            "feature_names": list(self.feature_names),
            "importance": list(self.importance),
            "times": self.times.to_json(),
            "trees": self.trees,
            "rows": dict(self.rows),
            "symbols": list(self.symbols),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], ubjson: bytes) -> Self:
        """The inverse of ``to_json``, with the bytes checked.

        Raises:
            ArtifactCorrupt: ``ubjson`` does not match the recorded sha256.
        """
        return cls(
            ubjson=verify(ubjson, value["sha256"]),
            **dict(value)
            | {
                "feature_names": tuple(value["feature_names"]),
                "importance": tuple(value["importance"]),
                "times": SplitTimes.from_json(value["times"]),
                "symbols": tuple(value["symbols"]),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenger:
    """A trained model and how it was judged; not yet promoted."""

    model: Model
    evaluation: Evaluation
    drift: DriftReference
    """What later drift checks compare with, and the drift score of the test rows."""
    predictor: Predictor
    test: SignalRows
    """The rows it was judged on, for judging a champion beside it."""


def own_rows(key: ModelKey, rows: SignalRows) -> SignalRows:
    """The key's own rows: its symbol's, of its regime (of every regime for ``all``)."""
    if key.symbol not in rows.symbols:
        return rows.take(np.zeros(len(rows), dtype=bool))
    keep = rows.symbol_code == rows.symbols.index(key.symbol)
    if key.regime != ALL_REGIMES:
        keep &= rows.regime == REGIMES.index(key.regime)
    return rows.take(keep)


def pool_rows(key: ModelKey, tables: Sequence[SignalRows], pool: str) -> SignalRows:
    """The rows that the trees of ``key`` grow on, from the tables of every symbol of its interval.

    Args:
        key: whose fit it is.
        tables: one or more tables, the key's symbol among them.
        pool: ``key``: its own rows; ``symbol``: its symbol's; ``all``: every row.
    """
    if pool == "all":
        return SignalRows.concatenate(tables)
    wanted = key if pool == "key" else key.fallback
    return own_rows(
        wanted, SignalRows.concatenate([table for table in tables if key.symbol in table.symbols])
    )


def fit_booster(
    rows: SignalRows,
    config: TrainingConfig,
    *,
    interval: str,
    times: SplitTimes | None = None,
    served: ServedConfidence | None = None,
    newest_share: float = 1.0,
    on_round: OnRound | None = None,
) -> FittedBooster:
    """Grow trees on the fit part of ``rows``; its newest part says how many.

    Same rows, config and library versions: the same bytes.

    Args:
        rows: the pooled rows (``pool_rows``), sorted by close time, of one interval.
        config: ``split``, ``fit`` and ``live`` are read.
        interval: of the candles the rows come from.
        times: boundaries of the parts; by default quantiles of ``rows``.
        served: what champions answered live of these rows, where ``config.live`` weighs it.
        newest_share: of the fit part, in (0, 1]: trees grow on so much of it, up to its end.
        on_round: called after each tree with (trees so far, most trees); what it raises stops the fit.

    Raises:
        TrainingRefused: ``too_few_rows``, ``one_class``, ``missing_features`` or ``constant_features``.
    """
    times = times or split_times(rows, config.split)
    parts = split(rows, times, embargo=config.split.embargo_bars * interval_duration(interval))
    parts = replace(parts, fit=_newest(rows, parts.fit, newest_share))
    check_fit_rows(rows, parts, config)
    fit = rows.take(parts.fit)
    live = live_weights(fit, served, config.live)
    booster = _train(fit, live.factor, rows.take(parts.early_stop), config.fit, on_round)
    ubjson = bytes(booster.save_raw("ubj"))
    return FittedBooster(
        ubjson=ubjson,
        sha256=sha256_hex(ubjson),
        interval=interval,
        feature_names=rows.feature_names,
        importance=_importance(booster, rows.feature_names),
        times=times,
        trees=booster.num_boosted_rounds(),
        rows={"fit": len(fit), "early_stop": len(parts.early_stop)}
        | ({"served": live.outcomes} if config.live.weighs else {}),
        symbols=rows.symbols,
    )


def _newest(rows: SignalRows, fit: NDArray[np.intp], share: float) -> NDArray[np.intp]:
    """The newest ``share`` of the indices; signals of one close stay together."""
    if not len(fit):
        return fit
    times = rows.close_time[fit]
    start = np.searchsorted(times, times[len(fit) - math.ceil(share * len(fit))])
    return fit[start:]


def fit_key(
    key: ModelKey,
    rows: SignalRows,
    fitted: FittedBooster,
    config: TrainingConfig,
    *,
    as_of: datetime,
) -> Challenger:
    """Make the shared trees a key's own model, and judge it.

    Args:
        key: whose model.
        rows: its symbol's rows, all regimes.
        fitted: from ``fit_booster``, of the key's interval.
        config: as for the fit.
        as_of: the data cut, aware.

    Raises:
        TrainingRefused: ``too_few_rows`` (then the symbol's ``all`` model serves the key) or ``one_class``.
    """
    own = own_rows(key, rows)
    parts = split(own, fitted.times, embargo=config.split.embargo_bars * interval_duration(key.interval))
    check_key_rows(key, own, parts, config)
    trained = own.take(np.concatenate([parts.fit, parts.early_stop, parts.calibrate]))
    test = own.take(parts.test)
    booster = load_booster(fitted.ubjson)
    model = Model(
        key=key,
        as_of=as_of,
        pool=config.pool,
        booster_sha256=fitted.sha256,
        feature_names=fitted.feature_names,
        labels=config.labels,
        ranges=make_ranges(trained.features, fitted.importance),
        pattern_hit_rates=pattern_hit_rates(
            own_rows(key.fallback, rows),
            as_of,
            horizon=config.labels.horizon_bars * interval_duration(key.interval),
        ),
        unfit_regimes=(),
        spans=fitted.times.to_json(),
        rows={name: len(getattr(parts, name)) for name in Split.__slots__},
        config_digest=config.digest(),
        libraries=library_versions(),
        **_calibrated(booster, own, own.take(parts.calibrate), fitted.times, config),
    )
    model = replace(model, unfit_regimes=_unfit_regimes(Predictor(model, booster), test, config))
    predictor = Predictor(model, booster)
    unseen = own.take(np.concatenate([parts.calibrate, parts.test]))
    return Challenger(
        model=model,
        evaluation=judge(predictor, test, config, known_base_rate=model.base_rate),
        drift=drift_reference(
            trained,
            unseen,
            test,
            unseen_confidence=predictor.confidence(unseen.features),
            importance=fitted.importance,
            config=config.drift,
            seed=config.fit.seed,
        ),
        predictor=predictor,
        test=test,
    )


def _calibrated(
    booster: Booster, own: SignalRows, calibrate: SignalRows, times: SplitTimes, config: TrainingConfig
) -> dict[str, Any]:
    """The parts of a model that its key's calibrate rows decide."""
    known = own.labelled & (own.label_end <= times.test_start)
    base_rate = float(own.label[known].mean())
    margin = booster_margin(booster, calibrate.features)
    calibration = fit_calibration(
        config.calibration, margin, calibrate.label, calibrate.uniqueness, base_rate=base_rate
    )
    confidence = calibration.confidence(margin)
    return {
        "calibration": calibration,
        "threshold": choose_threshold(
            confidence, calibrate.label, config.gates, margin=config.threshold_margin
        ),
        "return_bins": fit_return_bins(
            confidence, calibrate.gross_return_atr - calibrate.cost_atr, calibrate.uniqueness
        ),
        "base_rate": base_rate,
    }


def _unfit_regimes(predictor: Predictor, test: SignalRows, config: TrainingConfig) -> tuple[str, ...]:
    """Of a key of ``all``, the regimes that it must not answer for; another key serves its own only."""
    key = predictor.model.key
    if key.regime != ALL_REGIMES:
        return ()
    return unfit_regimes(
        test,
        predictor.confidence(test.features),
        least_rows=config.split.min_test_rows,
        block=bootstrap_block(key, config),
        samples=config.bootstrap_samples,
        seed=config.fit.seed,
    )


def judge(
    predictor: Predictor, rows: SignalRows, config: TrainingConfig, *, known_base_rate: float
) -> Evaluation:
    """Evaluate a model on rows it never saw; a champion on its challenger's test rows, for example.

    Args:
        predictor: the model.
        rows: labelled rows of its key, sorted by close time.
        config: ``bootstrap_samples``, ``labels.horizon_bars`` and ``fit.seed`` are read.
        known_base_rate: share of hits known before these rows.
    """
    confidence = predictor.confidence(rows.features)
    return evaluate(
        rows,
        confidence=confidence,
        threshold=predictor.model.threshold.value,
        expected_net_return_atr=predictor.model.return_bins.expected(confidence),
        known_base_rate=known_base_rate,
        block=bootstrap_block(predictor.model.key, config),
        samples=config.bootstrap_samples,
        seed=config.fit.seed,
    )


def bootstrap_block(key: ModelKey, config: TrainingConfig) -> timedelta:
    """Length of a block of the bootstrap of a key's rows: ``BLOCK_HORIZONS`` label horizons."""
    return BLOCK_HORIZONS * config.labels.horizon_bars * interval_duration(key.interval)


def _train(
    fit: SignalRows,
    factor: NDArray[np.float64],
    stop: SignalRows,
    config: FitConfig,
    on_round: OnRound | None,
) -> Booster:
    # Imported here: xgboost starts OpenMP threads, which must not exist before a worker forks.
    import xgboost as xgb

    class Progress(xgb.callback.TrainingCallback):
        def after_iteration(self, _model: Booster, epoch: int, _evals_log: object) -> bool:
            if on_round is not None:
                on_round(epoch + 1, config.n_estimators)
            return False

    recency = recency_weight(fit.close_time, half_life_days=config.recency_half_life_days)
    weight = fit.uniqueness * recency * factor
    shared = {"feature_names": list(fit.feature_names), "max_bin": config.max_bin, "nthread": config.threads}
    grown_on = xgb.QuantileDMatrix(fit.features, fit.label, weight=weight / weight.mean(), **shared)
    watched = xgb.QuantileDMatrix(stop.features, stop.label, weight=stop.uniqueness, ref=grown_on, **shared)
    parameters = {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "max_depth": config.max_depth,
        "eta": config.learning_rate,
        "subsample": config.subsample,
        "colsample_bytree": config.colsample_bytree,
        "lambda": config.reg_lambda,
        "min_child_weight": config.min_child_weight,
        "max_bin": config.max_bin,
        "seed": config.seed,
        "nthread": config.threads,
    }
    return xgb.train(
        parameters,
        grown_on,
        num_boost_round=config.n_estimators,
        evals=[(watched, "early_stop")],
        verbose_eval=False,
        callbacks=[
            Progress(),
            xgb.callback.EarlyStopping(rounds=config.early_stopping_rounds, save_best=True),
        ],
    )


def _importance(booster: Booster, names: tuple[str, ...]) -> tuple[float, ...]:
    gain = booster.get_score(importance_type="total_gain")
    gains = np.array([gain.get(name, 0.0) for name in names], dtype=np.float64)
    if gains.sum() == 0:  # no tree found a split worth making
        return (1 / len(names),) * len(names)
    return tuple((gains / gains.sum()).tolist())
