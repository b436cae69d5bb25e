"""What a finished check is told in."""

from __future__ import annotations

from typing import Any

import pytest

from ml.keys import ModelKey
from worker.drift_checking import Checked

pytestmark = pytest.mark.drift

REPORT: dict[str, Any] = {
    "state": "checked",
    "version": 3,
    "as_of": "2019-09-03T00:00:00+00:00",
    "severity": "none",
}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "none"),
        (
            {"not_checked": ["features", "scores"], "detail": "features and scores were not checked: few"},
            "none; features and scores were not checked: few",
        ),
        ({"detail": "about something else"}, "none"),
    ],
)
def test_a_check_says_what_it_left_out(more: dict[str, Any], told: str) -> None:
    checked = Checked(key=ModelKey("BTCUSDT", "1h", "trending"), task_id="t", report=REPORT | more)

    assert checked.sentence == f"version 3, candles up to 2019-09-03 00:00 UTC: {told}"
