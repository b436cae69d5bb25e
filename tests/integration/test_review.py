"""The review of champions on four weeks of real candles: a bad one is taken back, once, and nothing flaps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
import structlog.testing
from sqlalchemy.engine import Engine

from db import keys, registry
from db.models import Artifact
from db.registry import ROLLED_BACK
from ml.calibration import SigmoidCalibration
from ml.errors import StoreUnavailable
from ml.keys import ModelKey
from tasks.review import ACTOR, Reviewed, review_due
from tasks.shadow import score_due
from tests.integration.db.rows import race
from tests.integration.shadow_weeks import DAY, END, HOUR, INVERTED, KEY, LIKE_THE_TREES, START, Weeks

pytestmark = pytest.mark.drift

ALL = ModelKey("BTCUSDT", "1h", "all")
SIDEWAYS = ModelKey("BTCUSDT", "1h", "sideways")
VOLATILE = ModelKey("BTCUSDT", "1h", "volatile")
AGAIN = SigmoidCalibration(-9.0, -3.0)
"""As bad as ``INVERTED``, under other bytes."""
ACTIONS = ("promote", "force", "rollback", "freeze", "thaw", "reject")


@pytest.fixture
def weeks(trained_database_url: str) -> Weeks:
    return Weeks(trained_database_url)


def live(weeks: Weeks, since: datetime, until: datetime, key: ModelKey = KEY) -> None:
    """A span is answered, judged in shadow and resolved."""
    weeks.answer(since, until, key)
    score_due(weeks.at(until))
    weeks.resolve(until)


def review(weeks: Weeks, moment: datetime, announced: list[ModelKey] | None = None) -> Reviewed:
    return review_due(weeks.at(moment), (announced if announced is not None else []).append)


def spoil(weeks: Weeks, moment: datetime, key: ModelKey = KEY, how: SigmoidCalibration = INVERTED) -> int:
    row = weeks.variant(how, key)
    weeks.promote(row.id, moment)
    return row.id


def days_until_rollback(
    weeks: Weeks, since: datetime, key: ModelKey = KEY
) -> Iterator[tuple[datetime, Reviewed]]:
    """Day by day what the review did."""
    moment = since
    while moment < END:
        live(weeks, moment, moment + DAY, key)
        moment += DAY
        yield moment, review(weeks, moment)


def test_a_champion_that_is_worse_is_taken_back_within_the_four_weeks_with_its_numbers(weeks: Weeks) -> None:
    first, bad = weeks.champion(), spoil(weeks, START)
    announced: list[ModelKey] = []
    live(weeks, START, END - HOUR)

    done = review(weeks, END - HOUR, announced)

    assert done == Reviewed(rolled_back=[str(KEY)], settled=1)
    assert announced == [KEY]
    champion = weeks.champion()
    assert (champion.id, champion.replaces_id) == (first.id, bad)
    assert weeks.model(bad).state == "archived"
    entry = weeks.audit()[-1]
    assert (entry.action, entry.actor) == ("rollback", ACTOR)
    assert "version 2 is worse than version 1" in entry.why
    test = entry.details["test"]
    assert test["worse"]
    assert test["e_value"] >= 20
    assert test["mean_brier_difference"] > 0.2
    assert entry.details["version"] == 1


def test_a_second_review_changes_nothing(weeks: Weeks) -> None:
    spoil(weeks, START)
    live(weeks, START, END - HOUR)
    review(weeks, END - HOUR)
    before = [entry.id for entry in weeks.audit()], len(weeks.evaluations("shadow"))
    announced: list[ModelKey] = []

    assert review(weeks, END - HOUR, announced) == Reviewed()
    assert review(weeks, END + DAY, announced) == Reviewed()

    assert announced == []
    assert ([entry.id for entry in weeks.audit()], len(weeks.evaluations("shadow"))) == before


def test_two_reviews_at_once_take_it_back_once(weeks: Weeks) -> None:
    spoil(weeks, START)
    live(weeks, START, END - HOUR)

    done = race(lambda: review(weeks, END - HOUR), lambda: review(weeks, END - HOUR))

    assert sorted(len(one.rolled_back) for one in done) == [0, 1]
    assert sum(one.settled for one in done) == 1
    assert [entry.action for entry in weeks.audit()].count("rollback") == 1
    assert len(weeks.evaluations("shadow")) == 1


def test_a_champion_that_is_no_worse_stays(weeks: Weeks) -> None:
    good = weeks.variant(LIKE_THE_TREES)
    weeks.promote(good.id, START)
    live(weeks, START, END - HOUR)

    assert review(weeks, END - HOUR) == Reviewed()
    assert weeks.champion().id == good.id


def test_the_model_that_was_taken_back_is_not_gone_back_to_however_bad_the_other_is(weeks: Weeks) -> None:
    """A -> B -> (rolled back) A: B is the one before A now, and A may be worse than B."""
    good, first = weeks.variant(LIKE_THE_TREES), weeks.champion()
    bad = spoil(weeks, START - timedelta(minutes=2))
    weeks.promote(good.id, START - timedelta(minutes=1))
    with weeks.at(START).transaction() as session:
        registry.rollback(
            session, KEY, to_version=weeks.model(bad).version, now=START, actor="cli:ada", why="", details={}
        )
    assert weeks.champion().replaces_id == good.id
    assert ROLLED_BACK in weeks.model(good.id).details
    live(weeks, START, END - HOUR)

    done = review(weeks, END - HOUR)
    assert (done.rolled_back, done.frozen) == ([], [])
    assert weeks.champion().id == bad
    assert first.id != bad


def test_the_second_bad_champion_in_the_cooldown_freezes_the_key_and_says_so(weeks: Weeks) -> None:
    first = weeks.champion(ALL)
    spoil(weeks, START, ALL)
    taken_back = next(at for at, done in days_until_rollback(weeks, START, ALL) if done.rolled_back)
    second = spoil(weeks, taken_back, ALL, AGAIN)

    with structlog.testing.capture_logs() as logs:
        done = next(done for _, done in days_until_rollback(weeks, taken_back, ALL) if done.frozen)

    assert done.rolled_back == []
    assert weeks.champion(ALL).id == second != first.id
    assert [entry.action for entry in weeks.audit(ALL) if entry.action in ACTIONS] == [
        "promote", "promote", "rollback", "promote", "freeze",
    ]  # fmt: skip
    assert "rolled back on" in weeks.audit(ALL)[-1].why
    [alert] = [line for line in logs if line["event"] == "key_frozen"]
    assert (alert["log_level"], alert["model_key"], alert["worse"]) == ("error", str(ALL), True)
    with weeks.resources.transaction() as session:
        frozen = keys.frozen(session, ALL)
        assert frozen is not None
        assert frozen.frozen_by == ACTOR
    assert review(weeks, END) == Reviewed()


def damage(weeks: Weeks, model_id: int) -> None:
    with weeks.resources.transaction() as session:
        sha256 = session.get_one(registry.ModelRow, model_id).artifact_sha256
        session.execute(sa.update(Artifact).where(Artifact.sha256 == sha256).values(body=b"x", size=1))


def test_a_key_is_frozen_where_the_model_to_go_back_to_cannot_be_loaded(weeks: Weeks) -> None:
    first, bad = weeks.champion(), spoil(weeks, START)
    live(weeks, START, END - HOUR)
    damage(weeks, first.id)
    announced: list[ModelKey] = []

    done = review(weeks, END - HOUR, announced)

    assert (done.frozen, done.rolled_back, announced) == ([str(KEY)], [], [])
    assert weeks.champion().id == bad
    entry = weeks.audit()[-1]
    assert (entry.action, entry.actor) == ("freeze", ACTOR)
    assert "version 1 cannot take its place: " in entry.why
    assert review(weeks, END - HOUR) == Reviewed()


def test_trouble_with_one_key_stops_no_other(weeks: Weeks, trained_engine: Engine) -> None:
    """Its old model has no reference, and another one's options come from another version."""
    first, bad = weeks.champion(), spoil(weeks, START)
    spoil(weeks, START, ALL)
    candidate = weeks.variant(LIKE_THE_TREES, SIDEWAYS)
    weeks.to_shadow(candidate.id, START, days=1, hours=24)
    later = weeks.variant(LIKE_THE_TREES, VOLATILE)
    weeks.to_shadow(later.id, START, days=1)
    live(weeks, START, END - HOUR)
    live(weeks, START, END - HOUR, ALL)
    with trained_engine.begin() as connection:
        gone = sa.text("DELETE FROM ml_reference_features WHERE model_id = :id")
        connection.execute(gone, {"id": first.id})

    with structlog.testing.capture_logs() as logs:
        done = review(weeks, END - HOUR)

    assert (done.rolled_back, done.rejected) == ([str(ALL)], [str(VOLATILE)])
    assert weeks.champion().id == bad
    assert weeks.model(candidate.id).state == "shadow"
    failed = [(line["event"], line["model_key"]) for line in logs if "not_reviewed" in line["event"]]
    assert failed == [("champion_not_reviewed", str(KEY)), ("candidate_not_reviewed", str(SIDEWAYS))]


