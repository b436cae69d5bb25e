"""May a challenger become champion? Gates, each with its value and its limit; docs/promotion.md has the why.

F1 alone can be had by saying yes to everything, so two gates ask for skill: the lower 95 % bounds of the AUC
and of the Brier skill score. Against a champion the challenger must be better for sure, at a level that its
*trial* may spend; no pattern's slice may be clearly worse; and two probes (``ml.probes``) must find that it
answers, and that it did not look ahead. A gate with no data fails.

A key is retrained again and again, and each retraining is a chance to beat the champion by luck. So the
significance asked for is spent over the trials, by the use function alpha*(t) = alpha t of Lan & DeMets
(*Discrete sequential boundaries for clinical trials*, Biometrika 70, 1983): a trial may spend what accrued
since the trial before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

from ml.comparison import Comparison, Gains, Slice
from ml.config import GateConfig
from ml.evaluation import Evaluation

__all__ = ["Decision", "GateResult", "Trial", "decide", "next_trial"]

WAYS = 2
"""To be better than the champion: by F1, or by Brier score and AUC. Each may spend its part of the level."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate: ``detail`` is a sentence with the value and the limit, ``data`` more numbers behind it."""

    name: str
    value: float | None
    limit: float
    passed: bool
    detail: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """``promote`` is true when every gate passed; ``reasons`` are the details of those that did not."""

    promote: bool
    gates: tuple[GateResult, ...]
    reasons: tuple[str, ...]

    def held(self, reason: str) -> Self:
        """The same numbers, but no promotion, for one more reason."""
        return replace(self, promote=False, reasons=(*self.reasons, reason))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "gates": [asdict(gate) for gate in self.gates], "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One retraining of a key that has a champion, and the significance that it may spend."""

    number: int
    """1 is the first whose data cut lies after the champion's."""
    alpha: float
    accrued_days: float
    """Between this data cut and the newest of every earlier training of the key; 0 where it is not later."""


def next_trial(
    cuts: Iterable[datetime], *, champion_cut: datetime, cut: datetime, gates: GateConfig
) -> Trial:
    """What a retraining may spend.

    The budget accrues with the data: ``promotion_alpha`` in ``alpha_days``, from one data cut to the next,
    and at most so much at once. Nothing gives it back: neither a promotion nor a rollback begins it anew,
    for a model that was promoted was a trial itself. A trial at the cut of one before, or at an older one,
    spends nothing and cannot promote: its days are spent already.

    Args:
        cuts: data cuts of every model of the key so far, of any state and in any order.
        champion_cut: the champion's.
        cut: this trial's.
        gates: ``promotion_alpha`` and ``alpha_days``; with 0 days every trial may spend all of it.
    """
    known = [champion_cut, *cuts]
    accrued = max((cut - max(known)) / timedelta(days=1), 0.0)
    share = min(1.0, accrued / gates.alpha_days) if gates.alpha_days else 1.0
    return Trial(
        number=1 + sum(other > champion_cut for other in known),
        alpha=gates.promotion_alpha * share,
        accrued_days=accrued,
    )


def decide(
    challenger: Evaluation,
    comparison: Comparison,
    drift_score: float | None,
    gates: GateConfig,
    *,
    trial: Trial | None,
    probes: Sequence[GateResult],
) -> Decision:
    """Hold a challenger against the gates.

    Args:
        challenger: on its test rows.
        comparison: with the champion; where the key has none, with the patterns.
        drift_score: between the challenger's reference and its test rows.
        gates: the limits.
        trial: None where the key has no champion: then the other gates decide.
        probes: results of ``ml.probes``.
    """
    results = (
        _at_least("min_f1", "F1", challenger.f1.value, gates.min_f1),
        _at_least("min_precision", "precision", challenger.precision.value, gates.min_precision),
        _at_least("min_recall", "recall", challenger.recall.value, gates.min_recall),
        _better(comparison, trial, gates),
        _drift(drift_score, gates.max_feature_drift_ks),
        _over("min_auc_lower", "the lower 95 % bound of the AUC", challenger.auc.low, gates.min_auc_lower),
        _over(
            "min_brier_skill_lower",
            "the lower 95 % bound of the Brier skill score",
            challenger.brier_skill.low,
            gates.min_brier_skill_lower,
        ),
        _slices(comparison, gates.slice_alpha),
        *probes,
    )
    failed = tuple(result.detail for result in results if not result.passed)
    return Decision(not failed, results, failed)


def _at_least(name: str, what: str, value: float | None, limit: float) -> GateResult:
    if value is None:
        return _no_data(name, what, limit)
    passed = value >= limit
    return GateResult(name, value, limit, passed, f"{what} is {value:.4f}, at least {limit:.4f} is asked")


def _over(name: str, what: str, value: float | None, limit: float) -> GateResult:
    if value is None:
        return _no_data(name, what, limit)
    passed = value > limit
    return GateResult(name, value, limit, passed, f"{what} is {value:.4f}, over {limit:.4f} is asked")


def _drift(score: float | None, limit: float) -> GateResult:
    name, what = "max_feature_drift_ks", "the drift score of the test rows"
    if score is None:
        return _no_data(name, what, limit)
    return GateResult(
        name, score, limit, score <= limit, f"{what} is {score:.4f}, at most {limit:.4f} is asked"
    )


