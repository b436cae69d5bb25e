"""A candidate that passed its gates and answered in shadow: what its matured outcomes say of it.

The gates asked for significance on rows that it had not seen; the shadow phase asks whether live signals
agree. Beside a champion its Brier score on the signals that both answered must be the better one. Where the
key has no champion it must beat the patterns' own confidence, with the lower bound of its Brier skill over 0.
Too few outcomes are a no, and so is another champion than the one that the gates held it against: live
signals alone ask for no significance.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy.orm import Session

from db import registry, shadows
from db.models import EvaluationRow
from ml.config import ShadowConfig
from ml.evaluation import BLOCK_HORIZONS
from ml.live_accuracy import live_accuracy
from ml.paired import MIN_SIGNALS, regret
from tasks.regret import SAMPLES, horizon_of, labels_of, paired_outcomes

__all__ = ["HELD_AGAINST", "ShadowDecision", "decide", "record"]

HELD_AGAINST: Final = "held_against_id"
"""In a model's details: the champion of its key when its gates were asked; null where there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowDecision:
    """What became of a shadow phase."""

    promote: bool
    reasons: tuple[str, ...]
    """Why not; of a promotion, why."""
    rows: int
    """Matured outcomes that it rests on."""
    base_rate: float | None
    brier: float | None
    numbers: dict[str, Any]
    """As ``ml.paired.Regret.to_json``, or ``ml.live_accuracy.LiveAccuracy.to_json`` without a champion."""

    def held(self, reason: str) -> ShadowDecision:
        """The same, not promoted for a reason that no number gives."""
        reasons = (*(() if self.promote else self.reasons), reason)
        return ShadowDecision(
            promote=False,
            reasons=reasons,
            rows=self.rows,
            base_rate=self.base_rate,
            brier=self.brier,
            numbers=self.numbers,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the evaluation history keeps them beside the numbers."""
        return {"promote": self.promote, "reasons": list(self.reasons), "rows": self.rows}


def decide(
    session: Session, row: registry.ModelRow, champion: registry.ModelRow | None, *, now: datetime
) -> ShadowDecision | None:
    """The decision on a model of state ``shadow``; None while its own options ask for more outcomes.

    Args:
        session: the caller's, which holds the key's lock.
        row: the candidate.
        champion: of its key.
        now: the clock's.
    """
    assert row.shadow_at is not None
    asked = ShadowConfig.model_validate(row.config.get("shadow", {}))
    over = asked.days > 0 and now >= row.shadow_at + timedelta(days=asked.days)
    made = (
        _alone(session, row, row.shadow_at, now)
        if champion is None
        else _beside(session, row, champion, row.shadow_at, now)
    )
    # Options that ask for nothing would keep it waiting for ever.
    if not (over or not asked.on or 0 < asked.signals <= made.rows):
        return None
    changed = _changed(session, row, champion)
    return made.held(changed) if changed else made


def record(
    session: Session,
    row: registry.ModelRow,
    champion: registry.ModelRow | None,
    decision: ShadowDecision,
    *,
    now: datetime,
) -> None:
    """Keep the decision in the evaluation history; the state it leads to keeps a second one away."""
    session.add(
        EvaluationRow(
            symbol=row.symbol,
            interval=row.interval,
            regime=row.regime,
            model_id=row.id,
            champion_id=None if champion is None else champion.id,
            kind="shadow",
            as_of=now,
            rows=decision.rows,
            base_rate=decision.base_rate,
            brier=decision.brier,
            metrics=decision.numbers,
            promote=decision.promote,
            decision=decision.to_json(),
        )
    )
    session.flush()


def _changed(session: Session, row: registry.ModelRow, champion: registry.ModelRow | None) -> str:
    """What to say where another model answers than the gates held it against; empty where the same does.

    Of one that was registered before this was kept: whether somebody became champion while it was in shadow.
    """
    assert row.shadow_at is not None
    now_id = None if champion is None else champion.id
    if HELD_AGAINST not in row.details:
        if champion is None or champion.promoted_at is None or champion.promoted_at <= row.shadow_at:
            return ""
        before = "another champion"
    else:
        before_id = row.details[HELD_AGAINST]
        if before_id == now_id:
            return ""
        before = "no champion"
        if before_id is not None:
            before = f"version {session.get_one(registry.ModelRow, before_id).version}"
    now = "none" if champion is None else f"version {champion.version}"
    return f"version {row.version} was held against {before}, {now} answers now: train again"


def _beside(
    session: Session, row: registry.ModelRow, champion: registry.ModelRow, since: datetime, now: datetime
) -> ShadowDecision:
    found = paired_outcomes(session, row, champion, since=since, until=now)
    compared = regret(found, block=BLOCK_HORIZONS * horizon_of(row), samples=SAMPLES, seed=row.id)
    gain = compared.brier_difference.value
    reasons = []
    if labels_of(row) != labels_of(champion):
        reasons.append(f"it learned other barriers than version {champion.version}: nothing to compare")
    if compared.rows < MIN_SIGNALS:
        reasons.append(f"too few outcomes that both know: {compared.rows}, {MIN_SIGNALS} are needed")
    if gain is None or gain <= 0:
        shown = "not known" if gain is None else f"{-gain:+.4f}"
        reasons.append(f"its Brier score is not under that of version {champion.version}: {shown}")
    good = f"its Brier score is under that of version {champion.version} on {compared.rows} live signals"
    return ShadowDecision(
        promote=not reasons,
        reasons=tuple(reasons) or (good,),
        rows=compared.rows,
        base_rate=compared.base_rate,
        brier=compared.new_brier,
        numbers=compared.to_json(),
    )


def _alone(session: Session, row: registry.ModelRow, since: datetime, now: datetime) -> ShadowDecision:
    found = shadows.alone(session, row.key, row.id, since=since, until=now)
    accuracy = live_accuracy(found, block=BLOCK_HORIZONS * horizon_of(row), samples=SAMPLES, seed=row.id)
    low = accuracy.brier_skill_over_pattern.low
    reasons = []
    if accuracy.answered < MIN_SIGNALS:
        reasons.append(f"too few outcomes: {accuracy.answered}, {MIN_SIGNALS} are needed")
    if low is None or low <= 0:
        shown = "not known" if low is None else f"{low:+.4f}"
        reasons.append(
            f"lower bound of its Brier skill over the patterns' own confidence: {shown}, not over 0"
        )
    return ShadowDecision(
        promote=not reasons,
        reasons=tuple(reasons) or (f"better than the patterns alone on {accuracy.answered} live signals",),
        rows=accuracy.answered,
        base_rate=accuracy.base_rate,
        brier=accuracy.brier.value,
        numbers=accuracy.to_json(),
    )
