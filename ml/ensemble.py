"""An average of fits on spans of different length, and whether a key is better served by it.

Member 0 is the single fit. Member i grows on the newest ``span_ratio ** i`` of the same fit rows, with the
same early-stop rows and options. What is averaged is log-odds, and a sum of trees is divided by dividing
their leaves, so the average of K boosters is one booster with the trees of all: it is stored, loaded and
answers like any other.

A short span knows the newest market and is noisy, a long one is steady and old; averaging over windows hedges
between the two (Pesaran & Timmermann, *Selection of estimation window in the presence of breaks*,
J. Econometrics 137, 2007).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.artifact import booster_margin, load_booster, sha256_hex
from ml.calibration import fit_calibration
from ml.checks import check_key_rows
from ml.config import TrainingConfig
from ml.errors import TrainingRefused
from ml.evaluation import MIN_BLOCKS, Estimate, block_multiplicities, estimate, ratio
from ml.keys import ModelKey, interval_duration
from ml.live_weights import ServedConfidence
from ml.rows import SignalRows
from ml.splits import split
from ml.training import FittedBooster, bootstrap_block, fit_booster, own_rows

__all__ = ["EnsembleVerdict", "average", "choose", "fit_ensemble"]

OnRound = Callable[[int, int], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleVerdict:
    """Whether a key uses the ensemble, and the numbers that say so."""

    used: bool
    members: int
    rows: int
    """Calibrate rows that both were compared on."""
    brier_difference: Estimate
    """Brier score of the single fit - the ensemble's: over 0 is for the ensemble. It is used where ``low``
    is over 0."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def fit_ensemble(
    single: FittedBooster,
    rows: SignalRows,
    config: TrainingConfig,
    *,
    served: ServedConfidence | None = None,
    on_round: OnRound | None = None,
) -> FittedBooster:
    """Grow the members that are not there yet, and average all into one booster.

    A member whose span is too short to learn from (``fit_booster`` refuses it) ends the list: shorter ones
    would be refused as well. Same rows, config and library versions: the same bytes.

    Args:
        single: member 0, from ``fit_booster`` on the same rows and config.
        rows: the pooled rows.
        config: ``ensemble`` says how many members and how short.
        served: as for ``fit_booster``.
        on_round: called after each tree with (trees so far, most trees) of all members but the first.

    Returns:
        A fit with one more entry in ``rows`` for each further member, ``fit_1`` and on; ``importance`` is
        the mean of the members'.
    """
    members = [single]
    extra = config.ensemble.members - 1
    for number in range(1, extra + 1):
        try:
            member = fit_booster(
                rows,
                config,
                interval=single.interval,
                times=single.times,
                served=served,
                newest_share=config.ensemble.span_ratio**number,
                on_round=_rounds(on_round, number - 1, extra),
            )
        except TrainingRefused:
            break
        members.append(member)
    ubjson = average([member.ubjson for member in members])
    importance = np.mean([member.importance for member in members], axis=0)
    return replace(
        single,
        ubjson=ubjson,
        sha256=sha256_hex(ubjson),
        importance=tuple(importance.tolist()),
        trees=sum(member.trees for member in members),
        rows=dict(single.rows) | {f"fit_{i}": m.rows["fit"] for i, m in enumerate(members) if i > 0},
    )


def _rounds(on_round: OnRound | None, done_members: int, members: int) -> OnRound | None:
    """``on_round`` of one member, told as a part of all."""
    if on_round is None:
        return None
    return lambda done, most: on_round(done_members * most + done, members * most)


def average(boosters: Sequence[bytes]) -> bytes:
    """UBJSON of one booster whose margin is the mean of the boosters' margins, to float32 rounding.

    By XGBoost's JSON schema ("Introduction to Model IO"): a leaf's value stands in ``split_conditions``, the
    base score is a probability that the objective turns into log-odds.

    Args:
        boosters: UBJSON of scalar tree boosters with logistic loss and the same features in the same order.

    Raises:
        ValueError: none was given, or their features differ.
        ArtifactCorrupt: one cannot be read.
    """
    bodies = [json.loads(bytes(load_booster(booster).save_raw("json"))) for booster in boosters]
    if not bodies or any(body["learner"]["feature_names"] != _names(bodies) for body in bodies):
        raise ValueError(f"{len(bodies)} boosters to average; expected some, all of the same features")
    trees = [tree for body in bodies for tree in _model(body)["trees"]]
    for number, tree in enumerate(trees):
        _divide(tree, len(bodies))
        tree["id"] = number
    whole = bodies[0]
    _model(whole).update(
        trees=trees,
        tree_info=[0] * len(trees),
        iteration_indptr=list(range(len(trees) + 1)),
    )
    _model(whole)["gbtree_model_param"]["num_trees"] = str(len(trees))
    score = np.mean([_base_margin(body) for body in bodies])
    whole["learner"]["learner_model_param"]["base_score"] = f"[{1 / (1 + math.exp(-score))!r}]"
    # Another best_iteration than any member's; and an average of one has not the bytes of that one, for
    # bytes are kept under one address only.
    whole["learner"]["attributes"] = {"ensemble_members": str(len(bodies))}
    return _ubjson(json.dumps(whole).encode())