def _better(comparison: Comparison, trial: Trial | None, gates: GateConfig) -> GateResult:
    """Better than the champion for sure, in one of two ways, within what the trial may spend.

    Its value is twice the smaller chance of those ways whose size is right, at most 1 (Bonferroni): two ways
    are two chances for luck. A way of two metrics needs both, so that its chance is the larger one.
    """
    name, what = "better_than_champion", "the gain over the champion"
    if comparison.baseline != "champion":
        return GateResult(name, None, 1.0, True, "no champion to improve on: the other gates decide")
    alpha = 0.0 if trial is None else trial.alpha
    new, old, gains = comparison.challenger, comparison.champion, comparison.gains
    if trial is None or new is None or old is None or gains is None:
        return _no_data(name, what, alpha, comparison.why_not)
    if _span(new) != _span(old):
        return GateResult(
            name, None, alpha, False, "the champion was judged on other rows: nothing to compare"
        )
    if new.f1.value is None or old.f1.value is None:
        return _no_data(name, what, alpha)
    level = alpha / WAYS
    f1, auc, brier = (gain.p_value(level) for gain in (gains.f1, gains.auc, gains.brier))
    if f1 is None or auc is None or brier is None:
        return _no_data(name, what, alpha)
    ways = {}
    if new.f1.value >= old.f1.value * (1 + gates.rel_improvement_f1) and _knows_no_less(gains):
        ways["f1"] = f1
    if new.f1.value >= old.f1.value - gates.max_f1_loss:
        ways["skill"] = max(auc, brier)
    value = min(1.0, WAYS * min(ways.values(), default=1.0))
    chances = {"f1": f1, "auc": auc, "brier": brier}
    data = {
        "trial": asdict(trial),
        "p_values": chances,
        "p_values_from": "resamples" if level >= gains.f1.least_p else "Student's t",
        "ways": ways,
        "gains": asdict(gains),
        "f1": [new.f1.value, old.f1.value],
        "auc": [new.auc.value, old.auc.value],
        "brier": [new.brier.value, old.brier.value],
    }
    detail = _better_detail(new, old, gains, chances, ways, value, trial)
    return GateResult(name, value, alpha, bool(ways) and alpha > 0 and value <= alpha, detail, data)


def _knows_no_less(gains: Gains) -> bool:
    """Neither AUC nor Brier score is worse: F1 alone rises by saying yes more often."""
    return all(gain.value is not None and gain.value >= 0 for gain in (gains.auc, gains.brier))


def _better_detail(
    new: Evaluation,
    old: Evaluation,
    gains: Gains,
    chances: dict[str, float],
    ways: dict[str, float],
    value: float,
    trial: Trial,
) -> str:
    gained = ", ".join(
        f"{label} {getattr(new, name).value:.4f} against {getattr(old, name).value:.4f} "
        f"({sign * (getattr(gains, name).value or 0):+.4f}, p {chances[name]:.2g})"
        for label, name, sign in (("F1", "f1", 1), ("AUC", "auc", 1), ("Brier", "brier", -1))
    )
    asked = f"trial {trial.number} may spend {trial.alpha:.2g}"
    if not ways:
        return f"{gained}: neither F1 up enough with Brier and AUC kept, nor kept while they gain; {asked}"
    return f"{gained}: p {value:.2g} of two ways, {asked}"


def _slices(comparison: Comparison, alpha: float) -> GateResult:
    """No pattern clearly worse: Holm's step-down over the slices (Scand. J. Statist. 6, 1979).

    Its value is the smallest chance, adjusted for their number.
    """
    name, what = "slices", "the patterns' slices"
    if comparison.challenger is None or comparison.slices is None:
        return _no_data(name, what, alpha)
    whom = "the champion" if comparison.baseline == "champion" else "the patterns' own confidence"
    if not comparison.slices:
        return GateResult(name, None, alpha, True, "no pattern has rows enough to be looked at by itself")
    adjusted = _holm(comparison.slices, alpha)
    if adjusted is None:
        return _no_data(name, what, alpha)
    worse = [
        slice_
        for slice_, chance in zip(comparison.slices, adjusted, strict=True)
        if alpha > 0 and chance <= alpha
    ]
    data = {
        "baseline": comparison.baseline,
        "slices": [
            asdict(slice_) | {"p_adjusted": chance, "worse": slice_ in worse}
            for slice_, chance in zip(comparison.slices, adjusted, strict=True)
        ],
    }
    value = min(adjusted)
    detail = (
        f"none of {len(adjusted)} patterns is clearly worse than {whom} (p {value:.2g}, {alpha:.2g} would be)"
    )
    if worse:
        named = ", ".join(
            f"{one.pattern} (Brier {one.challenger_brier:.4f} against {one.baseline_brier:.4f}, "
            f"{one.rows} rows)"
            for one in worse
        )
        detail = f"clearly worse than {whom} (p {value:.2g}, over {alpha:.2g} is asked): {named}"
    return GateResult(name, value, alpha, not worse, detail, data)


def _holm(slices: Sequence[Slice], alpha: float) -> list[float] | None:
    """Each slice's chance times the number of those not smaller, never falling; None where one has none."""
    found = [one.rise.p_value(alpha / len(slices)) for one in slices]
    chances = [chance for chance in found if chance is not None]
    if len(chances) < len(found):
        return None
    adjusted, highest = [1.0] * len(chances), 0.0
    for rank, at in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[at]))
        adjusted[at] = highest
    return adjusted


def _span(evaluation: Evaluation) -> tuple[int, str, str]:
    return evaluation.rows, evaluation.first_close, evaluation.last_close


def _no_data(name: str, what: str, limit: float, why: str | None = None) -> GateResult:
    detail = why or f"{what} could not be computed; without data the gate fails"
    return GateResult(name, None, limit, False, detail)
