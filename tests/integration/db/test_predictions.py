"""Predictions are written once, whoever writes them, and refused whole."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import predictions
from db.session import transaction
from ml.errors import InputRejected
from tests.integration.db.prediction_rows import FEATURES, record, stored, write
from tests.integration.db.rows import add_model, race

pytestmark = pytest.mark.inference

AWKWARD = 'tab\t, newline\n, return\r, quote ", comma, brace {}, back\\slash, \\N, ü, 😀'


def test_a_record_comes_back_as_it_was_written(engine: Engine) -> None:
    with transaction(engine) as session:
        model_id = add_model(session).id
    given = record(
        signal_id=AWKWARD,
        model_id=model_id,
        served_regime="all",
        direction=-1,
        patterns=["CDLDOJI", AWKWARD, ""],
        metadata={"note": AWKWARD, "nested": {"list": [1, 2.5, None, True]}},
        confidence=0.1 + 0.2,
        signal_time="2019-10-17T02:00:00.000001+02:00",
    )
    assert write(engine, given) == 1
    (row,) = stored(engine)
    found = {name: getattr(row, "details" if name == "metadata" else name) for name in given}
    times = ("signal_time", "as_of", "horizon_end")
    assert found == given | {
        "id": UUID(given["id"]),
        "features": FEATURES.tobytes(),
        **{name: datetime.fromisoformat(given[name]) for name in times},
    }
    assert (row.label, row.label_end, row.net_return_atr, row.resolved_at) == (None, None, None, None)


def test_every_value_that_may_be_missing_may_be_none(engine: Engine) -> None:
    nothing = dict.fromkeys(
        (
            "signal_id", "model_id", "served_regime", "pattern_confidence", "confidence",
            "expected_net_return_atr", "out_of_distribution", "model_age_seconds", "latency_ms", "features",
            "entry_price", "atr",
        )
    )  # fmt: skip
    given = record(**nothing, decision="abstain", abstain_reason="no_model", regime="all", patterns=[])
    assert write(engine, given) == 1
    (row,) = stored(engine)
    assert [getattr(row, name) for name in nothing] == [None] * len(nothing)
    assert (row.patterns, row.decision, row.abstain_reason) == ([], "abstain", "no_model")


def test_writing_again_changes_nothing_and_of_two_with_one_id_the_first_stays(engine: Engine) -> None:
    first = record(confidence=0.6)
    again = first | {"confidence": 0.7}
    other = record()
    assert write(engine, first, again, other) == 2
    assert write(engine, again, other, again) == 0
    assert {str(row.id): row.confidence for row in stored(engine)} == {first["id"]: 0.6, other["id"]: 0.6}


def test_writing_nothing_is_fine(engine: Engine) -> None:
    assert write(engine) == 0


def test_two_batches_in_one_transaction_are_both_written(engine: Engine) -> None:
    with transaction(engine) as session:
        assert predictions.write(session, [record()]) == 1
        assert predictions.write(session, [record(), record()]) == 2
    assert len(stored(engine)) == 3


def test_writers_of_the_same_records_in_other_orders_do_not_lock_each_other_out(engine: Engine) -> None:
    records = [record() for _ in range(2000)]
    new = race(*(lambda r=order: write(engine, *r) for order in (records, records[::-1], records)))
    assert sorted(new) == [0, 0, 2000]
    assert len(stored(engine)) == 2000


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"confidence": "high"}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
        ({"entry_price": float("inf")}, "entry_price"),
        ({"direction": True}, "direction"),
        ({"model_age_seconds": [1]}, "model_age_seconds"),
        ({"signal_time": "2019-10-17T00:00:00"}, "signal_time"),
        ({"as_of": "yesterday"}, "as_of"),
        ({"horizon_end": 1571270400}, "horizon_end"),
        ({"features": "?"}, "features"),
        ({"features": 5}, "features"),
        ({"patterns": "CDLDOJI"}, "patterns"),
        ({"patterns": [1]}, "patterns"),
        ({"metadata": [1]}, "metadata"),
        ({"metadata": {"x": float("nan")}}, "metadata"),
        ({"signal_id": 7}, "signal_id"),
        ({"signal_id": "\ud800"}, "signal_id"),
        ({"label": 1}, "record"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(
    engine: Engine, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InputRejected) as refused:
        write(engine, record(), record(**changes))
    assert refused.value.field == field
    assert stored(engine) == []


def test_a_column_left_out_is_nothing_where_the_table_allows_that(engine: Engine) -> None:
    for name in predictions.COLUMNS:
        given = record()
        del given[name]
        if predictions.Prediction.__table__.c[name].nullable:
            assert write(engine, given) == 1
        else:
            with pytest.raises(sa.exc.IntegrityError, match=name):
                write(engine, given)
    assert len(stored(engine)) >= 10


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "7"},
        {"signal_id": "\x00"},
        {"metadata": {"x": "\x00"}},
        {"direction": 0.5},
        {"direction": 40_000},
        {"signal_time": "0001-01-01T00:00:00+23:00"},
    ],
)
def test_what_postgresql_cannot_read_is_a_data_error(engine: Engine, changes: dict[str, Any]) -> None:
    with pytest.raises((sa.exc.DataError, psycopg2.DataError)):
        write(engine, record(**changes))
    assert stored(engine) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"confidence": 1.7},
        {"direction": 3},
        {"symbol": "btc"},
        {"interval": "2h"},
        {"regime": "sleepy"},
        {"decision": "abstain"},
        {"decision": "accept", "abstain_reason": "no_model"},
        {"role": "guest"},
        {"model_id": 12345},
        {"horizon_end": None},
    ],
)
def test_what_the_table_refuses_is_an_integrity_error(engine: Engine, changes: dict[str, Any]) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        write(engine, record(), record(**changes))
    assert stored(engine) == []
