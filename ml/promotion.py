"""May a challenger become champion? Gates, each with its value and its limit.

Five gates are the mission's. F1 alone can be had by saying yes to everything, so two more ask for skill: the
lower 95 % bounds of the AUC and of the Brier skill score. A gate with no data fails.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ml.config import GateConfig
from ml.evaluation import Evaluation

__all__ = ["Comparison", "Decision", "GateResult", "decide"]


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate: ``detail`` is a sentence with the value and the limit."""

    name: str
    value: float | None
    limit: float
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Decision:
    """``promote`` is true when every gate passed; ``reasons`` are the details of those that did not."""

    promote: bool
    gates: tuple[GateResult, ...]
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "gates": [asdict(gate) for gate in self.gates], "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Challenger and champion on the same rows, which neither has seen; None where there are too few."""

    challenger: Evaluation | None
    champion: Evaluation | None


def decide(
    challenger: Evaluation, comparison: Comparison | None, drift_score: float | None, gates: GateConfig
) -> Decision:
    """Hold a challenger's evaluation against the gates.

    Args:
        challenger: on its test rows.
        comparison: None where the key has no champion: then the absolute gates decide.
        drift_score: between the challenger's reference and its test rows.
        gates: the limits.
    """
    results = (
        _at_least("min_f1", "F1", challenger.f1.value, gates.min_f1),
        _at_least("min_precision", "precision", challenger.precision.value, gates.min_precision),
        _at_least("min_recall", "recall", challenger.recall.value, gates.min_recall),
        _improvement(comparison, gates.rel_improvement_f1),
        _drift(drift_score, gates.max_feature_drift_ks),
        _over("min_auc_lower", "the lower 95 % bound of the AUC", challenger.auc.low, gates.min_auc_lower),
        _over(
            "min_brier_skill_lower",
            "the lower 95 % bound of the Brier skill score",
            challenger.brier_skill.low,
            gates.min_brier_skill_lower,
        ),
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


def _improvement(comparison: Comparison | None, limit: float) -> GateResult:
    name, what = "rel_improvement_f1", "the gain in F1 over the champion"
    if comparison is None:
        return GateResult(name, None, limit, True, "no champion to improve on: the other gates decide")
    challenger, champion = comparison.challenger, comparison.champion
    if challenger is None or champion is None:
        return _no_data(name, what, limit)
    if _span(challenger) != _span(champion):
        return GateResult(
            name, None, limit, False, "the champion was judged on other rows: nothing to compare"
        )
    if challenger.f1.value is None or champion.f1.value is None:
        return _no_data(name, what, limit)
    asked = champion.f1.value * (1 + limit)
    detail = (
        f"F1 is {challenger.f1.value:.4f} against the champion's {champion.f1.value:.4f} on the same rows, "
        f"at least {asked:.4f} ({limit:+.1%}) is asked"
    )
    return GateResult(name, challenger.f1.value, asked, challenger.f1.value >= asked, detail)


def _span(evaluation: Evaluation) -> tuple[int, str, str]:
    return evaluation.rows, evaluation.first_close, evaluation.last_close


def _no_data(name: str, what: str, limit: float) -> GateResult:
    return GateResult(name, None, limit, False, f"{what} could not be computed; without data the gate fails")
