"""No query that the system makes reads a large table from end to end."""

from __future__ import annotations

import pytest
from sqlalchemy.engine import Engine

from benchmarks.queries import Size, fill, plans, queries

pytestmark = pytest.mark.database

SIZE = Size(symbols=10, candles_each=3_000, models=400, jobs=10_000, predictions=20_000, audit_rows=5_000)

LARGE = {
    "candles",
    "ml_audit_log",
    "ml_eval_history",
    "ml_model_artifacts",
    "ml_performance_tracking",
    "ml_training_jobs",
}


def test_every_query_finds_its_rows_of_large_tables_by_index(engine: Engine) -> None:
    fill(engine, SIZE)
    found = {name: plans(engine, query) for name, query in queries(SIZE).items()}
    assert {
        name: plan.relation
        for name, nodes in found.items()
        for plan in nodes
        if plan.node == "Seq Scan" and plan.relation in LARGE
    } == {}
    by_index = {plan.index for nodes in found.values() for plan in nodes if plan.index}
    assert {"pk_candles", "ix_candles_known", "uq_ml_models_champion", "ix_ml_eval_history_key"} <= by_index
    assert {"ix_ml_performance_tracking_key", "ix_ml_performance_tracking_open"} <= by_index