def _names(bodies: Sequence[dict[str, Any]]) -> list[str]:
    names: list[str] = bodies[0]["learner"]["feature_names"]
    return names


def _model(body: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = body["learner"]["gradient_booster"]["model"]
    return model


def _divide(tree: dict[str, Any], by: int) -> None:
    """Leaves and base weights, in place; splits stay."""
    leaf = np.array(tree["left_children"]) == -1
    conditions = np.array(tree["split_conditions"], np.float32)
    tree["split_conditions"] = np.where(leaf, conditions / np.float32(by), conditions).tolist()
    tree["base_weights"] = (np.array(tree["base_weights"], np.float32) / np.float32(by)).tolist()


def _base_margin(body: dict[str, Any]) -> float:
    """Log-odds of the base score, which is written as a list of one since XGBoost 3.1."""
    [score] = np.ravel(json.loads(body["learner"]["learner_model_param"]["base_score"]))
    return math.log(score / (1 - score))


def _ubjson(body: bytes) -> bytes:
    import xgboost

    with xgboost.config_context(nthread=1):
        booster = xgboost.Booster({"nthread": 1})
        booster.load_model(bytearray(body))
    return bytes(booster.save_raw("ubj"))


def choose(
    key: ModelKey,
    rows: SignalRows,
    single: FittedBooster,
    ensemble: FittedBooster,
    config: TrainingConfig,
) -> tuple[FittedBooster, EnsembleVerdict]:
    """The fit that the key is better served by, judged on its own calibrate rows; test rows are not read.

    Both are calibrated in the same way on each half of the rows in time and compared on the other, so that
    no calibration is judged on what it was fitted to. The single fit stays unless the lower 95 % bound of a
    paired block bootstrap of the difference in Brier score is over 0: of two that are equally good the
    ensemble is taken in about one of twenty, which costs nothing but its size.

    Args:
        key: whose rows decide.
        rows: its symbol's rows, all regimes.
        single: from ``fit_booster``.
        ensemble: from ``fit_ensemble``.
        config: as for the fits.

    Raises:
        TrainingRefused: the key has too few rows to be calibrated or judged on, as in ``fit_key``.
    """
    embargo = config.split.embargo_bars * interval_duration(key.interval)
    own = own_rows(key, rows)
    parts = split(own, single.times, embargo=embargo)
    check_key_rows(key, own, parts, config)
    known = own.labelled & (own.label_end <= single.times.test_start)
    base_rate = float(own.label[known].mean())
    calibrate = own.take(parts.calibrate)
    halves = _halves(calibrate, embargo)
    compared = calibrate.take(np.concatenate(halves))
    before, after = (
        _cross_fitted_brier(fitted, calibrate, halves, config, base_rate) for fitted in (single, ensemble)
    )
    difference = _mean_difference(compared, before - after, key, config)
    members = 1 + sum(name.startswith("fit_") for name in ensemble.rows)
    verdict = EnsembleVerdict(
        # An average of one differs from that one by rounding.
        used=members > 1 and difference.low is not None and difference.low > 0,
        members=members,
        rows=len(compared),
        brier_difference=difference,
    )
    return (ensemble if verdict.used else single), verdict


def _halves(rows: SignalRows, embargo: timedelta) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the older and the newer half; rows of the older whose outcome reaches the newer are left."""
    middle = rows.close_time[len(rows) // 2]
    older = (rows.close_time < middle) & (rows.label_end <= middle - np.timedelta64(embargo))
    return np.flatnonzero(older), np.flatnonzero(rows.close_time >= middle)


def _cross_fitted_brier(
    fitted: FittedBooster,
    rows: SignalRows,
    halves: tuple[NDArray[np.intp], NDArray[np.intp]],
    config: TrainingConfig,
    base_rate: float,
) -> Floats:
    """Squared errors of the rows of both halves, older first, each calibrated on the other."""
    margin = booster_margin(load_booster(fitted.ubjson), rows.features)
    errors = []
    for judged, learned in (halves, halves[::-1]):
        if not len(learned):  # an embargo as long as the half: nothing to compare
            errors.append(np.full(len(judged), np.nan))
            continue
        calibration = fit_calibration(
            config.calibration,
            margin[learned],
            rows.label[learned],
            rows.uniqueness[learned],
            base_rate=base_rate,
        )
        errors.append((calibration.confidence(margin[judged]) - rows.label[judged]) ** 2)
    return np.concatenate(errors)


def _mean_difference(rows: SignalRows, difference: Floats, key: ModelKey, config: TrainingConfig) -> Estimate:
    """Mean of ``difference`` (n,) with its block-bootstrap bounds; none on a span of too few blocks."""
    block = bootstrap_block(key, config)
    resampled = [
        ratio(weights @ difference, weights.sum(axis=1))
        for weights in block_multiplicities(
            rows.close_time, block=block, samples=config.bootstrap_samples, seed=config.fit.seed
        )
    ]
    sure = rows.close_time[-1] - rows.close_time[0] >= np.timedelta64(MIN_BLOCKS * block, "us")
    return estimate(np.float64(difference.mean()), np.concatenate(resampled), sure=bool(sure))
