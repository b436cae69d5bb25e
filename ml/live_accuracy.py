"""What became of the answers given: how often they were right, and what they were worth beside the patterns.

The live counterpart of ``ml.evaluation``, by the same bootstrap and the same NaN rule: a metric that cannot
be computed is None, and so are the bounds that the resamples cannot carry. Of few signals, or of signals that
all came to the same, resamples are alike and promise a certainty that is none: such a metric has no bounds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ml.evaluation import MIN_BLOCKS, Estimate, block_multiplicities, estimate, ratio

__all__ = ["CALIBRATION_BINS", "MIN_SIGNALS", "LiveAccuracy", "ResolvedSignals", "live_accuracy"]

CALIBRATION_BINS = 10
MIN_SIGNALS = 30
"""Of those that a metric is a mean over: with fewer it has no bounds."""
ALIKE = 1e-12
NO_LABEL = "unknown"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ResolvedSignals:
    """One key's signals of which everything is known that will be, each once. Arrays have shape (n,)."""

    signal_time: NDArray[np.datetime64]
    """Close of the signal's candle, ascending."""
    label: Floats
    """1.0 profit-take first, 0.0 stop or vertical barrier first, NaN where no outcome could be found."""
    net_return_atr: Floats
    """After fees and slippage; NaN where ``label`` is NaN."""
    confidence: Floats
    """NaN where the model abstained."""
    threshold: Floats
    """Of the model that answered. NaN, and nothing is positive."""
    pattern_confidence: Floats
    """NaN where it was not known."""
    accepted: NDArray[np.bool_]
    """The decision was ``accept``: positive, and the expected net return over 0."""
    answered_by: tuple[int | None, ...]
    """Id of the model; None where it abstained."""
    abstain_reason: tuple[str | None, ...]
    unresolved: tuple[str | None, ...]
    """Why there is no label."""

    def __len__(self) -> int:
        return len(self.signal_time)

    @property
    def answered(self) -> NDArray[np.bool_]:
        """(n,) True where a confidence was given."""
        return ~np.isnan(self.confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAccuracy:
    """The answers of one key against what came after them.

    Every figure is of the *answered* signals whose outcome is known; those the model abstained from only
    count in ``coverage`` and ``abstained``. A signal is *positive* where its confidence was at least the
    threshold of the model that answered, *accepted* where its expected net return was over 0 as well, a *hit*
    where it reached its profit-take first (label 1), else *missed* (label 0).

    The two figures that the system was built for, and what they are to be read beside:

    ``accuracy_gained``
        Precision of the positives over the hit rate of all the answered pattern signals, minus 1: relative,
        so 0.2 is a pattern that is right 20 % more often (promised: +15 to +25 %).
    ``false_signals_removed``
        Share of the missed signals that were not positive (promised: 20 to 30 %). Saying no to everything
        removes them all, and a coin that says no to a quarter removes a quarter: so read it beside
    ``hits_kept``
        Share of the hits that were positive (recall). No skill has false_signals_removed + hits_kept = 1.
    ``pattern_accuracy_gained``, ``pattern_false_signals_removed``, ``pattern_hits_kept``
        The same three, had the signals been chosen by the patterns' own confidence: as many of them as the
        model called positive, the highest first, among the answered ones with a pattern confidence. Of equals
        at the cut each counts by its share, as the mean over every way to choose among them would.
    ``accuracy_gained_over_pattern``, ``false_removed_over_pattern``
        What the model adds: its figure less the pattern's, of the same compared signals in each resample.

    References:
        Brier, *Verification of forecasts expressed in terms of probability*, Mon. Weather Rev. 1950.
        Guo et al., *On calibration of modern neural networks*, ICML 2017: expected calibration error.
        Van Calster et al., *Calibration: the Achilles heel of predictive analytics*, BMC Med. 2019:
        calibration in the large.
    """

    resolved: int
    """Signals whose horizon has passed: ``answered``, abstained and unlabelled ones."""
    answered: int
    """Answered, and the outcome known."""
    coverage: float | None
    """Share of the resolved signals that were answered, the outcome known or not."""
    abstained: dict[str, int]
    """By reason."""
    unlabelled: dict[str, int]
    """Answered ones without an outcome, by reason."""
    first_signal: str | None
    last_signal: str | None
    """Of the answered ones; ISO-8601, UTC."""
    answered_by: dict[str, int]
    """How many of the answered ones each model answered, by its id: a key is one market, whose signals the
    model of its regime, that model's successors and the fallback answer."""
    positives: int
    accepted: int
    compared: int
    """Answered ones with a pattern confidence: what all figures against the pattern are of."""
    base_rate: float | None
    """Hit rate of all the answered ones."""
    accuracy: Estimate
    """Share of hits called positive and misses called not positive."""
    precision: Estimate
    accuracy_gained: Estimate
    false_signals_removed: Estimate
    hits_kept: Estimate
    pattern_accuracy_gained: Estimate
    pattern_false_signals_removed: Estimate
    pattern_hits_kept: Estimate
    accuracy_gained_over_pattern: Estimate
    false_removed_over_pattern: Estimate
    brier: Estimate
    pattern_brier: Estimate
    brier_skill_over_pattern: Estimate
    """1 - Brier score / the pattern confidence's, of the compared ones: over 0 knows more than they do."""
    calibration_error: float | None
    """Expected calibration error: |mean confidence - hit rate| of ``CALIBRATION_BINS`` equal bins of [0, 1],
    each by its share of the signals. Never below 0, and over it by chance alone: few signals look worse, and
    resamples, which add chance to chance, worse still. So it has no bounds; the next figure has honest ones.
    """
    calibration_in_the_large: Estimate
    """Mean confidence - hit rate: over 0 promised too much."""
    net_return_atr: Estimate
    """Mean of all the answered ones, as if all were traded; in ATR, after fees and slippage."""
    net_return_positive_atr: Estimate
    net_return_accepted_atr: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain values; an Estimate becomes an object of value, low, high."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        estimates = {field.name for field in fields(cls) if field.type == "Estimate"}
        made: dict[str, Any] = {
            name: Estimate(**entry) if name in estimates else entry for name, entry in value.items()
        }
        return cls(**made)


def live_accuracy(signals: ResolvedSignals, *, block: timedelta, samples: int, seed: int = 0) -> LiveAccuracy:
    """Hold answers against outcomes.

    Args:
        signals: n of one key, n >= 0, sorted by time, each once.
        block: length of a bootstrap block, at least the labels' horizon.
        samples: resamples.
        seed: of the resampling; same input and seed, same result.

    Raises:
        ValueError: signals out of order, or a block without length.
    """
    if block <= timedelta(0):
        raise ValueError(f"a block must be longer than nothing, not {block}")
    if (signals.signal_time[1:] < signals.signal_time[:-1]).any():
        raise ValueError("signals must be sorted by signal_time")
    labelled = ~np.isnan(signals.label)
    kept = np.flatnonzero(signals.answered & labelled)
    lost = np.flatnonzero(signals.answered & ~labelled)
    times = signals.signal_time[kept]
    judged = _Judged(signals, kept)
    return LiveAccuracy(
        resolved=len(signals),
        answered=len(kept),
        coverage=float(signals.answered.mean()) if len(signals) else None,
        abstained=_count(signals.abstain_reason[row] for row in np.flatnonzero(~signals.answered)),
        unlabelled=_count(signals.unresolved[row] for row in lost),
        first_signal=str(times[0]) if len(kept) else None,
        last_signal=str(times[-1]) if len(kept) else None,
        answered_by=_count(str(signals.answered_by[row]) for row in kept),
        positives=int(judged.positive.sum()),
        accepted=int(signals.accepted[kept].sum()),
        compared=len(judged.compared),
        base_rate=float(signals.label[kept].mean()) if len(kept) else None,
        calibration_error=judged.calibration_error,
        **_estimates(judged, times, block=block, samples=samples, seed=seed),
    )


def _count(reasons: Any) -> dict[str, int]:
    return dict(sorted(Counter(reason or NO_LABEL for reason in reasons).items()))


def _estimates(
    judged: _Judged, times: NDArray[np.datetime64], *, block: timedelta, samples: int, seed: int
) -> dict[str, Estimate]:
    point = judged.statistics(np.ones((1, len(times))))
    if len(times) == 0:
        return dict.fromkeys(point, Estimate(None, None, None))
    parts = [
        judged.statistics(weights)
        for weights in block_multiplicities(times, block=block, samples=samples, seed=seed)
    ]
    sure = judged.sure(times, block)
    found = {
        name: estimate(value[0], np.concatenate([part[name] for part in parts]), sure=sure[name])
        for name, value in point.items()
    }
    return {name: _unless_alike(one) for name, one in found.items()}


def _unless_alike(one: Estimate) -> Estimate:
    """Without its bounds where no resample differs from another."""
    alike = one.low is not None and one.high is not None and one.high - one.low <= ALIKE
    return Estimate(one.value, None, None) if alike else one


DENOMINATORS = {
    "accuracy": "rows",
    "precision": "positive",
    "accuracy_gained": "positive",
    "false_signals_removed": "miss",
    "hits_kept": "label",
    "pattern_accuracy_gained": "compared_positive",
    "pattern_false_signals_removed": "compared_miss",
    "pattern_hits_kept": "compared_label",
    "accuracy_gained_over_pattern": "compared_positive",
    "false_removed_over_pattern": "compared_miss",
    "brier": "rows",
    "pattern_brier": "compared",
    "brier_skill_over_pattern": "compared",
    "calibration_in_the_large": "rows",
    "net_return_atr": "rows",
    "net_return_positive_atr": "positive",
    "net_return_accepted_atr": "accepted",
}
"""Which rows each metric is a mean over."""


class _Judged:
    """The answered signals with a label, laid out so that every resample is a product of matrices."""

    def __init__(self, signals: ResolvedSignals, kept: NDArray[np.intp]) -> None:
        label, confidence = signals.label[kept], signals.confidence[kept]
        pattern, net = signals.pattern_confidence[kept], signals.net_return_atr[kept]
        self.positive = (confidence >= signals.threshold[kept]).astype(np.float64)
        accepted = signals.accepted[kept].astype(np.float64)
        compared = ~np.isnan(pattern)
        self.compared = np.flatnonzero(compared)
        self._order = _PatternOrder(pattern[compared], label[compared])
        brier = (confidence - label) ** 2
        columns = {
            "rows": np.ones(len(kept)),
            "label": label,
            "miss": 1 - label,
            "positive": self.positive,
            "hit": self.positive * label,
            "false": self.positive * (1 - label),
            "correct": np.where(self.positive == label, 1.0, 0.0),
            "accepted": accepted,
            "brier": brier,
            "excess": confidence - label,
            "net": net,
            "net_positive": net * self.positive,
            "net_accepted": net * accepted,
            "compared": compared.astype(np.float64),
            "compared_positive": compared * self.positive,
            "compared_label": compared * label,
            "compared_miss": compared * (1 - label),
            "compared_hit": compared * self.positive * label,
            "compared_brier": compared * brier,
            "pattern_brier": np.where(compared, (pattern - label) ** 2, 0.0),
        }
        self._names, self._table = tuple(columns), np.column_stack(list(columns.values()))
        inner_edges = np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS
        bins = np.searchsorted(inner_edges, confidence, side="left")  # (0.1, 0.2] and so on
        excess = np.bincount(bins, confidence - label, CALIBRATION_BINS)
        self.calibration_error = float(np.abs(excess).sum() / len(kept)) if len(kept) else None

    def sure(self, times: NDArray[np.datetime64], block: timedelta) -> dict[str, bool]:
        """Whether each metric's own rows are enough for bounds: ``MIN_SIGNALS``, in ``MIN_BLOCKS`` blocks."""
        at = (times - times[0]) // np.timedelta64(block, "us")
        span = bool(times[-1] - times[0] >= np.timedelta64(MIN_BLOCKS * block, "us"))
        enough = {}
        for name in set(DENOMINATORS.values()):
            held = self._table[:, self._names.index(name)] > 0
            enough[name] = span and int(held.sum()) >= MIN_SIGNALS and len(np.unique(at[held])) >= MIN_BLOCKS
        return {name: enough[column] for name, column in DENOMINATORS.items()}

    def statistics(self, weights: Floats) -> dict[str, Floats]:
        """Every metric of every resample, of shape (b,), from weights (b, n); NaN where there is none."""
        total = dict(zip(self._names, (weights @ self._table).T, strict=True))
        precision = ratio(total["hit"], total["positive"])
        brier = ratio(total["brier"], total["rows"])
        over_pattern = 1 - ratio(total["compared_brier"], total["pattern_brier"])
        return {
            "accuracy": ratio(total["correct"], total["rows"]),
            "precision": precision,
            "accuracy_gained": ratio(precision, ratio(total["label"], total["rows"])) - 1,
            "false_signals_removed": 1 - ratio(total["false"], total["miss"]),
            "hits_kept": ratio(total["hit"], total["label"]),
            **self._pattern_at_the_same_coverage(weights[:, self.compared], total),
            "brier": brier,
            "pattern_brier": ratio(total["pattern_brier"], total["compared"]),
            "brier_skill_over_pattern": over_pattern,
            "calibration_in_the_large": ratio(total["excess"], total["rows"]),
            "net_return_atr": ratio(total["net"], total["rows"]),
            "net_return_positive_atr": ratio(total["net_positive"], total["positive"]),
            "net_return_accepted_atr": ratio(total["net_accepted"], total["accepted"]),
        }

    def _pattern_at_the_same_coverage(self, weights: Floats, total: dict[str, Floats]) -> dict[str, Floats]:
        label, miss, chosen = total["compared_label"], total["compared_miss"], total["compared_positive"]
        hits, own = self._order.hits_of_the_highest(weights, chosen), total["compared_hit"]
        base = ratio(label, total["compared"])
        return {
            "pattern_accuracy_gained": ratio(ratio(hits, chosen), base) - 1,
            "pattern_false_signals_removed": 1 - ratio(chosen - hits, miss),
            "pattern_hits_kept": ratio(hits, label),
            "accuracy_gained_over_pattern": ratio(ratio(own - hits, chosen), base),
            # As many are chosen, so each hit more is a missed one fewer.
            "false_removed_over_pattern": ratio(own - hits, miss),
        }


class _PatternOrder:
    """Signals sorted once by pattern confidence, so that any resample's highest are cumulative sums."""

    def __init__(self, pattern_confidence: Floats, label: Floats) -> None:
        self._order = np.argsort(-pattern_confidence, kind="stable")
        ordered = pattern_confidence[self._order]
        self._first_of_ties = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
        self._label = label[self._order]

    def hits_of_the_highest(self, weights: Floats, count: Floats) -> Floats:
        """(b,) hits among the ``count`` (b,) highest of the signals drawn as often as ``weights`` (b, n)."""
        if len(self._order) == 0:
            return np.zeros(len(weights))
        drawn = weights[:, self._order]
        size = np.add.reduceat(drawn, self._first_of_ties, axis=1)
        hits = np.add.reduceat(drawn * self._label, self._first_of_ties, axis=1)
        before = np.cumsum(size, axis=1) - size
        taken = np.clip(count[:, None] - before, 0, size)
        share = np.divide(taken, size, out=np.zeros_like(size), where=size > 0)
        found: Floats = np.einsum("ij,ij->i", share, hits)
        return found
