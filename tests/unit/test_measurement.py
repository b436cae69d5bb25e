"""A row of the benchmarks' table: when it says MISSED."""

from __future__ import annotations

import pytest

from benchmarks.measurement import Measurement

pytestmark = pytest.mark.servers


@pytest.mark.parametrize(
    ("median", "limit", "at_least", "verdict"),
    [
        (1.0, None, False, ""),
        (1.0, 1.0, False, "ok"),
        (1.001, 1.0, False, "MISSED"),
        (1.6, 1.6, True, "ok"),
        (1.599, 1.6, True, "MISSED"),
    ],
)
def test_verdict_keeps_a_value_at_its_limit(
    median: float, limit: float | None, at_least: bool, verdict: str
) -> None:
    row = Measurement("a figure", median, "s", limit, 3, at_least=at_least)
    assert row.verdict == verdict
