"""Two models on the same live signals: a new champion and the one it replaced, which goes on in shadow.

``rollback_test`` may be looked at after every outcome and says when the new one is worse. ``regret`` is for
when the shadow's time is over, and says whether the promotion paid.

Differences are written so that over 0 speaks for the new model, but in ``rollback_test``, whose question is
whether it is worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ml.evaluation import MIN_BLOCKS, Estimate, ScoreOrder, block_multiplicities, estimate, ratio

__all__ = [
    "MIN_SIGNALS",
    "PairedOutcomes",
    "Regret",
    "SequentialTest",
    "regret",
    "rollback_test",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Verdict = Literal["paid", "did_not_pay", "not_known"]

MIN_SIGNALS: Final = 30
"""With fewer nothing is said of two models; before so many ``rollback_test`` does not bet."""
BETS: Final = (0.2, 0.45, 0.9)
"""Shares of the greatest bet that cannot ruin. What separates real models is small beside what it could be,
so the best bet is a high one; the low one is for differences that go up and down."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PairedOutcomes:
    """Signals that both models answered and whose outcome is known, each once. Arrays have shape (n,).

    Signals newer than one whose outcome is still to come are left out: what is known early is not like the
    rest, for stops and profit-takes are known before time runs out.
    """

    signal_time: NDArray[np.datetime64]
    """Close of the signal's candle, ascending."""
    label: Floats
    """1.0 profit-take first, 0.0 stop or vertical barrier first; never NaN."""
    net_return_atr: Floats
    """After fees and slippage, as if the signal was traded."""
    new_confidence: Floats
    old_confidence: Floats
    """In [0, 1], as they were answered; never NaN."""
    new_positive: Bools
    old_positive: Bools
    """Confidence at least the model's own threshold."""
    new_accepted: Bools
    old_accepted: Bools
    """Positive, and the expected net return over 0."""

    def __post_init__(self) -> None:
        """Refuse what is no pair of models on the same signals.

        Raises:
            ValueError: arrays of different lengths, signals out of order, a NaN.
        """
        if len({len(getattr(self, field.name)) for field in fields(self)}) > 1:
            raise ValueError("paired outcomes must have one length")
        if (self.signal_time[1:] < self.signal_time[:-1]).any():
            raise ValueError("paired outcomes must be sorted by signal_time")
        if not np.isfinite(self.label + self.new_confidence + self.old_confidence).all():
            raise ValueError("paired outcomes must have both confidences and the outcome")

    def __len__(self) -> int:
        return len(self.signal_time)

    @property
    def brier_gain(self) -> Floats:
        """(n,) squared error of the old model less that of the new one."""
        return (self.old_confidence - self.label) ** 2 - (self.new_confidence - self.label) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialTest:
    """What ``rollback_test`` found so far."""

    worse: bool
    """``e_value`` is at least 1 / alpha, and the mean difference is over 0."""
    e_value: float
    """The highest so far: 20 is what luck alone shows in 1 of 20 tests at most, however often one looks."""
    alpha: float
    rows: int
    blocks: int
    """Closed ones, those before the first bet too."""
    mean_brier_difference: float | None
    """New less old, of all rows: over 0 is worse. None without rows."""
    worse_after_rows: int | None
    """Rows known when the e-value first was at least 1 / alpha."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def rollback_test(paired: PairedOutcomes, *, block: timedelta, alpha: float) -> SequentialTest:
    """Whether the new model's Brier score is worse than the old one's, at any time of looking.

    The hypothesis that is given up: in every block of time, given the blocks before it, the new model is
    expected to be no worse. Outcomes of one block overlap, so a block counts once, by the mean D of
    ``(new - label)^2 - (old - label)^2`` over its signals. Betting against the hypothesis (Waudby-Smith &
    Ramdas, *Estimating means of bounded random variables by betting*, JRSS-B 2024): a capital of 1 is
    multiplied by ``1 + b D / c`` block by block; the e-value is the mean of such capitals over ``BETS``.

    Why it is valid: the two confidences alone say how low D can be, whatever the outcomes: ``-L``, L the mean
    of what each signal would gain had the new model the better of it. ``c`` is the greatest L of all earlier
    blocks, so the bet ``b / c`` is settled before the block begins, as it must be: were it made smaller on
    sight of the block's own confidences, blocks in which the models disagree much, where the new one may be
    at its best, would count less, and a better model could lose. There remains a block whose L is greater
    than any before: its D is scaled by c / L, that is, it counts as if no more had been at stake than ever
    was; the hypothesis is about D so scaled. Such blocks are records, ever rarer. Then ``D / c >= -1``, and
    the capital stays positive for b < 1. Under the hypothesis ``E[D | past] <= 0``, so the capital is a
    nonnegative supermartingale that starts at 1, and so is the mean of several; the chance that it ever
    reaches 1 / alpha is at most alpha (Ville, *Étude critique de la notion de collectif*, 1939). Nothing is
    asked of the differences' distribution, nor are they to be independent.

    Before ``MIN_SIGNALS`` are known there is no bet, and the newest block is left out until a signal after it
    is known.

    Args:
        paired: n signals, n >= 0.
        block: at least the labels' horizon; twice that leaves little that neighbours share.
        alpha: chance that a new model that is no worse is ever called worse.

    Raises:
        ValueError: a block without length, or alpha outside (0, 1).
    """
    if block <= timedelta(0) or not 0 < alpha < 1:
        raise ValueError(f"a block must last and alpha lie in (0, 1), not {block} and {alpha}")
    difference = -paired.brier_gain
    number = _block_numbers(paired.signal_time, block)
    rows = np.bincount(number)[:-1]
    mean = np.bincount(number, difference)[:-1] / np.maximum(rows, 1)
    lowest = np.bincount(number, _stakes(paired))[:-1] / np.maximum(rows, 1)
    capital = _capital(mean, lowest, int(np.searchsorted(np.cumsum(rows), MIN_SIGNALS)) + 1)
    over = np.flatnonzero(capital >= 1 / alpha)
    average = float(difference.mean()) if len(paired) else None
    return SequentialTest(
        worse=len(over) > 0 and average is not None and average > 0,
        e_value=float(capital.max(initial=1.0)),
        alpha=alpha,
        rows=len(paired),
        blocks=len(rows),
        mean_brier_difference=average,
        worse_after_rows=int(rows[: over[0] + 1].sum()) if len(over) else None,
    )


def _block_numbers(time: NDArray[np.datetime64], block: timedelta) -> NDArray[np.int64]:
    """(n,) 0, 1 ... of blocks that hold signals; empty ones have no number."""
    if len(time) == 0:
        return np.zeros(0, dtype=np.int64)
    number: NDArray[np.int64] = np.unique(
        (time - time[0]) // np.timedelta64(block, "us"), return_inverse=True
    )[1]
    return number


def _stakes(paired: PairedOutcomes) -> Floats:
    """(n,) how much lower the new model's squared error may be, over both outcomes; at least 0."""
    new, old = paired.new_confidence, paired.old_confidence
    return np.where(new > old, (1 - old) ** 2 - (1 - new) ** 2, old**2 - new**2)


