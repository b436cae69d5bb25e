"""tasks.review_champions: is a new champion worse than the one before, and has a candidate shown enough?

A champion that a sequential test on matured outcomes finds worse than the model it replaced is taken back,
in one transaction with the numbers. That happens to a key once in ``rollback_cooldown_days``. The second time
it is frozen instead, as it is where the model before cannot be loaded: people decide. The model that a
rollback brought back is not tested against the one it took the place of: whoever was found worse is not gone
back to by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog
from celery import shared_task
from sqlalchemy.orm import Session

from db import keys, registry
from db.registry import ROLLED_BACK, ModelRow
from db.regret import rollbacks
from ml.dataset import ROW_FEATURE_NAMES
from ml.errors import ArtifactCorrupt
from ml.keys import ModelKey
from ml.paired import SequentialTest, rollback_test
from runtime.settings import Settings
from tasks import candidates
from tasks.base import Resources, Task
from tasks.champions import announce_champion
from tasks.one_key import on_its_own
from tasks.regret import horizon_of, paired_outcomes, settle
from tasks.stored_model import load

__all__ = ["ACTOR", "Reviewed", "review_champions", "review_due"]

ACTOR: Final = "tasks.review_champions"
BLOCK_HORIZONS: Final = 2
"""Of the sequential test, in label horizons. Each block is one bet, and a shadow span of 28 days has no room
for those of a bootstrap: with 4 a champion that called 0.04 what came true in 0.56 was not found in them."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Reviewed:
    """What one run did; keys in words."""

    rolled_back: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    promoted: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    settled: int = 0
    """Promotions that got their final word."""


@shared_task(base=Task, bind=True, name="tasks.review_champions", ignore_result=True)
def review_champions(self: Task) -> dict[str, Any]:
    """Hold every new champion against the one before, and decide on candidates in shadow.

    Returns:
        As ``review_due``.
    """
    return asdict(review_due(self.resources, partial(announce_champion, self.app)))


def review_due(resources: Resources, announce: Callable[[ModelKey], None]) -> Reviewed:
    """Review each key in a transaction of its own; a second run finds nothing more to do.

    A key that cannot be reviewed is logged, and keeps no other from its turn.

    Args:
        resources: of this process.
        announce: told of a key whose champion has changed, after the commit.
    """
    settings, now = resources.settings, resources.clock.now()
    with resources.transaction() as session:
        pairs = registry.in_shadow(session, now=now, shadow_days=settings.shadow_days)
    done = Reviewed()
    for key in sorted({row.key for row, _ in pairs if row.state == "archived"}):
        with on_its_own("champion_not_reviewed", key):
            with resources.transaction() as session:
                changed = _review_champion(session, key, settings, now, done)
            if changed:
                announce(key)
    for row, _ in pairs:
        if row.state == "shadow":
            with on_its_own("candidate_not_reviewed", row.key, model_version=row.version):
                with resources.transaction() as session:
                    changed = _review_candidate(session, row.key, row.id, settings, now, done)
                if changed:
                    announce(row.key)
    done.settled = settle(resources)
    return done


def _review_champion(
    session: Session, key: ModelKey, settings: Settings, now: datetime, done: Reviewed
) -> bool:
    """Take the champion back if it is worse than the one before; True if the key's champion has changed."""
    registry.lock_key(session, key)
    champion = registry.champion(session, key)
    if champion is None or champion.replaces_id is None or keys.frozen(session, key) is not None:
        return False
    before = session.get_one(ModelRow, champion.replaces_id)
    if not _may_be_gone_back_to(before, champion, settings, now):
        return False
    assert champion.promoted_at is not None
    found = paired_outcomes(session, champion, before, since=champion.promoted_at, until=now)
    block = BLOCK_HORIZONS * horizon_of(champion)
    test = rollback_test(found, block=block, alpha=settings.rollback_alpha)
    if not test.worse:
        return False
    why = _words(test, champion, before)
    event: dict[str, Any] = {"model_key": str(key), "model_version": champion.version, **test.to_json()}
    if hindered := _hindered(session, before, settings, now):
        keys.freeze(session, key, now=now, actor=ACTOR, why=f"{why}; {hindered}", hmac_key=settings.audit_key)
        log.error("key_frozen", **event)
        done.frozen.append(str(key))
        return False
    registry.rollback(
        session,
        key,
        to_version=before.version,
        now=now,
        actor=ACTOR,
        why=why,
        details={"test": test.to_json(), "block_days": block / timedelta(days=1)},
        hmac_key=settings.audit_key,
    )
    log.error("champion_rolled_back", to_version=before.version, **event)
    done.rolled_back.append(str(key))
    return True