def test_a_store_that_is_away_stops_the_review(weeks: Weeks, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_args: object, **_options: object) -> None:
        raise StoreUnavailable("the server went away")

    spoil(weeks, START)
    monkeypatch.setattr("tasks.review.rollback_test", away)
    with pytest.raises(StoreUnavailable):
        review(weeks, START + DAY)


def test_a_frozen_key_is_left_to_people(weeks: Weeks) -> None:
    bad = spoil(weeks, START)
    live(weeks, START, END - HOUR)
    with weeks.resources.transaction() as session:
        keys.freeze(session, KEY, now=START, actor="cli:ada", why="looking at it")

    assert review(weeks, END - HOUR) == Reviewed()
    assert weeks.champion().id == bad

    with weeks.resources.transaction() as session:
        keys.thaw(session, KEY, now=START, actor="cli:ada", why="seen")
    assert review(weeks, END - HOUR).rolled_back == [str(KEY)]


def test_nobody_goes_back_to_a_model_too_old_to_answer(trained_database_url: str) -> None:
    weeks = Weeks(trained_database_url, max_model_age_days=27.0)
    bad = spoil(weeks, START)
    live(weeks, START, END - HOUR)

    assert review(weeks, END - HOUR) == Reviewed()
    assert weeks.champion().id == bad


def test_how_sure_it_must_be_is_a_setting(trained_database_url: str) -> None:
    weeks = Weeks(trained_database_url, rollback_alpha=1e-6)
    spoil(weeks, START)
    live(weeks, START, END - HOUR)

    assert review(weeks, END - HOUR) == Reviewed()
