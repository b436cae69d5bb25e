"""Challenger and champion on the same rows, which neither has seen: how much better, and how sure that is.

Both are judged in the same resamples of the block bootstrap (``ml.evaluation``), so what moves both, a good
month or a busy hour, falls out of their difference.

*Chances* are one-sided: how often chance alone would show such a difference, or a larger one, where there is
none. From B resamples, of which k do not show it, that is (k + 1) / (B + 1) (Davison & Hinkley, *Bootstrap
Methods and their Application*, 1997, ch. 4). Where less is asked than B resamples can tell apart, the
bootstrap's distribution is taken for normal and its tail read off instead: value / standard error against
Student's t, with as many degrees of freedom as blocks hold rows, less one, for the standard error is itself
estimated from so few.

NaN rule: a difference that cannot be computed is None, and so are its bounds and chances where over 5 % of
the resamples could not compute it or fewer than ``MIN_BLOCKS`` blocks hold rows. A gate held against None
fails.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from ml.artifact import Predictor
from ml.config import TrainingConfig
from ml.evaluation import (
    MIN_BLOCKS,
    Estimate,
    Evaluation,
    ScoreOrder,
    block_multiplicities,
    estimate,
    ratio,
)
from ml.patterns import PATTERN_NAMES
from ml.rows import SignalRows
from ml.training import Challenger, bootstrap_block, judge

__all__ = [
    "Answers",
    "Comparison",
    "Difference",
    "Gains",
    "Slice",
    "compare",
    "compare_slices",
    "occupied_blocks",
    "paired_gains",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of a metric between two models on the same rows, in the direction that is tested: over 0."""

    value: float | None
    low: float | None
    high: float | None
    """5th and 95th percentile over the resamples."""
    p_resampled: float | None
    """(k + 1) / (B + 1)."""
    p_tail: float | None
    """By Student's t; None where every resample shows the same difference."""
    least_p: float
    """1 / (B + 1): what the resamples can tell apart."""

    def p_value(self, alpha: float) -> float | None:
        """The chance to hold against ``alpha``: of the resamples where they can tell it, else of the tail."""
        return self.p_resampled if alpha >= self.least_p else self.p_tail

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model says of n rows, and from where on it calls a signal positive."""

    confidence: Floats
    threshold: float


@dataclass(frozen=True, slots=True)
class Gains:
    """How much better a challenger is than the champion; each over 0 where it is better."""

    f1: Difference
    auc: Difference
    brier: Difference
    """The champion's Brier score less the challenger's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The rows on which one pattern fired."""

    pattern: str
    rows: int
    challenger_brier: float
    baseline_brier: float
    rise: Difference
    """The challenger's Brier score less the baseline's: over 0 is worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A challenger beside what it has to beat: the champion, or without one the patterns' own confidence."""

    baseline: Literal["champion", "patterns"]
    challenger: Evaluation | None
    """On the compared rows; None where there are too few, or ``why_not`` says why there are none."""
    champion: Evaluation | None = None
    gains: Gains | None = None
    """Over the champion."""
    slices: tuple[Slice, ...] | None = ()
    """Of patterns with rows enough; None where fewer than ``MIN_BLOCKS`` blocks hold any rows."""
    why_not: str | None = None
    """Why the two cannot be compared at all, as a sentence."""


def compare(challenger: Challenger, champion: Predictor | None, config: TrainingConfig) -> Comparison:
    """Judge both on those of the challenger's test rows that the champion has not seen either.

    Those are all of them unless the boundaries moved back: older candles came in, or the shares changed.
    Under ``min_test_rows`` of them there is nothing to compare; nor where the champion's labels are others:
    it would be judged by a question that it was not asked. What is left favours the champion: it was
    chosen for doing well on an older part of these rows.

    Args:
        challenger: with the rows it was judged on.
        champion: None where the key has none: then only the slices are compared, with the patterns.
        config: of the challenger.
    """
    rows, judged = challenger.test, challenger.evaluation
    confidence = challenger.predictor.confidence(rows.features)
    if champion is None:
        slices = _slices(rows, confidence, rows.pattern_confidence, challenger, config)
        return Comparison(baseline="patterns", challenger=judged, slices=slices)
    if champion.model.labels != challenger.model.labels:
        return Comparison(
            baseline="champion", challenger=None, slices=None, why_not=_other_labels(challenger, champion)
        )
    unseen = rows.close_time >= np.datetime64(champion.model.spans["test_start"], "us")
    if unseen.sum() < config.split.min_test_rows:
        return Comparison(baseline="champion", challenger=None, slices=None)
    base_rate = challenger.model.base_rate
    if not unseen.all():
        rows, confidence = rows.take(unseen), confidence[unseen]
        judged = judge(challenger.predictor, rows, config, known_base_rate=base_rate)
    new = Answers(confidence, challenger.model.threshold.value)
    old = Answers(champion.confidence(rows.features), champion.model.threshold.value)
    return Comparison(
        baseline="champion",
        challenger=judged,
        champion=judge(champion, rows, config, known_base_rate=base_rate),
        gains=paired_gains(
            rows,
            new,
            old,
            block=bootstrap_block(challenger.model.key, config),
            samples=config.bootstrap_samples,
            seed=config.fit.seed,
        ),
        slices=_slices(rows, new.confidence, old.confidence, challenger, config),
    )


def _other_labels(challenger: Challenger, champion: Predictor) -> str:
    new, old = (model.labels.model_dump() for model in (challenger.model, champion.model))
    changed = ", ".join(
        f"{name} {value:g} instead of {old[name]:g}" for name, value in new.items() if value != old[name]
    )
    return (
        f"the champion was trained with other labels ({changed}), so nothing can be compared: "
        "restore those labels, or promote by hand"
    )


