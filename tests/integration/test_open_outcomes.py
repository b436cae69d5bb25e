"""Answers whose outcome is not known yet: whom they keep waiting (nobody)."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid5

import pytest

from db import outcomes as stored_outcomes
from ml.candles import to_datetime
from tasks import outcomes
from tests.integration.answers import (
    HORIZON,
    HOUR,
    LATER,
    NAMES,
    System,
    batch,
    record,
    traded,
)

pytestmark = pytest.mark.inference

NAN = float("nan")


@pytest.fixture
def system(database_url: str) -> System:
    return System(database_url)


def test_answers_that_stay_open_do_not_hide_those_behind_them(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "BATCH", 10)
    rows = batch()
    now = to_datetime(rows.close_time[630]) + HORIZON
    system.store(traded().until(now))
    system.store(traded().until(to_datetime(rows.close_time[500])), symbol="ETHUSDT")
    system.add(
        [record(rows, row, symbol="ETHUSDT", id=str(uuid5(NAMES, f"e{row}"))) for row in range(500, 560)]
    )
    system.add([record(rows, row) for row in range(600, 630)])

    done = system.run(now)

    assert done["labelled"] + done["unlabelled"] == 30
    assert {row.symbol for row in system.resolved()} == {"BTCUSDT"}


def test_answers_that_wait_for_candles_are_passed_over(system: System) -> None:
    """Forty older ones wait, of a series that stands still and of one that is an hour short."""
    rows = batch()
    now = to_datetime(rows.close_time[640]) + HORIZON
    system.store(traded().until(now))
    system.store(traded().until(to_datetime(rows.close_time[500])), symbol="ETHUSDT")
    system.store(traded().until(to_datetime(rows.close_time[500]) + HORIZON - HOUR), symbol="SOLUSDT")
    system.add(
        [
            record(rows, row, symbol=symbol, id=str(uuid5(NAMES, f"{symbol} {row}")))
            for row in range(500, 520)
            for symbol in ("ETHUSDT", "SOLUSDT")
        ]
    )
    system.add([record(rows, row) for row in range(600, 609)])

    def due(now: datetime = now) -> list[str]:
        with system.resources.transaction() as session:
            return [row.symbol for row in stored_outcomes.due(session, now, 10)]

    assert due() == ["BTCUSDT"] * 9
    system.run(now)
    assert due() == []
    system.store(traded().until(to_datetime(rows.close_time[500]) + HORIZON), symbol="SOLUSDT")
    assert set(due()) == {"SOLUSDT"}
    end = to_datetime(rows.close_time[501]) + HORIZON
    assert set(due(end + timedelta(days=30, microseconds=1))) == {"ETHUSDT", "SOLUSDT"}


def test_after_its_time_a_run_leaves_the_rest_to_the_next(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "BATCH", 10)
    monkeypatch.setattr(outcomes, "SECONDS", 0.0)
    system.store(traded())
    system.add([record(batch(), row) for row in range(500, 530)])

    assert system.run(LATER) == {"labelled": 0, "unlabelled": 0, "keys": []}
    monkeypatch.undo()
    assert len(system.run(LATER)["keys"]) > 0
    assert len(system.resolved()) == 30
