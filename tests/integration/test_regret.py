"""The regret ledger on four weeks of real candles: whether a promotion paid, once, and why it ended."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from db import jobs, registry
from db.drift_models import DriftAction
from db.models import EvaluationRow
from ml.keys import ModelKey
from tasks.regret import RegretEntry, regret_ledger
from tasks.review import review_due
from tasks.shadow import score_due
from tests.integration.db.rows import race
from tests.integration.shadow_weeks import CUT, DAY, END, HOUR, INVERTED, KEY, LIKE_THE_TREES, START, Weeks

pytestmark = pytest.mark.drift

ALL = ModelKey("BTCUSDT", "1h", "all")
SPAN = START + 28 * DAY
TEN = START + 10 * DAY
MOMENT = timedelta(microseconds=1)


@pytest.fixture
def weeks(trained_database_url: str) -> Weeks:
    return Weeks(trained_database_url)


def live(weeks: Weeks, until: datetime) -> None:
    weeks.answer(START, until)
    score_due(weeks.at(until))
    weeks.resolve(until)


def review(weeks: Weeks, moment: datetime) -> int:
    return review_due(weeks.at(moment), lambda _: None).settled


def ledger(weeks: Weeks, until: datetime, **options: Any) -> list[RegretEntry]:
    with weeks.resources.transaction() as session:
        found = regret_ledger(session, since=START, until=until, **options)
    return [one for one in found if one.key == KEY]


def final(weeks: Weeks) -> list[EvaluationRow]:
    return [row for row in weeks.evaluations("shadow") if row.regime == KEY.regime]


def by_hand(weeks: Weeks, until: datetime) -> tuple[int, float]:
    """How many signals both answered, and what the replaced one's Brier score has over the new one's."""
    given = {row.id: row for row in weeks.predictions("champion")}
    pairs = [
        (given[UUID(row.details["of"])], row)
        for row in weeks.predictions("shadow")
        if row.confidence is not None
        and given[UUID(row.details["of"])].label is not None
        and row.horizon_end <= until
    ]
    gains = [
        ((old.confidence or 0) - (new.label or 0)) ** 2 - ((new.confidence or 0) - (new.label or 0)) ** 2
        for new, old in pairs
    ]
    return len(gains), float(np.mean(gains))


def test_once_the_shadow_days_are_over_the_final_word_is_written_once(weeks: Weeks) -> None:
    old, new = weeks.champion(), weeks.variant(LIKE_THE_TREES)
    weeks.promote(new.id, START)
    live(weeks, END)
    assert review(weeks, SPAN - timedelta(microseconds=1)) == 0
    assert final(weeks) == []

    done = race(lambda: review(weeks, SPAN), lambda: review(weeks, SPAN))

    assert sum(done) == 1
    assert review(weeks, SPAN + DAY) == 0
    [row] = final(weeks)
    rows, gain = by_hand(weeks, SPAN)
    assert (row.model_id, row.champion_id, row.as_of, row.job_id) == (old.id, new.id, SPAN, None)
    assert (row.rows, row.promote) == (rows, None)
    assert rows > 200
    assert row.metrics["brier_difference"]["value"] == pytest.approx(gain, abs=1e-12)
    assert row.metrics["verdict"] == "not_known"
    assert row.metrics["ended"] == "span"


def test_the_ledger_shows_figures_so_far_and_then_the_final_ones(weeks: Weeks) -> None:
    weeks.promote(weeks.variant(LIKE_THE_TREES).id, START)
    live(weeks, START + 14 * DAY)
    rows, gain = by_hand(weeks, START + 14 * DAY)

    [so_far] = ledger(weeks, START + 14 * DAY)

    assert (so_far.final, so_far.ended, so_far.until) == (False, None, START + 14 * DAY)
    assert (so_far.promoted_at, so_far.version, so_far.replaced_version) == (START, 2, 1)
    assert so_far.reason == "test"
    assert so_far.numbers["rows"] == rows
    assert so_far.numbers["brier_difference"]["value"] == pytest.approx(gain, abs=1e-12)
    live(weeks, END)
    review(weeks, SPAN)
    [over] = ledger(weeks, SPAN + HOUR)
    assert (over.final, over.ended, over.until, over.verdict) == (True, "span", SPAN, "not_known")
    assert over.numbers["rows"] > rows
    assert ledger(weeks, SPAN + HOUR, symbol="ETHUSDT") == []
    assert ledger(weeks, START) == []


def test_a_rollback_ends_a_promotion_that_did_not_pay_and_is_none_itself(weeks: Weeks) -> None:
    old, bad = weeks.champion(), weeks.variant(INVERTED)
    weeks.promote(bad.id, START, action="force")
    live(weeks, END - HOUR)

    assert review(weeks, END - HOUR) == 1
    assert review(weeks, SPAN + 30 * DAY) == 0

    [row] = final(weeks)
    assert (row.model_id, row.champion_id, row.as_of) == (old.id, bad.id, END - HOUR)
    [entry] = ledger(weeks, SPAN + 31 * DAY)
    assert (entry.verdict, entry.ended, entry.reason) == ("did_not_pay", "rolled_back", "force")
    assert (entry.version, entry.replaced_version, entry.final) == (2, 1, True)


def test_a_later_champion_ends_the_one_befores_and_begins_its_own(weeks: Weeks) -> None:
    second, third = weeks.variant(LIKE_THE_TREES), weeks.variant(INVERTED)
    weeks.promote(second.id, START)
    live(weeks, START + 10 * DAY)
    weeks.promote(third.id, START + 10 * DAY)

    assert review(weeks, START + 10 * DAY) == 1

    [row] = final(weeks)
    assert (row.champion_id, row.as_of) == (second.id, START + 10 * DAY)
    found = ledger(weeks, START + 11 * DAY)
    assert [(one.version, one.ended, one.final) for one in found] == [(3, None, False), (2, "replaced", True)]


def test_a_promotion_whose_days_passed_while_nobody_looked_is_settled_all_the_same(weeks: Weeks) -> None:
    weeks.promote(weeks.variant(LIKE_THE_TREES).id, START)
    live(weeks, END)

    assert review(weeks, SPAN + 400 * DAY) == 1

    [row] = final(weeks)
    assert row.as_of == SPAN
    assert row.rows > 200


@pytest.mark.parametrize("late", ["scored", "resolved"])
def test_the_final_word_waits_for_what_is_still_to_be_scored_or_resolved(weeks: Weeks, late: str) -> None:
    """The worker was down for the last days of the span."""
    weeks = short(weeks)
    weeks.promote(weeks.variant(LIKE_THE_TREES).id, START)
    live(weeks, START + 4 * DAY)
    weeks.answer(START + 4 * DAY, TEN)
    if late == "scored":
        weeks.resolve(TEN)
    else:
        score_due(weeks.at(TEN))

    assert review(weeks, TEN) == review(weeks, TEN + 3 * DAY - MOMENT) == 0
    assert final(weeks) == []
    score_due(weeks.at(TEN))
    weeks.resolve(TEN)
    assert review(weeks, TEN) == 1

    [row] = final(weeks)
    assert (row.rows, row.metrics["ended"]) == (by_hand(weeks, TEN)[0], "span")
    assert row.rows > 90


def test_after_the_grace_the_final_word_is_on_what_is_known(weeks: Weeks) -> None:
    weeks = short(weeks)
    weeks.promote(weeks.variant(LIKE_THE_TREES).id, START)
    live(weeks, START + 4 * DAY)
    weeks.answer(START + 4 * DAY, TEN)
    weeks.resolve(TEN)

    assert review(weeks, TEN + 3 * DAY) == 1

    [row] = final(weeks)
    assert 20 < row.rows < 90
    assert score_due(weeks.at(TEN + DAY)).rows == 0  # nobody waits for more


@pytest.mark.parametrize("ended", ["replaced", "rolled_back"])
def test_what_a_reign_that_is_over_left_to_be_scored_is_scored_before_the_final_word(
    weeks: Weeks, ended: str
) -> None:
    old, second = weeks.champion(), weeks.variant(LIKE_THE_TREES)
    weeks.promote(second.id, START)
    given = weeks.answer(START, TEN)
    if ended == "replaced":
        weeks.promote(weeks.variant(INVERTED).id, TEN)
    else:
        with weeks.at(TEN).transaction() as session:
            registry.rollback(session, KEY, now=TEN, actor="cli:ada", why="", details={})
    after = weeks.answer(TEN, TEN + DAY)
    weeks.resolve(TEN + DAY)
    assert review(weeks, TEN + DAY) == 0

    done = score_due(weeks.at(TEN + DAY))

    judged = [(row.model_id, row.details["of"]) for row in weeks.predictions("shadow")]
    assert sum(model_id == old.id for model_id, _ in judged) == given
    assert sum(model_id == second.id for model_id, _ in judged) == after
    assert done.rows == given + after
    assert review(weeks, TEN + DAY) == 1
    [row] = final(weeks)
    assert (row.champion_id, row.as_of, row.metrics["ended"]) == (second.id, TEN, ended)
    assert row.rows == by_hand(weeks, TEN)[0] > 90


def test_one_promotion_that_cannot_be_judged_keeps_no_other_from_its_final_word(weeks: Weeks) -> None:
    weeks = short(weeks)
    strange = weeks.variant(LIKE_THE_TREES, ALL)
    with weeks.resources.transaction() as session:
        row = session.get_one(registry.ModelRow, strange.id)
        row.config = row.config | {"labels": {"horizon_bars": "a day"}}
    weeks.promote(strange.id, START)
    weeks.promote(weeks.variant(LIKE_THE_TREES).id, START)
    live(weeks, TEN)

    assert review(weeks, TEN) == 1
    assert [row.regime for row in weeks.evaluations("shadow")] == ["trending"]


def short(weeks: Weeks) -> Weeks:
    """The same with a span of ten days."""
    return Weeks(weeks.resources.settings.required_database_url, shadow_days=10)


def test_the_drift_action_that_led_to_it_says_whether_it_paid(weeks: Weeks) -> None:
    old, bad = weeks.champion(), weeks.variant(INVERTED)
    with weeks.at(START).transaction() as session:
        jobs.enqueue(session, job_id="d", key=KEY, reason="drift", requested_by="alert 1", as_of=CUT)
        session.get_one(registry.ModelRow, bad.id).job_id = "d"
        actions = [action(old.id, {"result": "promoted", "model_id": bad.id}), action(old.id, None)]
        session.add_all(actions)
    weeks.promote(bad.id, START)
    live(weeks, END - HOUR)

    review(weeks, END - HOUR)

    with weeks.resources.transaction() as session:
        led, other = (session.get_one(DriftAction, one.id) for one in actions)
        assert led.outcome is not None
        assert led.outcome["regret"]["verdict"] == "did_not_pay"
        assert led.outcome["result"] == "promoted"
        assert other.outcome is None
    assert [one.reason for one in ledger(weeks, END)] == ["drift"]


def action(model_id: int, outcome: dict[str, Any] | None) -> DriftAction:
    return DriftAction(
        symbol=KEY.symbol,
        interval=KEY.interval,
        regime=KEY.regime,
        alert_id=UUID(int=1),
        alert_as_of=START,
        model_id=model_id,
        severity="critical",
        action="retrain_now",
        state="done",
        as_of=START,
        closed_at=START,
        outcome=outcome,
    )


def test_models_of_other_barriers_are_not_held_against_each_other(weeks: Weeks) -> None:
    bad = weeks.variant(INVERTED)
    with weeks.resources.transaction() as session:
        row = session.get_one(registry.ModelRow, bad.id)
        row.config = row.config | {"labels": row.config["labels"] | {"profit_take_atr": 9.0}}
    weeks.promote(bad.id, START)
    live(weeks, END - HOUR)

    assert review(weeks, END - HOUR) == 0
    assert weeks.champion().id == bad.id
    assert review(weeks, SPAN) == 1
    [row_] = final(weeks)
    assert (row_.rows, row_.metrics["verdict"]) == (0, "not_known")