def _may_be_gone_back_to(before: ModelRow, champion: ModelRow, settings: Settings, now: datetime) -> bool:
    """Whether a model would answer, were it champion again, and was not itself found worse."""
    assert champion.promoted_at is not None
    return (
        before.state == "archived"
        and ROLLED_BACK not in before.details
        and now < champion.promoted_at + timedelta(days=settings.shadow_days)
        and now - before.as_of <= timedelta(days=settings.max_model_age_days)
    )


def _hindered(session: Session, before: ModelRow, settings: Settings, now: datetime) -> str:
    """Why the key is frozen and not rolled back; empty where it is rolled back."""
    cooldown = timedelta(days=settings.rollback_cooldown_days)
    if earlier := rollbacks(session, before.key, actor=ACTOR, since=now - cooldown):
        return f"it was rolled back on {earlier[0].at:%Y-%m-%d %H:%M} UTC already"
    if mute := _mute(session, before):
        return f"version {before.version} cannot take its place: {mute}"
    return ""


def _mute(session: Session, row: ModelRow) -> str:
    """Why no worker could serve a model, were it champion; empty where one could."""
    try:
        predictor = load(session, row)
    except ArtifactCorrupt as error:
        log.exception("artifact_corrupt", model_key=str(row.key), version=row.version, error=str(error))
        return str(error)
    return (
        "" if predictor.model.feature_names == ROW_FEATURE_NAMES else "it knows features of another version"
    )


def _words(test: SequentialTest, champion: ModelRow, before: ModelRow) -> str:
    return (
        f"version {champion.version} is worse than version {before.version} on {test.rows} signals that both "
        f"answered: Brier score {test.mean_brier_difference:+.4f}, e-value {test.e_value:.3g} of "
        f"{1 / test.alpha:.3g} that luck is allowed"
    )


def _review_candidate(
    session: Session, key: ModelKey, model_id: int, settings: Settings, now: datetime, done: Reviewed
) -> bool:
    """Promote or reject a candidate whose shadow phase is over; True if the key's champion has changed."""
    registry.lock_key(session, key)
    row = session.get_one(ModelRow, model_id)
    if row.state != "shadow":
        return False
    champion = registry.champion(session, key)
    decision = candidates.decide(session, row, champion, now=now)
    if decision is None:
        return False
    if decision.promote and keys.frozen(session, key) is not None:
        decision = decision.held("the key is frozen: its champion is changed by people only")
    if decision.promote and (mute := _mute(session, row)):
        decision = decision.held(f"it cannot be loaded: {mute}")
    candidates.record(session, row, champion, decision, now=now)
    why, details = "; ".join(decision.reasons), {"decision": decision.to_json(), "numbers": decision.numbers}
    hmac_key = settings.audit_key
    if decision.promote:
        registry.promote(session, row.id, now=now, actor=ACTOR, why=why, details=details, hmac_key=hmac_key)
    else:
        registry.move(
            session, row.id, "rejected", now=now, actor=ACTOR, why=why, details=details, hmac_key=hmac_key
        )
    (done.promoted if decision.promote else done.rejected).append(str(key))
    log.info("shadow_decided", model_key=str(key), model_version=row.version, **decision.to_json())
    return decision.promote