def _capital(mean: Floats, lowest: Floats, first: int) -> Floats:
    """(blocks,) after each block; 1 before block ``first``, whose bet is the first."""
    if first >= len(mean):
        return np.ones(len(mean))
    greatest = np.maximum.accumulate(lowest)[first - 1 : -1]
    # Two models that never differed have nothing at stake, and a block that differs after that counts 0.
    scale = np.maximum(np.maximum(greatest, lowest[first:]), np.finfo(np.float64).tiny)
    share = np.where(greatest > 0, mean[first:] / scale, 0.0)
    capitals = np.exp(np.cumsum(np.log1p(np.outer(BETS, share)), axis=1))
    return np.concatenate([np.ones(first), capitals.mean(axis=0)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """Whether a promotion paid, by the signals that both models answered after it."""

    verdict: Verdict
    """``paid``: the lower bound of ``brier_difference`` is over 0; ``did_not_pay``: the upper one is under 0;
    ``not_known``: neither, or there are no bounds."""
    rows: int
    first_signal: str | None
    last_signal: str | None
    """ISO-8601, UTC."""
    base_rate: float | None
    new_brier: float | None
    old_brier: float | None
    brier_difference: Estimate
    """Old less new."""
    auc_difference: Estimate
    """New less old."""
    net_return_difference: Estimate
    """Mean net return, in ATR, of the signals that the new model accepted less that of the old one's."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; an Estimate becomes an object of value, low, high."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        made: dict[str, Any] = {
            name: Estimate(**entry) if isinstance(entry, dict) else entry for name, entry in value.items()
        }
        return cls(**made)


def regret(paired: PairedOutcomes, *, block: timedelta, samples: int, seed: int) -> Regret:
    """Hold the new model against the old one by a paired block bootstrap (``ml.evaluation``).

    NaN rule: as there; and with fewer than ``MIN_SIGNALS`` signals, or signals in fewer than ``MIN_BLOCKS``
    blocks, there are no bounds, and the verdict is ``not_known``.

    Args:
        paired: n signals, n >= 0.
        block: length of a bootstrap block, at least the labels' horizon.
        samples: resamples, of the same signals for both models.
        seed: same input and seed, same result.
    """
    rows = len(paired)
    brier, auc, net = _differences(paired, block=block, samples=samples, seed=seed)
    return Regret(
        verdict=_verdict(brier),
        rows=rows,
        first_signal=str(paired.signal_time[0]) if rows else None,
        last_signal=str(paired.signal_time[-1]) if rows else None,
        base_rate=float(paired.label.mean()) if rows else None,
        new_brier=float(((paired.new_confidence - paired.label) ** 2).mean()) if rows else None,
        old_brier=float(((paired.old_confidence - paired.label) ** 2).mean()) if rows else None,
        brier_difference=brier,
        auc_difference=auc,
        net_return_difference=net,
    )


def _verdict(brier: Estimate) -> Verdict:
    if brier.low is not None and brier.low > 0:
        return "paid"
    if brier.high is not None and brier.high < 0:
        return "did_not_pay"
    return "not_known"


def _differences(paired: PairedOutcomes, *, block: timedelta, samples: int, seed: int) -> list[Estimate]:
    """Of the Brier score, the AUC and the mean net return of accepted signals."""
    if len(paired) == 0:
        return [Estimate(None, None, None)] * 3
    new_yes, old_yes, net = paired.new_accepted, paired.old_accepted, paired.net_return_atr
    # Where, not a product: the NaN of a signal that nobody accepted must not reach the others' sums.
    table = np.column_stack(
        [
            np.ones(len(paired)),
            paired.brier_gain,
            new_yes,
            old_yes,
            np.where(new_yes, net, 0.0),
            np.where(old_yes, net, 0.0),
        ]
    )
    orders = [ScoreOrder(score, paired.label) for score in (paired.new_confidence, paired.old_confidence)]

    def of(weights: Floats) -> Floats:
        """(3, b) in each of b resamples."""
        total, gain, new_count, old_count, new_net, old_net = (weights @ table).T
        new_auc, old_auc = (order.auc(weights) for order in orders)
        returns = ratio(new_net, new_count) - ratio(old_net, old_count)
        return np.array([ratio(gain, total), new_auc - old_auc, returns])

    value = of(np.ones((1, len(paired))))[:, 0]
    drawn = block_multiplicities(paired.signal_time, block=block, samples=samples, seed=seed)
    resampled = np.concatenate([of(weights) for weights in drawn], axis=1)
    held = len(np.unique(_block_numbers(paired.signal_time, block)))
    sure = len(paired) >= MIN_SIGNALS and held >= MIN_BLOCKS
    return [estimate(one, many, sure=sure) for one, many in zip(value, resampled, strict=True)]
