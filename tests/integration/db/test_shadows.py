"""Answers in shadow beside champions' answers: each signal once, nothing before its turn, found by index."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from benchmarks.queries import Size, fill, plans
from db import predictions, registry, shadows
from db.models import Prediction
from db.session import transaction
from ml.keys import ModelKey
from tests.integration.db.prediction_rows import HOUR, at, outcome
from tests.integration.db.rows import AS_OF, KEY, add_model

pytestmark = pytest.mark.drift

UNTIL = AS_OF + 100 * HOUR
SIZE = Size(symbols=10, candles_each=10, models=400, jobs=10, predictions=20_000, audit_rows=10)


@pytest.fixture
def models(engine: Engine) -> tuple[int, int]:
    """Ids of two models of the key."""
    with transaction(engine) as session:
        return add_model(session).id, add_model(session).id


def answered(hours: int, given: int, shadow: int, **changes: Any) -> list[dict[str, Any]]:
    """A champion's answer two seconds after its signal, and the other model's in shadow."""
    moment = AS_OF + hours * HOUR + timedelta(seconds=2)
    values = {"as_of": moment.isoformat(), "model_id": given, "metadata": {"threshold": 0.55}}
    row = at(hours, **values | changes)
    of = {"id": str(shadows.shadow_id(UUID(row["id"]), shadow)), "role": "shadow", "model_id": shadow}
    said = {"confidence": 0.3, "decision": "reject", "metadata": {"of": row["id"], "threshold": 0.25}}
    return [row, row | of | said]


def store(engine: Engine, *pairs: list[dict[str, Any]], open_: tuple[int, ...] = ()) -> None:
    """Write pairs and their outcomes, but for those at the places ``open_``."""
    rows = [row for place, pair in enumerate(pairs) for row in pair if place not in open_]
    with transaction(engine) as session:
        predictions.write(session, [row for pair in pairs for row in pair])
        ends = [datetime.fromisoformat(row["horizon_end"]) for row in rows]
        known = [outcome(row, label_end=end) for row, end in zip(rows, ends, strict=True)]
        predictions.resolve(session, known)


def hours(engine: Engine, new: int, old: int, until: datetime = UNTIL) -> list[int]:
    with transaction(engine) as session:
        found = shadows.paired(session, KEY, new, old, since=AS_OF, until=until)
    start = AS_OF.replace(tzinfo=None)
    return [(moment.item() - start) // HOUR for moment in found.signal_time]


def test_either_model_may_be_the_champion_and_each_keeps_its_own_numbers(
    engine: Engine, models: tuple[int, int]
) -> None:
    new, old = models
    store(engine, answered(0, new, old), answered(1, old, new))

    with transaction(engine) as session:
        found = shadows.paired(session, KEY, new, old, since=AS_OF, until=UNTIL)

    assert found.new_confidence.tolist() == [0.6, 0.3]
    assert found.old_confidence.tolist() == [0.3, 0.6]
    assert found.new_positive.tolist() == found.old_positive.tolist() == [True, True]
    assert found.new_accepted.tolist() == [True, False]
    assert found.old_accepted.tolist() == [False, True]
    assert found.label.tolist() == [1.0, 1.0]
    assert found.net_return_atr.tolist() == [0.8, 0.8]


def test_a_signal_asked_for_again_counts_once_and_with_its_first_answer(
    engine: Engine, models: tuple[int, int]
) -> None:
    new, old = models
    again = (AS_OF + timedelta(minutes=5)).isoformat()
    store(engine, answered(0, new, old, as_of=again, confidence=0.9), answered(0, new, old))

    with transaction(engine) as session:
        found = shadows.paired(session, KEY, new, old, since=AS_OF, until=UNTIL)

    assert found.new_confidence.tolist() == [0.6]


def test_late_answers_abstentions_and_other_models_do_not_count(
    engine: Engine, models: tuple[int, int]
) -> None:
    new, old = models
    with transaction(engine) as session:
        third = add_model(session).id
    late = (AS_OF + 2 * HOUR + timedelta(microseconds=1)).isoformat()
    abstained: dict[str, Any] = {"confidence": None, "decision": "abstain", "abstain_reason": "no_model"}
    silent = answered(3, new, old)
    silent[1] |= abstained
    mute = answered(4, new, old, **abstained)
    mute[1] |= {"confidence": 0.4, "abstain_reason": None}
    store(
        engine,
        answered(0, new, old),
        answered(1, new, old, as_of=late),
        answered(2, third, old),
        silent,
        mute,
        answered(5, new, third),
    )

    assert hours(engine, new, old) == [0]
    assert hours(engine, third, old) == [2]


def test_from_the_first_signal_on_whose_outcome_is_still_to_come_nothing_counts(
    engine: Engine, models: tuple[int, int]
) -> None:
    new, old = models
    store(engine, *(answered(hour, new, old) for hour in range(5)), open_=(3,))

    assert hours(engine, new, old) == [0, 1, 2]
    assert hours(engine, new, old, until=AS_OF + 13 * HOUR) == [0, 1]
    assert hours(engine, new, old, until=AS_OF + 13 * HOUR - timedelta(microseconds=1)) == [0]


def test_a_signal_that_can_have_no_outcome_is_left_out_and_hides_no_later_one(
    engine: Engine, models: tuple[int, int]
) -> None:
    new, old = models
    pairs = [answered(hour, new, old) for hour in range(3)]
    store(engine, *pairs, open_=(1,))
    with transaction(engine) as session:
        gap = [outcome(row, label=None, label_end=None, net_return_atr=None) for row in pairs[1]]
        predictions.resolve(session, gap)

    assert hours(engine, new, old) == [0, 2]


def test_the_answers_to_one_busy_signal_are_not_compared_each_with_each(
    engine: Engine, models: tuple[int, int]
) -> None:
    new, old = models
    store(engine, answered(0, new, old))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in (_repeat("champion", "t.metadata"), _repeat("shadow", OF_EACH, old), ANALYZE):
            connection.execute(sa.text(statement))
    ran: list[tuple[str, Any]] = []

    def capture(_c: object, _k: object, statement: str, parameters: Any, *_: object) -> None:
        ran.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", capture)
    with transaction(engine) as session:
        for way in ("hashjoin", "sort", "incremental_sort"):  # that are too dear with 200,000 answers
            session.execute(sa.text(f"SET LOCAL enable_{way} = off"))
        assert not shadows.to_score(session, KEY, old, since=AS_OF, has_champion=True, limit=1)
        statement, parameters = ran[-1]
        explained = session.connection().exec_driver_sql(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters
        )
        assert _discarded(explained.scalar_one()[0]["Plan"]) < 10 * ANSWERS


ANSWERS = 2000
ANALYZE = "ANALYZE ml_performance_tracking"
OF_EACH = "jsonb_build_object('of', t.id::text, 'threshold', 0.5)"


def _repeat(role: str, metadata: str, model_id: int | None = None) -> str:
    """SQL for ``ANSWERS`` more answers like the one that is there, or for each what another model says."""
    columns = [one.name for one in sa.inspect(Prediction).columns]
    said = {"id": "gen_random_uuid()", "role": f"'{role}'", "metadata": metadata}
    if model_id is not None:
        said["model_id"] = str(model_id)
    times = f"generate_series(1, {ANSWERS}) AS g" if role == "champion" else "generate_series(1, 1) AS g"
    return (
        f"INSERT INTO ml_performance_tracking ({', '.join(columns)}) "
        f"SELECT {', '.join(said.get(one, f't.{one}') for one in columns)} "
        f"FROM ml_performance_tracking AS t, {times} WHERE t.role = 'champion'"
    )


def _discarded(node: dict[str, Any]) -> float:
    """Rows that a plan looked at in vain."""
    removed = ("Rows Removed by Join Filter", "Rows Removed by Filter")
    own = sum(node.get(name, 0) for name in removed) * node["Actual Loops"]
    return float(own + sum(map(_discarded, node.get("Plans", ()))))


def test_a_million_rows_are_not_read_to_find_a_few(engine: Engine) -> None:
    fill(engine, SIZE)
    with transaction(engine) as session:
        [row] = registry.models(session, key=ModelKey("S1", "1h", "trending"), state="champion")
    recent = datetime(2030, 1, 1, tzinfo=UTC)

    for query in (
        lambda s: shadows.to_score(s, row.key, row.id, since=recent, has_champion=True, limit=1000),
        lambda s: shadows.paired(s, row.key, row.id, row.id + 1, since=recent, until=recent),
        lambda s: shadows.alone(s, row.key, row.id, since=recent, until=recent),
    ):
        found = [str(plan) for plan in plans(engine, query)]
        assert found
        assert not any("Seq Scan" in plan for plan in found), found
