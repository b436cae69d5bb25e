"""Models in shadow on a trained database: what they judge, as champions would, and that nobody is told."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db import outcomes, predictions, registry, shadows
from db.models import Artifact
from ml.calibration import SigmoidCalibration
from ml.inference import judge
from ml.keys import ModelKey
from tasks import shadow
from tasks.outcomes import live_accuracy
from tasks.served import served_confidence
from tasks.shadow import Scored, score_due
from tasks.stored_model import load
from tests.integration.db.rows import race
from tests.integration.shadow_weeks import CUT, DAY, HOUR, KEY, LIKE_THE_TREES, START, Weeks

pytestmark = pytest.mark.drift

ALL = ModelKey("BTCUSDT", "1h", "all")
WEEK = START + 7 * DAY
COPIED = (
    "signal_time", "as_of", "regime", "served_regime", "direction", "patterns", "features", "entry_price",
    "atr", "horizon_end", "pattern_confidence",
)  # fmt: skip


@pytest.fixture
def weeks(trained_database_url: str) -> Weeks:
    return Weeks(trained_database_url)


@pytest.fixture
def replaced(weeks: Weeks) -> int:
    """Id of the trained champion, which another has taken the place of at ``START``."""
    first = weeks.champion()
    weeks.promote(weeks.variant(LIKE_THE_TREES).id, START)
    return first.id


def test_a_replaced_champion_judges_each_answer_of_its_successor_as_it_would_have(
    weeks: Weeks, replaced: int
) -> None:
    given = weeks.answer(START, WEEK)
    assert given > 50

    done = score_due(weeks.at(WEEK))

    assert done == Scored(rows=given)
    champions, found = weeks.predictions("champion"), weeks.predictions("shadow")
    by_id = {row.id: row for row in champions}
    with weeks.resources.transaction() as session:
        predictor = load(session, session.get_one(registry.ModelRow, replaced))
    assert {UUID(row.details["of"]) for row in found} == set(by_id)
    for row in found:
        of = by_id[UUID(row.details["of"])]
        features = np.frombuffer(of.features or b"", "<f4")[None, :]
        judged = judge(predictor, features)
        abstains = judged.out_of_distribution[0] > 0.2
        assert (row.confidence, row.abstain_reason) == (
            (None, "out_of_distribution") if abstains else (judged.confidence[0], None)
        )
        assert row.decision == ("abstain" if abstains else "accept" if judged.accept[0] else "reject")
        assert (row.role, row.model_id, row.latency_ms) == ("shadow", replaced, None)
        assert row.details == {"of": str(of.id), "threshold": predictor.model.threshold.value}
        assert row.id == shadows.shadow_id(of.id, replaced) != of.id
        assert [getattr(row, name) for name in COPIED] == [getattr(of, name) for name in COPIED]
    assert any(row.confidence != by_id[UUID(row.details["of"])].confidence for row in found)


def test_a_second_run_changes_nothing_and_two_at_once_write_each_row_once(
    weeks: Weeks, replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "BATCH", 7)
    given = weeks.answer(START, WEEK)

    done = race(lambda: score_due(weeks.at(WEEK)), lambda: score_due(weeks.at(WEEK)))

    assert sum(one.rows for one in done) == given
    with weeks.resources.transaction() as session:
        assert not shadows.to_score(session, KEY, replaced, since=START, has_champion=True, limit=1)
    before = [(row.id, row.recorded_at) for row in weeks.predictions("shadow")]
    assert score_due(weeks.at(WEEK)) == Scored()
    assert [(row.id, row.recorded_at) for row in weeks.predictions("shadow")] == before
    assert len(before) == given


def test_answers_that_are_drained_late_are_judged_late(weeks: Weeks, replaced: int) -> None:
    later = weeks.answer(START + 3 * DAY, WEEK)
    assert score_due(weeks.at(WEEK)).rows == later

    earlier = weeks.answer(START, START + 3 * DAY)

    assert earlier > 0
    assert score_due(weeks.at(WEEK + HOUR)) == Scored(rows=earlier)


def test_after_the_shadow_days_a_replaced_champion_judges_what_was_left_of_them_and_no_more(
    trained_database_url: str,
) -> None:
    weeks = Weeks(trained_database_url, shadow_days=7)
    weeks.promote(weeks.variant(LIKE_THE_TREES).id, START)
    given = weeks.answer(START, WEEK)
    assert weeks.answer(WEEK, WEEK + 2 * DAY) > 0

    assert score_due(weeks.at(WEEK + 3 * DAY)) == Scored()
    assert score_due(weeks.at(WEEK + 3 * DAY - timedelta(microseconds=1))) == Scored(rows=given)


def test_answers_given_before_the_change_or_too_late_to_be_live_are_not_judged(
    weeks: Weeks, replaced: int
) -> None:
    span = (START + DAY, START + 3 * DAY)
    assert weeks.answer(*span, as_of=(START - timedelta(seconds=1)).isoformat()) > 0
    assert weeks.answer(*span, as_of=(START + 5 * DAY).isoformat()) > 0
    assert weeks.answer(*span, model_id=replaced) > 0

    assert score_due(weeks.at(WEEK)) == Scored()


def test_features_of_another_version_are_passed_over_and_keep_no_others_waiting(
    weeks: Weeks, replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "BATCH", 5)
    old = weeks.answer(START, START + 2 * DAY, features="AAAAAA==")
    none = weeks.answer(START, START + 2 * DAY, features=None)
    fit = weeks.answer(START + 2 * DAY, WEEK)
    assert old == none > 5

    assert score_due(weeks.at(WEEK)) == Scored(rows=fit, skipped=old)
    assert score_due(weeks.at(WEEK)) == Scored(skipped=old)


def test_a_model_too_old_to_be_champion_is_heard_all_the_same(trained_database_url: str) -> None:
    weeks = Weeks(trained_database_url, max_model_age_days=5.0)
    weeks.promote(weeks.variant(LIKE_THE_TREES).id, START)
    weeks.answer(START, WEEK)

    score_due(weeks.at(WEEK))

    for row in weeks.predictions("shadow"):
        assert row.abstain_reason in (None, "out_of_distribution")
        assert (row.confidence is None) == (row.abstain_reason is not None)
        assert row.model_age_seconds == (row.as_of - CUT).total_seconds()
    assert {row.as_of - CUT > 5 * DAY for row in weeks.predictions("shadow")} == {True, False}


def test_what_the_fallback_answered_is_judged_by_the_fallbacks_predecessor_only(
    weeks: Weeks, replaced: int
) -> None:
    fallback = weeks.champion(ALL).id
    weeks.promote(weeks.variant(LIKE_THE_TREES, ALL).id, START)
    given = weeks.answer(START, START + 2 * DAY, ALL)

    assert score_due(weeks.at(WEEK)).rows == given
    found = weeks.predictions("shadow")
    assert {row.model_id for row in found} == {fallback}
    assert {row.served_regime for row in found} == {"all"}
    assert {row.regime for row in found} > {"trending"}


def test_a_candidate_of_a_key_without_a_champion_judges_what_the_fallback_answered(weeks: Weeks) -> None:
    row = weeks.variant(LIKE_THE_TREES)
    with weeks.resources.transaction() as session:
        session.get_one(registry.ModelRow, weeks.champion().id).state = "archived"
    weeks.to_shadow(row.id, START, signals=100)
    weeks.answer(START, WEEK, ALL)
    of_regime = [one for one in weeks.predictions() if one.regime == "trending"]

    done = score_due(weeks.at(WEEK))

    assert done == Scored(rows=len(of_regime))
    assert {one.model_id for one in weeks.predictions("shadow")} == {row.id}


def test_a_model_whose_bytes_are_damaged_stops_no_other(weeks: Weeks, replaced: int) -> None:
    candidate = weeks.variant(SigmoidCalibration(0.7, 0.0))
    weeks.to_shadow(candidate.id, START, days=20)
    with weeks.resources.transaction() as session:
        damaged = session.get_one(registry.ModelRow, replaced).artifact_sha256
        session.execute(sa.update(Artifact).where(Artifact.sha256 == damaged).values(body=b"x", size=1))
    given = weeks.answer(START, WEEK)

    assert score_due(weeks.at(WEEK)) == Scored(rows=given, unreadable=1)
    assert {row.model_id for row in weeks.predictions("shadow")} == {candidate.id}


def test_trouble_with_one_model_keeps_no_other_unheard(
    weeks: Weeks, replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = weeks.variant(SigmoidCalibration(0.7, 0.0))
    weeks.to_shadow(candidate.id, START, days=20)
    given = weeks.answer(START, WEEK)

    def refuses(session: Session, row: registry.ModelRow) -> object:
        if row.id == replaced:
            raise LookupError("no such model")
        return load(session, row)

    monkeypatch.setattr(shadow, "load", refuses)

    assert score_due(weeks.at(WEEK)) == Scored(rows=given)
    assert {row.model_id for row in weeks.predictions("shadow")} == {candidate.id}


def test_shadows_are_resolved_like_any_answer_and_count_nowhere(weeks: Weeks, replaced: int) -> None:
    weeks.answer(START, WEEK)
    weeks.resolve(WEEK)
    with weeks.resources.transaction() as session:
        before = counted(session)
    live = [row.metrics for row in weeks.evaluations("live")]
    assert live

    score_due(weeks.at(WEEK))
    weeks.resolve(WEEK)

    by_id = {row.id: row for row in weeks.predictions("champion")}
    for row in weeks.predictions("shadow"):
        of = by_id[UUID(row.details["of"])]
        assert (row.label, row.label_end, row.net_return_atr) == (of.label, of.label_end, of.net_return_atr)
    assert any(row.label is not None for row in weeks.predictions("shadow"))
    assert [row.metrics for row in weeks.evaluations("live")] == live
    with weeks.resources.transaction() as session:
        assert counted(session) == before


def counted(session: Session) -> tuple[object, ...]:
    """Every place that reads answers."""
    accuracy = live_accuracy(session, since=CUT, until=WEEK, samples=50)
    found = outcomes.read(session, KEY, since=CUT, until=WEEK)
    assert found is not None
    resolved = predictions.resolved(session, symbol="BTCUSDT", interval="1h", since=CUT, until=WEEK)
    return (
        [(key, one.to_json()) for key, one in accuracy],
        len(found.signals),
        [row.id for row in resolved],
        served_confidence(session, ["BTCUSDT"], "1h", cut=WEEK).of,
        [row.id for row in predictions.recent(session, limit=10_000)],
    )
