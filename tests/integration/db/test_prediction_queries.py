"""Predictions are found by index, in hypertables too, and resolved once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from benchmarks.queries import Size, fill, plans
from db import outcomes as stored_outcomes
from db import predictions
from db.predictions import Outcome
from db.schema import downgrade, upgrade
from db.session import create_engine, transaction
from tests.integration.db.prediction_rows import HOUR, at, outcome, record, stored, write
from tests.integration.db.rows import AS_OF, race

pytestmark = pytest.mark.inference


def test_get_finds_by_id_alone(engine: Engine) -> None:
    given = record()
    write(engine, given, record())
    with transaction(engine) as session:
        found = predictions.get(session, UUID(given["id"]))
        assert found is not None
        assert str(found.id) == given["id"]
        assert predictions.get(session, uuid4()) is None


def test_recent_gives_the_newest_of_what_fits_newest_first(engine: Engine) -> None:
    given = [
        at(0),
        at(3, symbol="ETHUSDT", decision="reject"),
        at(1, regime="volatile", decision="reject"),
        at(4, interval="4h"),
        at(2, symbol="ETHUSDT", regime="all"),
        at(5, regime="volatile"),
    ]
    write(engine, *given)
    names = {row["id"]: number for number, row in enumerate(given)}

    def recent(limit: int = 50, **conditions: Any) -> list[int]:
        with transaction(engine) as session:
            found = predictions.recent(session, limit=limit, **conditions)
            return [names[str(row.id)] for row in found]

    assert recent() == [5, 3, 1, 4, 2, 0]
    assert recent(3) == [5, 3, 1]
    assert recent(symbol="ETHUSDT") == [1, 4]
    assert recent(symbol="BTCUSDT", interval="1h") == [5, 2, 0]
    assert recent(regime="volatile") == [5, 2]
    assert recent(symbol="BTCUSDT", interval="1h", regime="trending") == [0]
    assert recent(decision="reject") == [1, 2]
    assert recent(symbol="XRPUSDT") == []


def test_due_are_the_unresolved_whose_horizon_has_ended_oldest_first(engine: Engine) -> None:
    given = [at(2), at(0), at(1), at(3), at(1)]
    write(engine, *given)
    with transaction(engine) as session:
        predictions.resolve(session, [outcome(given[1])])
    with transaction(engine) as session:
        found = stored_outcomes.due(session, AS_OF + 14 * HOUR, 50)
        wanted = [*sorted((given[2]["id"], given[4]["id"])), given[0]["id"]]
        assert [str(row.id) for row in found] == wanted
        assert stored_outcomes.due(session, AS_OF + 13 * HOUR - timedelta(microseconds=1), 50) == []
        # Page by page, though none of them is resolved.
        pages, after = [], None
        while page := stored_outcomes.due(session, AS_OF + 14 * HOUR, 1, after=after):
            pages += [str(row.id) for row in page]
            after = (page[-1].horizon_end, page[-1].id)
        assert pages == wanted


def test_an_outcome_is_added_once(engine: Engine) -> None:
    lost, won, gap, waiting = (at(hours, metadata={"a": 1, "b": 2}) for hours in range(4))
    write(engine, lost, won, gap, waiting)
    outcomes = [
        outcome(lost, label=0, net_return_atr=-2.1 + 0.2, metadata={"b": 3, "exit": "stop"}),
        outcome(won),
        outcome(gap, label=None, label_end=None, net_return_atr=None, metadata={"gap": True}),
        outcome(record()),
    ]
    for changed in (3, 0):
        with transaction(engine) as session:
            assert predictions.resolve(session, outcomes) == changed
    with transaction(engine) as session:
        assert predictions.resolve(session, [outcome(lost, label=1)]) == 0
        assert predictions.resolve(session, []) == 0
    rows = stored(engine)
    assert [(row.label, row.label_end, row.net_return_atr, row.resolved_at) for row in rows] == [
        (0.0, AS_OF + 3 * HOUR, -2.1 + 0.2, AS_OF + 13 * HOUR),
        (1.0, AS_OF + 3 * HOUR, 0.8, AS_OF + 13 * HOUR),
        (None, None, None, AS_OF + 13 * HOUR),
        (None, None, None, None),
    ]
    assert [row.details for row in rows] == [
        {"a": 1, "b": 3, "exit": "stop"},
        {"a": 1, "b": 2},
        {"a": 1, "b": 2, "gap": True},
        {"a": 1, "b": 2},
    ]


def test_two_who_resolve_the_same_do_it_once(engine: Engine) -> None:
    given = [record() for _ in range(1000)]
    write(engine, *given)
    outcomes = [outcome(row) for row in given]

    def resolve(ordered: list[Outcome]) -> int:
        with transaction(engine) as session:
            return predictions.resolve(session, ordered)

    assert sum(race(lambda: resolve(outcomes), lambda: resolve(outcomes[::-1]))) == 1000


def test_an_impossible_outcome_is_refused(engine: Engine) -> None:
    given = record()
    write(engine, given)
    for changes, error in (
        ({"label": 2}, sa.exc.IntegrityError),
        ({"label_end": None}, sa.exc.IntegrityError),
        ({"net_return_atr": float("nan")}, ValueError),
    ):
        with pytest.raises(error), transaction(engine) as session:
            predictions.resolve(session, [outcome(given, **changes)])
    assert stored(engine)[0].resolved_at is None


def test_resolved_gives_what_was_known_by_the_end_of_the_span(engine: Engine) -> None:
    early, first, last, late = (at(hours) for hours in (0, 1, 5, 6))
    other, open_, gap, unknown = at(2, symbol="ETHUSDT"), at(2), at(2), at(2, decision="reject")
    fallback = at(3, regime="volatile", served_regime="all")
    write(engine, early, first, last, late, other, open_, gap, unknown, fallback)
    known = [outcome(row, label_end=AS_OF + 6 * HOUR) for row in (early, first, last, late, other, fallback)]
    known.append(outcome(gap, label=None, label_end=None))
    known.append(outcome(unknown, label_end=AS_OF + 6 * HOUR + timedelta(microseconds=1)))
    with transaction(engine) as session:
        assert predictions.resolve(session, known) == len(known)
        found = predictions.resolved(
            session, symbol="BTCUSDT", interval="1h", since=AS_OF + HOUR, until=AS_OF + 6 * HOUR
        )
    assert [str(row.id) for row in found] == [first["id"], fallback["id"], last["id"]]
    assert [(row.regime, row.served_regime, row.label, row.net_return_atr) for row in found] == [
        ("trending", None, 1.0, 0.8),
        ("volatile", "all", 1.0, 0.8),
        ("trending", None, 1.0, 0.8),
    ]


SIZE = Size(symbols=10, candles_each=10, models=400, jobs=10, predictions=20_000, audit_rows=10)


def test_every_query_reads_its_rows_by_index(engine: Engine) -> None:
    fill(engine, SIZE)
    now = datetime(2030, 1, 1, tzinfo=UTC)
    some = predictions.Outcome(
        id=UUID(int=7), signal_time=now, label=1, label_end=now, net_return_atr=0.5, resolved_at=now
    )
    queries = {
        "get": lambda s: predictions.get(s, UUID(int=7)),
        "recent": lambda s: predictions.recent(s, limit=50),
        "recent of a key": lambda s: predictions.recent(
            s, symbol="S1", interval="1h", regime="trending", limit=50
        ),
        "accepted": lambda s: predictions.recent(s, decision="accept", limit=50),
        "due": lambda s: stored_outcomes.due(s, now, 500),
        "next due": lambda s: stored_outcomes.due(s, now, 500, after=(now - HOUR, UUID(int=7))),
        "resolve": lambda s: predictions.resolve(s, [some]),
        "resolved": lambda s: predictions.resolved(
            s, symbol="S1", interval="1h", since=now - 90 * 24 * HOUR, until=now
        ),
    }
    found = {name: {str(plan) for plan in plans(engine, query)} for name, query in queries.items()}
    key, open_, primary = (f"{kind}_ml_performance_tracking" for kind in ("ix", "ix", "pk"))
    by_key = {f"Index Scan {key}_key", f"Index Only Scan {key}_key"}
    assert found["get"] == {f"Index Scan {primary}"}
    assert found["recent"] | found["recent of a key"] == by_key
    # So few of this many that the planner may go by bitmap; of a million it does not.
    assert any(plan.endswith(f"{key}_decision") for plan in found["accepted"])
    assert not any("Seq Scan" in plan for plan in found["accepted"])
    for name in ("due", "next due"):
        assert f"Index Scan {open_}_open" in found[name]
        assert "Seq Scan ml_performance_tracking" not in found[name]
    assert found["resolve"] <= {
        f"Index Scan {primary}",
        f"Index Scan {open_}_open",
        "ModifyTable ml_performance_tracking",
    }
    assert found["resolved"] == {f"Index Scan {key}_key"}


@pytest.fixture
def timescale(timescale_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The migrated TimescaleDB in Node, which COPY FROM STDIN would end; the rest is the same."""
    monkeypatch.setattr(predictions, "_stage", _stage_by_insert)
    upgrade(timescale_server)
    yield create_engine(timescale_server, application_name="tests", pooled=False)
    downgrade(timescale_server, revision="base")


