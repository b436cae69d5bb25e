from __future__ import annotations

import dataclasses
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy.engine import Engine

from db import evaluations, references
from db.session import transaction
from ml.evaluation import Estimate, Evaluation
from tests.integration.db.rows import AS_OF, KEY, add_model, reference

pytestmark = pytest.mark.database


def evaluation(f1: float | None) -> Evaluation:
    """Every estimate 0.5 within [0.4, 0.6], but F1; plain fields by their type."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(Evaluation):
        plain: dict[str, object] = {"int": 250, "float": 0.57, "str": "2019-10-01T00:00:00"}
        values[field.name] = plain.get(str(field.type), Estimate(0.5, 0.4, 0.6))
    values["f1"] = Estimate(f1, None, None)
    return Evaluation(**values)  # type: ignore[arg-type]


def test_reference_comes_back_bit_for_bit_in_the_order_of_the_matrix(engine: Engine) -> None:
    given = reference()
    with transaction(engine) as session:
        model_id = add_model(session).id
        references.save(session, model_id, given)
        references.save(session, model_id, given)
    with transaction(engine) as session:
        found = references.load(session, model_id)
        assert references.load(session, model_id + 1) is None
    assert found is not None
    assert found.rows == 4321
    assert [(f.name, f.importance) for f in found.features] == [("rsi", 0.75), ("adx", 0.25)]
    for was, now in zip(given.features, found.features, strict=True):
        for name in ("sample", "edges", "shares"):
            before, after = getattr(was, name), getattr(now, name)
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)


def test_evaluation_is_recorded_once_a_job_with_its_numbers(engine: Engine) -> None:
    with transaction(engine) as session:
        model_id = add_model(session).id

        def record(f1: float | None, job_id: str | None = "job", days: int = 0) -> bool:
            return evaluations.record(
                session,
                key=KEY,
                model_id=model_id,
                kind="challenger",
                evaluation=evaluation(f1),
                as_of=AS_OF + timedelta(days=days),
                job_id=job_id,
                promote=False,
                decision={"reasons": ["f1"]},
            )

        assert record(0.55)
        assert not record(0.55)
        assert record(None, job_id="next", days=1)
    with transaction(engine) as session:
        found = evaluations.recent(session, KEY, 10)
        assert [(row.job_id, row.f1, row.auc, row.rows) for row in found] == [
            ("next", None, 0.5, 250),
            ("job", 0.55, 0.5, 250),
        ]
        assert Evaluation.from_json(found[1].metrics) == evaluation(0.55)
        assert (found[1].promote, found[1].decision) == (False, {"reasons": ["f1"]})
