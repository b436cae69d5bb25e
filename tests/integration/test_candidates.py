"""Candidates in shadow: promoted or rejected by what their live signals came to, and never by too few."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from db import keys, registry
from db.models import Artifact
from ml.calibration import SigmoidCalibration
from ml.keys import ModelKey
from tasks.candidates import HELD_AGAINST
from tasks.review import ACTOR, Reviewed, review_due
from tasks.shadow import score_due
from tests.integration.shadow_weeks import DAY, INVERTED, KEY, LIKE_THE_TREES, START, Weeks

pytestmark = pytest.mark.drift

ALL = ModelKey("BTCUSDT", "1h", "all")


@pytest.fixture
def weeks(trained_database_url: str) -> Weeks:
    return Weeks(trained_database_url)


def live(weeks: Weeks, days: float, key: ModelKey = KEY) -> None:
    until = START + days * DAY
    weeks.answer(START, until, key)
    score_due(weeks.at(until))
    weeks.resolve(until)


def review(weeks: Weeks, days: float) -> tuple[Reviewed, list[ModelKey]]:
    announced: list[ModelKey] = []
    return review_due(weeks.at(START + days * DAY), announced.append), announced


def test_a_candidate_whose_live_brier_score_is_better_becomes_champion(weeks: Weeks) -> None:
    old, candidate = weeks.champion(), weeks.variant(LIKE_THE_TREES)
    weeks.to_shadow(candidate.id, START, days=20)
    live(weeks, 20 - 1e-6)
    assert review(weeks, 20 - 1e-6) == (Reviewed(), [])

    done, announced = review(weeks, 20)

    assert (done, announced) == (Reviewed(promoted=[str(KEY)]), [KEY])
    assert (weeks.champion().id, weeks.champion().replaces_id) == (candidate.id, old.id)
    [row] = weeks.evaluations("shadow")
    assert (row.model_id, row.champion_id, row.promote) == (candidate.id, old.id, True)
    assert row.rows > 100
    assert row.metrics["brier_difference"]["value"] > 0
    entry = weeks.audit()[-1]
    assert (entry.action, entry.actor) == ("promote", ACTOR)
    assert "Brier score is under that of version 1" in entry.why
    assert review(weeks, 20) == (Reviewed(), [])
    assert len(weeks.evaluations("shadow")) == 1


def test_a_candidate_that_is_worse_live_is_rejected_with_its_reason(weeks: Weeks) -> None:
    old, candidate = weeks.champion(), weeks.variant(INVERTED)
    weeks.to_shadow(candidate.id, START, signals=50)
    live(weeks, 10)

    done, announced = review(weeks, 10)

    assert (done, announced) == (Reviewed(rejected=[str(KEY)]), [])
    assert weeks.champion().id == old.id
    assert weeks.model(candidate.id).state == "rejected"
    entry = weeks.audit()[-1]
    assert (entry.action, entry.actor) == ("reject", ACTOR)
    assert "not under that of version 1" in entry.why
    [row] = weeks.evaluations("shadow")
    assert (row.promote, row.decision) == (False, entry.details["decision"])


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "registered before it was noted"])
def test_one_that_was_held_against_a_champion_rolled_back_since_is_rejected(
    weeks: Weeks, noted: bool
) -> None:
    """It is clearly better than the champion that answers now, on hundreds of signals, but its gates asked
    nothing of that."""
    old, bad, candidate = weeks.champion(), weeks.variant(INVERTED), weeks.variant(LIKE_THE_TREES)
    weeks.promote(bad.id, START)
    weeks.to_shadow(candidate.id, START, days=20)
    if noted:
        note(weeks, candidate.id, bad.id)
    with weeks.at(START + DAY).transaction() as session:
        registry.rollback(
            session, KEY, now=START + DAY, actor="cli:ada", why="it looks bad to me", details={}
        )
    live(weeks, 20)

    done, announced = review(weeks, 20)

    assert (done.promoted, done.rejected, announced) == ([], [str(KEY)], [])
    assert (weeks.champion().id, weeks.model(candidate.id).state) == (old.id, "rejected")
    before = f"version {bad.version}" if noted else "another champion"
    words = f"version {candidate.version} was held against {before}, version 1 answers now: train again"
    assert weeks.audit()[-1].why == words
    [row] = [row for row in weeks.evaluations("shadow") if row.model_id == candidate.id]
    assert (row.promote, row.metrics["brier_difference"]["value"] > 0) == (False, True)


def test_one_whose_champion_was_away_for_a_while_and_is_back_is_decided_on(weeks: Weeks) -> None:
    old, other, candidate = weeks.champion(), weeks.variant(INVERTED), weeks.variant(LIKE_THE_TREES)
    weeks.to_shadow(candidate.id, START, days=20)
    note(weeks, candidate.id, old.id)
    weeks.promote(other.id, START + DAY)
    weeks.promote(old.id, START + 2 * DAY)
    live(weeks, 20)

    assert review(weeks, 20)[0].promoted == [str(KEY)]


def test_one_that_was_held_against_no_champion_is_rejected_where_there_is_one_now(weeks: Weeks) -> None:
    candidate = weeks.variant(LIKE_THE_TREES)
    weeks.to_shadow(candidate.id, START, days=20)
    note(weeks, candidate.id, None)
    live(weeks, 20)

    assert review(weeks, 20)[0] == Reviewed(rejected=[str(KEY)])

    words = "version 2 was held against no champion, version 1 answers now: train again"
    assert weeks.audit()[-1].why == words


def note(weeks: Weeks, model_id: int, champion_id: int | None) -> None:
    """Whom its gates held a candidate against, as a training notes it."""
    with weeks.resources.transaction() as session:
        row = session.get_one(registry.ModelRow, model_id)
        row.details = row.details | {HELD_AGAINST: champion_id}


def test_it_is_decided_at_the_outcome_asked_for_and_none_sooner(weeks: Weeks) -> None:
    candidate = weeks.variant(LIKE_THE_TREES)
    weeks.to_shadow(candidate.id, START, signals=1)
    live(weeks, 5)
    known = sum(row.label is not None for row in weeks.predictions("shadow"))
    assert known > 30

    for asked, decided in ((known + 1, []), (known, [str(KEY)])):
        with weeks.resources.transaction() as session:
            row = session.get_one(registry.ModelRow, candidate.id)
            row.config = row.config | {"shadow": {"signals": asked}}
        done, _ = review(weeks, 5)
        assert [*done.promoted, *done.rejected] == decided
    assert [row.rows for row in weeks.evaluations("shadow")] == [known]


def test_days_that_pass_with_too_few_outcomes_are_a_no(weeks: Weeks) -> None:
    candidate = weeks.variant(LIKE_THE_TREES)
    weeks.to_shadow(candidate.id, START, days=1, signals=1000)
    live(weeks, 1)

    assert review(weeks, 1)[0] == Reviewed(rejected=[str(KEY)])

    assert weeks.model(candidate.id).state == "rejected"
    assert "too few outcomes that both know" in weeks.audit()[-1].why


def test_on_a_frozen_key_even_a_better_one_is_rejected(weeks: Weeks) -> None:
    old, candidate = weeks.champion(), weeks.variant(LIKE_THE_TREES)
    weeks.to_shadow(candidate.id, START, days=20)
    live(weeks, 20)
    with weeks.resources.transaction() as session:
        keys.freeze(session, KEY, now=START, actor="cli:ada", why="looking at it")

    assert review(weeks, 20)[0] == Reviewed(rejected=[str(KEY)])

    assert weeks.champion().id == old.id
    assert "frozen" in weeks.audit()[-1].why


def test_a_better_one_that_cannot_be_loaded_is_rejected_with_that_reason(weeks: Weeks) -> None:
    old, candidate = weeks.champion(), weeks.variant(LIKE_THE_TREES)
    weeks.to_shadow(candidate.id, START, days=20)
    live(weeks, 20)
    with weeks.resources.transaction() as session:
        damaged = sa.update(Artifact).where(Artifact.sha256 == candidate.artifact_sha256)
        session.execute(damaged.values(body=b"x", size=1))

    assert review(weeks, 20) == (Reviewed(rejected=[str(KEY)]), [])

    assert weeks.champion().id == old.id
    assert weeks.audit()[-1].why.startswith("it cannot be loaded: ")


@pytest.mark.parametrize(
    "calibration", [INVERTED, SigmoidCalibration(0.0, 0.24)], ids=["inverted", "constant"]
)
def test_without_a_champion_it_must_beat_the_patterns_for_sure(
    weeks: Weeks, calibration: SigmoidCalibration
) -> None:
    candidate = weeks.variant(calibration)
    with weeks.resources.transaction() as session:
        session.get_one(registry.ModelRow, weeks.champion().id).state = "archived"
    weeks.to_shadow(candidate.id, START, days=25)
    live(weeks, 25, ALL)

    assert review(weeks, 25)[0] == Reviewed(rejected=[str(KEY)])

    assert "Brier skill" in weeks.audit()[-1].why
    [row] = weeks.evaluations("shadow")
    assert (row.champion_id, row.promote) == (None, False)
    assert row.metrics["brier_skill_over_pattern"]["low"] <= 0


def test_without_a_champion_one_that_beats_the_patterns_for_sure_is_promoted(weeks: Weeks) -> None:
    """Patterns that are sure of the wrong thing are easy to beat."""
    candidate = weeks.variant(LIKE_THE_TREES)
    with weeks.resources.transaction() as session:
        session.get_one(registry.ModelRow, weeks.champion().id).state = "archived"
    weeks.to_shadow(candidate.id, START, days=25)
    weeks.answer(START, START + 25 * DAY, ALL, pattern_confidence=0.05)
    score_due(weeks.at(START + 25 * DAY))
    weeks.resolve(START + 25 * DAY)

    assert review(weeks, 25)[0] == Reviewed(promoted=[str(KEY)])

    assert weeks.champion().id == candidate.id
    [row] = weeks.evaluations("shadow")
    assert (row.champion_id, row.promote) == (None, True)


def test_a_rolled_back_champion_in_shadow_is_no_candidate(weeks: Weeks) -> None:
    bad = weeks.variant(INVERTED)
    weeks.promote(bad.id, START)
    live(weeks, 27.9)
    review(weeks, 27.9)
    assert weeks.model(bad.id).state == "archived"

    done, _ = review(weeks, 30)

    assert done == Reviewed()
