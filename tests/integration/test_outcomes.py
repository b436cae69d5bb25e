"""Outcomes of recorded answers on a real database: the labels of training, never early, each once."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid5

import numpy as np
import pytest
import sqlalchemy as sa
from celery import Celery
from sqlalchemy.orm import Session

from db.models import Prediction
from ml.candles import to_datetime
from ml.config import LabelConfig
from ml.keys import ModelKey
from ml.noise import clean
from ml.rows import SignalRows
from tasks import outcomes
from tests.integration.answers import (
    HORIZON,
    HOUR,
    LATER,
    MICROSECOND,
    NAMES,
    System,
    abstained,
    batch,
    crashed,
    expected,
    got,
    record,
    traded,
    with_columns,
)
from tests.integration.db.rows import race
from tests.processes import RunningProcess

pytestmark = pytest.mark.inference

NAN = float("nan")


@pytest.fixture
def system(database_url: str) -> System:
    return System(database_url)


def test_outcomes_are_the_labels_that_training_gives_the_same_signals(system: System) -> None:
    rows, end = batch(), to_datetime(traded().close_time[-1])
    system.store(traded())
    system.add([record(rows, row) for row in range(len(rows))])

    done = system.run(end)

    found = system.predictions()
    closed = [row for row in found if row.horizon_end <= end]
    assert len(found) == len(rows) > 2000
    assert len(closed) < len(rows)
    assert got(closed) == expected(rows, until=end)
    assert {row.resolved_at for row in closed} == {end}
    assert {row.resolved_at for row in found if row.horizon_end > end} == {None}
    reasons = [row.details.get("unresolved") for row in closed]
    assert reasons.count("gap") > 5
    assert done["labelled"] == reasons.count(None)
    assert done["unlabelled"] == reasons.count("gap")


def test_what_the_noise_filter_drops_stops_a_trade_all_the_same(system: System) -> None:
    rows = batch(crash=True)
    near = np.flatnonzero(np.abs(np.searchsorted(traded().close_time, rows.close_time) - 2000) < 20)
    assert len(clean(crashed()).candles) < len(traded())
    system.store(crashed())
    system.add([record(rows, int(row)) for row in near])

    system.run(LATER)

    assert got(system.predictions()) == expected(rows.take(near), until=LATER)
    at_the_crash = rows.label_end[near] == traded().close_time[2000]
    assert at_the_crash.any()


def test_nothing_is_resolved_a_microsecond_before_its_horizon_ends_though_a_barrier_was_touched(
    system: System,
) -> None:
    rows = batch()
    quick = [
        int(row)
        for row in np.flatnonzero(rows.label_end - rows.close_time == np.timedelta64(1, "h"))[:5]
        if rows.label[row] == 1
    ]
    assert quick
    system.store(traded())
    system.add([record(rows, row) for row in quick])
    for row in quick:
        end = to_datetime(rows.close_time[row]) + HORIZON
        before = len(system.resolved())

        assert system.run(end - MICROSECOND) == {"labelled": 0, "unlabelled": 0, "keys": []}
        assert len(system.resolved()) == before
        assert system.run(end)["labelled"] == 1
        assert len(system.resolved()) == before + 1


def test_a_longer_horizon_of_the_models_is_waited_for_though_the_record_says_less(system: System) -> None:
    rows = batch()
    end = to_datetime(rows.close_time[700]) + HORIZON
    system.store(traded())
    model = system.model(ModelKey("BTCUSDT", "1h", "trending"), {"horizon_bars": 24})
    system.add([record(rows, 700, model_id=model)])
    system.store(traded().until(end))

    assert system.run(end)["labelled"] == 0
    assert system.run(end + HORIZON - MICROSECOND)["labelled"] == 0
    assert system.run(end + HORIZON)["labelled"] == 1


def test_candles_that_come_late_keep_an_answer_open_and_resolve_it_when_they_are_in(system: System) -> None:
    rows = batch()
    end = to_datetime(rows.close_time[700]) + HORIZON
    system.store(traded().until(end - HOUR))
    system.add([record(rows, 700)])

    assert system.run(end + timedelta(days=2))["labelled"] == 0
    system.store(traded().until(end))
    assert system.run(end + timedelta(days=2))["labelled"] == 1

    assert got(system.predictions()) == expected(rows.take(np.array([700])), until=end)


def test_candles_that_never_come_are_given_up_after_thirty_days(system: System) -> None:
    rows = batch()
    end = to_datetime(rows.close_time[700]) + HORIZON
    system.store(traded().until(end - HOUR))
    system.add([record(rows, 700)])

    assert system.run(end + timedelta(days=30)) == {"labelled": 0, "unlabelled": 0, "keys": []}
    assert system.run(end + timedelta(days=30) + MICROSECOND)["unlabelled"] == 1

    assert got(system.predictions()) == [(None, None, None, "no_candle")]


@pytest.mark.parametrize("other", ["ETHUSDT", "BTCUSDT"], ids=["another symbol", "another interval"])
def test_candles_of_a_series_that_is_not_stored_are_not_waited_for(system: System, other: str) -> None:
    rows = batch()
    end = to_datetime(rows.close_time[700]) + HORIZON
    system.store(traded(), symbol=other)
    system.add([record(rows, 700, interval="1h" if other == "ETHUSDT" else "4h")])

    assert system.run(end - MICROSECOND)["unlabelled"] == 0
    assert system.run(end)["unlabelled"] == 1

    assert got(system.predictions()) == [(None, None, None, "no_candle")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"atr": None}, "no_atr"),
        ({"atr": 0.0}, "no_atr"),
        ({"entry_price": 1.0}, "other_market"),
        ({"signal_time": "2018-01-01T00:00:00Z", "horizon_end": "2018-01-01T12:00:00Z"}, "no_candle"),
        ({"signal_time": "2019-06-26T10:00:00Z", "horizon_end": "2019-06-26T22:00:00Z"}, "no_candle"),
    ],
    ids=["no ATR", "no range", "another market's price", "before the candles", "in a gap"],
)
def test_what_cannot_have_an_outcome_is_resolved_with_its_reason(
    system: System, changes: dict[str, Any], reason: str
) -> None:
    system.store(traded())
    system.add([record(batch(), 700, **changes)])

    assert system.run(LATER)["unlabelled"] == 1

    found = system.predictions()
    assert got(found) == [(None, None, None, reason)]
    assert found[0].resolved_at == LATER
    assert found[0].details["threshold"] == 0.55
    assert system.run(LATER) == {"labelled": 0, "unlabelled": 0, "keys": []}


def test_each_answer_is_held_to_the_barriers_that_its_model_learned(system: System) -> None:
    wide = LabelConfig(profit_take_atr=2.5, stop_loss_atr=1.5, fee_bps=1.0)
    rows, other = batch(), batch(wide)
    system.store(traded())
    model = system.model(ModelKey("BTCUSDT", "1h", "trending"), wide.model_dump())
    system.add([record(rows, row, model_id=model if row % 2 else None) for row in range(300, 500)])

    system.run(LATER)

    own = expected(rows.take(np.arange(300, 500)), until=LATER)
    its = expected(other.take(np.arange(300, 500)), until=LATER)
    assert got(system.predictions()) == [its[i] if i % 2 else own[i] for i in range(200)]
    assert [label for label, *_ in own] != [label for label, *_ in its]


def test_without_a_model_the_settings_barriers_hold(database_url: str) -> None:
    wide = LabelConfig(profit_take_atr=2.5, stop_loss_atr=1.5)
    system = System(database_url, training={"labels": wide.model_dump()})
    system.store(traded())
    system.add([abstained(batch(), row) for row in range(300, 400)])

    system.run(LATER)

    assert got(system.predictions()) == expected(batch(wide).take(np.arange(300, 400)), until=LATER)


def test_a_second_run_changes_nothing(system: System) -> None:
    model = system.model(ModelKey("BTCUSDT", "1h", "trending"))
    system.store(traded())
    system.add([record(batch(), row, model_id=model) for row in range(500, 700)])
    system.run(LATER)
    before = everything(system)

    assert system.run(LATER + HOUR) == {"labelled": 0, "unlabelled": 0, "keys": []}

    assert everything(system) == before
    assert before["predictions"]
    assert before["live"]


def everything(system: System) -> dict[str, list[str]]:
    """Every row, xmin included: even one written again with equal values shows."""
    with system.resources.transaction() as session:
        return {
            "predictions": _texts(session, "ml_performance_tracking"),
            "live": _texts(session, "ml_eval_history"),
        }


def _texts(session: Session, table: str) -> list[str]:
    return list(session.scalars(sa.text(f"SELECT xmin || ' ' || t::text FROM {table} AS t ORDER BY 1")))


def test_two_runs_at_once_resolve_each_answer_once(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "BATCH", 25)
    rows = batch()
    model = system.model(ModelKey("BTCUSDT", "1h", "trending"))
    system.store(traded())
    system.add([record(rows, row, model_id=model) for row in range(500, 900)])

    done = race(lambda: system.run(LATER), lambda: system.run(LATER))

    assert got(system.predictions()) == expected(rows.take(np.arange(500, 900)), until=LATER)
    assert sum(part["labelled"] + part["unlabelled"] for part in done) == 400


def test_a_corrected_signal_candle_moves_no_entry_and_is_noted(system: System) -> None:
    rows = batch()
    hits = np.flatnonzero((rows.label == 1) & (rows.direction == 1))
    ats = np.searchsorted(traded().close_time, rows.close_time[hits])
    best = np.array([traded().high[at + 1 : at + 13].max() for at in ats])
    # From a close 0.9 ATR higher the profit-take is 1.9 away: of these signals none would have reached it.
    near = np.flatnonzero(best < rows.entry_price[hits] + 1.9 * rows.atr[hits])
    row, at = int(hits[near[0]]), int(ats[near[0]])
    close = traded().close.copy()
    close[at] += 0.9 * rows.atr[row]
    system.store(traded())
    system.store(with_columns(traded(), close=close))
    system.add([record(rows, row)])

    system.run(LATER)

    found = system.predictions()
    assert got(found) == expected(rows.take(np.array([row])), until=LATER)
    assert found[0].details == {"threshold": 0.55, "stored_close": close[at]}


def test_an_answer_to_features_alone_is_held_to_barriers_of_their_own_range(system: System) -> None:
    """Without an entry and an ATR in the record; natr_14 is ATR / close, as float32."""
    rows = batch()
    some = range(500, 700)
    bare = {"entry_price": None, "atr": None, "metadata": {"threshold": 0.55, "source": "features"}}
    system.store(traded())
    system.add([record(rows, row, features=features(rows, row), **bare) for row in some])
    system.add(
        [
            record(
                rows, 700, features=features(rows, 700, natr_14=natr), id=str(uuid5(NAMES, f"{natr}")), **bare
            )
            for natr in (NAN, 0.0, -0.01)
        ]
    )

    system.run(LATER)

    found = system.predictions()
    labels = expected(rows.take(np.arange(500, 700)), until=LATER)
    assert [one[0::3] for one in got(found[:200])] == [one[0::3] for one in labels]
    with_label = [index for index in range(200) if found[index].label is not None]
    assert len(with_label) > 180
    assert [found[index].details["derived_atr"] for index in with_label] == pytest.approx(
        [rows.atr[500 + index] for index in with_label], rel=1e-6
    )
    assert [row.details.get("unresolved") for row in found[200:]] == ["no_atr"] * 3


def features(rows: SignalRows, row: int, **changes: float) -> str:
    """As recorded."""
    values = rows.features[row].astype("<f4")
    for name, value in changes.items():
        values[rows.feature_names.index(name)] = value
    return base64.b64encode(values.tobytes()).decode()


def test_a_correction_counts_from_when_it_was_known(system: System) -> None:
    """A crash that the exchange added to the horizon's first candle stops what took its profit before."""
    rows = batch()
    row = int(np.flatnonzero((rows.label == 1) & (rows.direction == 1))[100])
    at = int(np.searchsorted(traded().close_time, rows.close_time[row]))
    end = to_datetime(rows.close_time[row]) + HORIZON
    low = traded().low.copy()
    low[at + 1] = rows.entry_price[row] - 3 * rows.atr[row]
    system.store(traded(), now=end)
    system.store(with_columns(traded(), low=low), now=end + HOUR)
    system.add([record(rows, row), record(rows, row, id=str(uuid5(NAMES, "asked later")), symbol="BTCUSDT")])
    with system.resources.transaction() as session:
        session.execute(
            sa.update(Prediction)
            .where(Prediction.id == uuid5(NAMES, "asked later"))
            .values(horizon_end=end + HOUR)
        )

    system.run(end)
    system.run(end + HOUR)

    found = {row.id: row for row in system.predictions()}
    assert found[uuid5(NAMES, str(row))].label == 1
    late = found[uuid5(NAMES, "asked later")]
    assert (late.label, late.label_end) == (0, to_datetime(traded().close_time[at + 1]))


def test_a_worker_of_the_maintenance_queue_resolves_what_is_due(
    system: System, redis_url: str, worker_process: Callable[..., RunningProcess]
) -> None:
    rows = batch()
    system.store(traded())
    system.add([record(rows, row) for row in range(500, 520)])
    worker_process("maintenance", "--concurrency=1")

    with Celery("sender", broker=redis_url, set_as_current=False) as app:
        app.send_task("tasks.resolve_outcomes", queue="maintenance")

    deadline = time.monotonic() + 60
    while len(system.resolved()) < 20 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert got(system.predictions()) == expected(rows.take(np.arange(500, 520)), until=LATER)