def _slices(
    rows: SignalRows, confidence: Floats, baseline: Floats, challenger: Challenger, config: TrainingConfig
) -> tuple[Slice, ...] | None:
    return compare_slices(
        rows,
        confidence,
        baseline,
        least_rows=config.gates.min_slice_rows,
        block=bootstrap_block(challenger.model.key, config),
        samples=config.bootstrap_samples,
        seed=config.fit.seed,
    )


def paired_gains(
    rows: SignalRows, new: Answers, old: Answers, *, block: timedelta, samples: int, seed: int
) -> Gains:
    """By how much ``new`` is better than ``old`` on n labelled rows, sorted by close time.

    Args:
        rows: that neither has seen.
        new: the challenger's answers.
        old: the champion's.
        block: length of a bootstrap block.
        samples: resamples, of the same blocks for both.
        seed: of the resampling; that of ``evaluate`` draws what it draws.
    """
    label = rows.label
    positive = [answers.confidence >= answers.threshold for answers in (new, old)]
    brier = (old.confidence - label) ** 2 - (new.confidence - label) ** 2
    table = np.column_stack(
        [np.ones(len(rows)), label, brier, *positive, *(label * chosen for chosen in positive)]
    )
    orders = [ScoreOrder(answers.confidence, label) for answers in (new, old)]

    def differences(weights: Floats) -> Floats:
        """(3, b): of F1, AUC and Brier score in each of b resamples."""
        total, hits, brier, new_yes, old_yes, new_hits, old_hits = (weights @ table).T
        f1 = ratio(2 * new_hits, new_yes + hits) - ratio(2 * old_hits, old_yes + hits)
        new_auc, old_auc = (order.auc(weights) for order in orders)
        return np.array([f1, new_auc - old_auc, ratio(brier, total)])

    value = differences(np.ones((1, len(rows))))[:, 0]
    drawn = block_multiplicities(rows.close_time, block=block, samples=samples, seed=seed)
    resampled = np.concatenate([differences(weights) for weights in drawn], axis=1)
    blocks = occupied_blocks(rows.close_time, block)
    return Gains(*(_difference(*both, blocks=blocks) for both in zip(value, resampled, strict=True)))


def compare_slices(
    rows: SignalRows,
    confidence: Floats,
    baseline: Floats,
    *,
    least_rows: int,
    block: timedelta,
    samples: int,
    seed: int,
) -> tuple[Slice, ...] | None:
    """Brier scores of two forecasts by pattern, in the order of ``PATTERN_NAMES``.

    Args:
        rows: n labelled rows, sorted by close time; a row of several patterns is in the slice of each.
        confidence: (n,) the challenger's.
        baseline: (n,) what it is held against.
        least_rows: of a slice that is looked at. One with rows in fewer than ``MIN_BLOCKS`` blocks is not
            looked at either: it would show nothing.
        block: length of a bootstrap block.
        samples: resamples, of the same blocks for every slice.
        seed: of the resampling.

    Returns:
        None where all the rows lie in fewer than ``MIN_BLOCKS`` blocks.
    """
    if occupied_blocks(rows.close_time, block) < MIN_BLOCKS:
        return None
    bits = np.uint64(1) << np.arange(len(PATTERN_NAMES), dtype=np.uint64)
    fired = (rows.patterns[:, None] & bits) > 0
    blocks = [occupied_blocks(rows.close_time[mask], block) for mask in fired.T]
    looked_at = np.flatnonzero((fired.sum(axis=0) >= least_rows) & (np.array(blocks) >= MIN_BLOCKS))
    inside = fired[:, looked_at].astype(np.float64)
    new, old = (confidence - rows.label) ** 2, (baseline - rows.label) ** 2
    worse = inside * (new - old)[:, None]
    resampled = np.concatenate(
        [
            ratio(weights @ worse, weights @ inside)
            for weights in block_multiplicities(rows.close_time, block=block, samples=samples, seed=seed)
        ]
    )
    slices = []
    for at, column in enumerate(looked_at.tolist()):
        mask = fired[:, column]
        value = np.float64(new[mask].mean() - old[mask].mean())
        slices.append(
            Slice(
                pattern=PATTERN_NAMES[column],
                rows=int(mask.sum()),
                challenger_brier=float(new[mask].mean()),
                baseline_brier=float(old[mask].mean()),
                rise=_difference(value, resampled[:, at], blocks=blocks[column]),
            )
        )
    return tuple(slices)


def occupied_blocks(times: NDArray[np.datetime64], block: timedelta) -> int:
    """Blocks, counted from the first time, that hold any of (n,) ascending times."""
    if not len(times):
        return 0
    return len(np.unique((times - times[0]) // np.timedelta64(block, "us")))


def _difference(value: np.float64, resampled: Floats, *, blocks: int) -> Difference:
    """A difference with bounds and chances, by the module's NaN rule."""
    bounds: Estimate = estimate(value, resampled, sure=blocks >= MIN_BLOCKS)
    least = 1 / (len(resampled) + 1)
    p_resampled = p_tail = None
    if bounds.low is not None:
        # A resample that could not compute it does not show it.
        p_resampled = float((1 + np.sum(~(resampled > 0))) * least)
        spread = float(np.nanstd(resampled))
        if value == 0:
            p_tail = 0.5 if spread > 0 else 1.0
        elif spread > 0:
            p_tail = float(stdtr(blocks - 1, -value / spread))
    return Difference(
        value=bounds.value,
        low=bounds.low,
        high=bounds.high,
        p_resampled=p_resampled,
        p_tail=p_tail,
        least_p=least,
    )
