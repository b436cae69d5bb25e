"""How good a model is on rows it never saw, and how sure that is.

Neighbouring signals share candles, and so do their outcomes: rows are not independent, and an interval
that takes them so is far too narrow. Intervals here come from a block bootstrap in time (Künsch, *The
jackknife and the bootstrap for general stationary observations*, Ann. Statist. 1989), circular so that every
row is drawn equally often (Politis & Romano, *A circular block-resampling procedure*, 1992).

NaN rule: a metric that cannot be computed (no signal over the threshold, one class only) is None, and so are
the bounds of one that over 5 % of the resamples could not compute, and of all on a span of fewer than
``MIN_BLOCKS`` blocks, which the bootstrap would be too sure about. A gate held against None fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ml.rows import SignalRows

__all__ = [
    "BLOCK_HORIZONS",
    "MIN_BLOCKS",
    "Estimate",
    "Evaluation",
    "ScoreOrder",
    "block_multiplicities",
    "estimate",
    "evaluate",
    "ratio",
]

BLOCK_HORIZONS = 4
"""A block's length in label horizons: 1 keeps overlapping labels together, more keeps a market mood."""

INTERVAL = (0.05, 0.95)
MAX_UNDEFINED_SHARE = 0.05
MIN_BLOCKS = 10
"""On 4 blocks a model without skill passed the AUC gate in 12 of 100 simulated runs instead of 5."""
STARTS_PER_BLOCK = 64
CHUNK_CELLS = 200_000
"""Rows x resamples held at once, so that memory does not grow with either."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric and its 5th to 95th percentile over the resamples: ``low`` is the lower 95 % bound."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One model judged on one span of one key's own rows.

    A signal is *positive* where its confidence is at least the threshold, *accepted* where its expected net
    return is over 0 as well. Returns are in ATR units, after fees and slippage.
    """

    rows: int
    first_close: str
    last_close: str
    """ISO-8601, UTC."""
    threshold: float
    positives: int
    accepted: int
    base_rate: float
    """Share of the rows that reached their profit-take."""
    known_base_rate: float
    """The same share over the key's rows whose outcome was known before this span: the constant forecast
    that ``brier_skill`` is measured against."""
    f1: Estimate
    precision: Estimate
    recall: Estimate
    auc: Estimate
    brier: Estimate
    brier_skill: Estimate
    """1 - Brier score / Brier score of ``known_base_rate``: over 0 beats saying the same every time."""
    log_loss: Estimate
    net_return_atr: Estimate
    """Mean of every signal, as if all were traded."""
    net_return_positive_atr: Estimate
    net_return_accepted_atr: Estimate
    break_even_hit_rate: Estimate
    """Hit rate at which the mean net return is 0, by this span's mean win and loss; over 1: no win pays."""
    pattern_auc: Estimate
    pattern_brier: Estimate
    """The same for the patterns' own confidence, which a model has to beat to be worth its keep."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; an Estimate becomes an object of value, low, high."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        made: dict[str, Any] = {
            name: Estimate(**entry) if isinstance(entry, dict) else entry for name, entry in value.items()
        }
        return cls(**made)


def evaluate(
    rows: SignalRows,
    *,
    confidence: Floats,
    threshold: float,
    expected_net_return_atr: Floats,
    known_base_rate: float,
    block: timedelta,
    samples: int,
    seed: int,
) -> Evaluation:
    """Judge confidences against outcomes.

    Args:
        rows: n labelled rows of one key, sorted by close time, that no part of the model has seen.
        confidence: (n,) probability of reaching the profit-take, in (0, 1).
        threshold: positive is ``confidence >= threshold``.
        expected_net_return_atr: (n,) what the model expects each signal to return.
        known_base_rate: see ``Evaluation``.
        block: length of a bootstrap block, at least the label's horizon.
        samples: resamples.
        seed: of the resampling; same input and seed, same result.

    Raises:
        ValueError: no row, or one without an outcome.
    """
    if len(rows) == 0 or not rows.labelled.all():
        raise ValueError(
            f"evaluate needs labelled rows; got {len(rows)}, {int(rows.labelled.sum())} labelled"
        )
    label = rows.label
    net = rows.gross_return_atr - rows.cost_atr
    positive = (confidence >= threshold).astype(np.float64)
    accepted = positive * (expected_net_return_atr > 0)
    columns = {
        "rows": np.ones(len(rows)),
        "label": label,
        "positive": positive,
        "hit": positive * label,
        "accepted": accepted,
        "brier": (confidence - label) ** 2,
        "known_brier": (known_base_rate - label) ** 2,
        "pattern_brier": (rows.pattern_confidence - label) ** 2,
        "log_loss": -np.log(np.where(label == 1, confidence, 1 - confidence)),
        "net": net,
        "net_positive": net * positive,
        "net_accepted": net * accepted,
        "net_label": net * label,
    }
    scores = (ScoreOrder(confidence, label), ScoreOrder(rows.pattern_confidence, label))
    table = np.column_stack(list(columns.values()))
    point = _statistics(np.ones((1, len(rows))), tuple(columns), table, scores)
    parts = [
        _statistics(weights, tuple(columns), table, scores)
        for weights in block_multiplicities(rows.close_time, block=block, samples=samples, seed=seed)
    ]
    sure = rows.close_time[-1] - rows.close_time[0] >= np.timedelta64(MIN_BLOCKS * block, "us")
    estimates = {
        name: estimate(value[0], np.concatenate([part[name] for part in parts]), sure=bool(sure))
        for name, value in point.items()
    }
    return Evaluation(
        rows=len(rows),
        first_close=str(rows.close_time[0]),
        last_close=str(rows.close_time[-1]),
        threshold=threshold,
        positives=int(positive.sum()),
        accepted=int(accepted.sum()),
        base_rate=float(label.mean()),
        known_base_rate=known_base_rate,
        **estimates,
    )


def block_multiplicities(
    times: NDArray[np.datetime64], *, block: timedelta, samples: int, seed: int
) -> Iterator[Floats]:
    """Yield how often each row is drawn, in arrays of shape (some, n) that add up to ``samples`` rows.

    A resample draws as many blocks ``[start, start + block)`` as the span holds, their starts uniform over
    ``STARTS_PER_BLOCK`` places a block length on the span closed to a circle; rows keep their times, so a
    busy hour stays together and quiet ones stay quiet.

    Args:
        times: (n,) ascending.
        block: length of a block.
        samples: resamples in all.
        seed: of the draw.
    """
    at = (times - times[0]).astype("timedelta64[us]").astype(np.int64)
    length = block // timedelta(microseconds=1)
    span = max(int(at[-1]) + 1, length)
    n = len(at)
    starts = np.arange(0, int(at[-1]) + 1, max(1, length // STARTS_PER_BLOCK))
    first = np.searchsorted(at, starts)
    # A block that runs over the end goes on at the beginning, n rows later on the circle.
    last = np.searchsorted(np.r_[at, at + span], starts + length)
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // n)
    for done in range(0, samples, chunk):
        count = min(chunk, samples - done)
        drawn = generator.integers(0, len(starts), size=(count, -(-span // length)))
        cell = np.arange(count)[:, None] * n
        begins = np.bincount((cell + first[drawn]).ravel(), minlength=count * n)
        ends = np.bincount((cell + last[drawn] % n).ravel(), minlength=count * n)
        running = np.cumsum((begins - ends).reshape(count, n), axis=1)
        running += (last[drawn] >= n).sum(axis=1, keepdims=True)
        yield running.astype(np.float64)


class ScoreOrder:
    """A score sorted once, so that the AUC of every resample is a cumulative sum of its negatives.

    Args:
        score: (n,) of each row.
        label: (n,) 0 and 1.
    """

    def __init__(self, score: Floats, label: Floats) -> None:
        order = np.argsort(score, kind="stable")
        self._positive, self._negative = order[label[order] == 1], order[label[order] == 0]
        negatives, positives = score[self._negative], score[self._positive]
        self._below = np.searchsorted(negatives, positives, side="left")
        self._upto = np.searchsorted(negatives, positives, side="right")
        self._tied = bool((self._below != self._upto).any())

    def auc(self, weights: Floats) -> Floats:
        """(b,) area under the ROC curve for weights (b, n), ties half (Mann & Whitney, 1947)."""
        positive = weights[:, self._positive]
        negatives = np.zeros((len(weights), len(self._negative) + 1))
        np.cumsum(weights[:, self._negative], axis=1, out=negatives[:, 1:])
        below = negatives[:, self._below]
        if self._tied:
            below = (below + negatives[:, self._upto]) / 2
        return ratio(np.einsum("ij,ij->i", positive, below), positive.sum(axis=1) * negatives[:, -1])


def _statistics(
    weights: Floats, names: tuple[str, ...], table: Floats, scores: tuple[ScoreOrder, ScoreOrder]
) -> dict[str, Floats]:
    """Every metric of every resample, of shape (b,): from weights (b, n) and a table (n, len(names))."""
    total = dict(zip(names, (weights @ table).T, strict=True))
    misses = total["rows"] - total["label"]
    win = ratio(total["net_label"], total["label"])
    loss = ratio(total["net"] - total["net_label"], misses)
    confidence, pattern = scores
    return {
        "f1": ratio(2 * total["hit"], total["positive"] + total["label"]),
        "precision": ratio(total["hit"], total["positive"]),
        "recall": ratio(total["hit"], total["label"]),
        "auc": confidence.auc(weights),
        "brier": ratio(total["brier"], total["rows"]),
        "brier_skill": 1 - ratio(total["brier"], total["known_brier"]),
        "log_loss": ratio(total["log_loss"], total["rows"]),
        "net_return_atr": ratio(total["net"], total["rows"]),
        "net_return_positive_atr": ratio(total["net_positive"], total["positive"]),
        "net_return_accepted_atr": ratio(total["net_accepted"], total["accepted"]),
        "break_even_hit_rate": ratio(-loss, win - loss),
        "pattern_auc": pattern.auc(weights),
        "pattern_brier": ratio(total["pattern_brier"], total["rows"]),
    }


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """(b,) numerator / denominator; NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)


def estimate(value: np.float64, resampled: Floats, *, sure: bool) -> Estimate:
    """A metric with its bounds, by the module's NaN rule.

    Args:
        value: of all rows; NaN where it cannot be computed.
        resampled: (b,) of each resample, NaN likewise.
        sure: the span holds at least ``MIN_BLOCKS`` blocks; else there are no bounds.
    """
    if np.isnan(value):
        return Estimate(None, None, None)
    undefined = np.isnan(resampled)
    if not sure or undefined.mean() > MAX_UNDEFINED_SHARE:
        return Estimate(float(value), None, None)
    low, high = np.quantile(resampled[~undefined], INTERVAL)
    return Estimate(float(value), float(low), float(high))