def _stage_by_insert(session: Session, lines: str) -> None:
    session.execute(predictions._STAGING)
    names = ("position", *predictions.COLUMNS)
    statement = f"INSERT INTO staged_predictions VALUES ({', '.join(':' + name for name in names)})"
    for line in lines.splitlines():
        values = [None if field == "\\N" else field.replace("\\\\", "\\") for field in line.split("\t")]
        session.execute(sa.text(statement), dict(zip(names, values, strict=True)))


def test_a_hypertable_takes_them_once_and_finds_them_compressed_or_not(timescale: Engine) -> None:
    given = [at(0), at(24 * 60), at(24 * 60 + 1, symbol="ETHUSDT")]
    assert [write(timescale, *given), write(timescale, *given)] == [3, 0]
    with timescale.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for chunk in connection.scalars(sa.text("SELECT show_chunks('ml_performance_tracking')")).all():
            connection.execute(sa.text(f"SELECT compress_chunk('{chunk}')"))
    assert write(timescale, *given) == 0
    with transaction(timescale) as session:
        assert predictions.resolve(session, [outcome(given[0]), outcome(given[2])]) == 2
        assert predictions.get(session, UUID(given[0]["id"])) is not None
        newest = predictions.recent(session, limit=2)
        assert [str(row.id) for row in newest] == [given[2]["id"], given[1]["id"]]
        (open_,) = stored_outcomes.due(session, AS_OF + 24 * 90 * HOUR, 50)
        assert str(open_.id) == given[1]["id"]
        (known,) = predictions.resolved(
            session, symbol="BTCUSDT", interval="1h", since=AS_OF, until=AS_OF + 24 * 90 * HOUR
        )
        assert str(known.id) == given[0]["id"]


def test_predictions_are_found_by_how_their_ids_begin(engine: Engine) -> None:
    ids = [f"{number:08x}-0000-4000-8000-ffffffffffff" for number in (0xABCDEF01, 0xABCDEF02)]
    write(engine, *(record(id=id_) for id_ in ids))
    with transaction(engine) as session:
        found = {
            digits: len(predictions.beginning(session, digits, 5)) for digits in ("abcdef01", "abc", "b")
        }
        (one,) = predictions.beginning(session, "abc", 1)
    assert found == {"abcdef01": 1, "abc": 2, "b": 0}
    assert str(one.id) == ids[0]


def test_recent_tells_those_with_an_outcome_from_those_without(engine: Engine) -> None:
    done, open_ = at(1), at(2)
    write(engine, done, open_)
    with transaction(engine) as session:
        assert predictions.resolve(session, [outcome(done)]) == 1
    with transaction(engine) as session:
        found = {
            wanted: [str(row.id) for row in predictions.recent(session, resolved=wanted, limit=5)]
            for wanted in (True, False, None)
        }
    assert found == {True: [done["id"]], False: [open_["id"]], None: [open_["id"], done["id"]]}
