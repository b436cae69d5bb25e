"""The accuracy kept of a key: which signals it is of, and whose it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid5

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, precision_score, recall_score

from db import outcomes as stored_outcomes
from ml.candles import to_datetime
from ml.keys import REGIMES, ModelKey
from ml.live_accuracy import LiveAccuracy, live_accuracy
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
    record,
    traded,
)

pytestmark = pytest.mark.inference


@pytest.fixture
def system(database_url: str) -> System:
    return System(database_url)


def test_live_accuracy_of_a_key_is_kept_with_the_newest_model_that_answered(system: System) -> None:
    rows = batch()
    key = ModelKey("BTCUSDT", "1h", "trending")
    first, second, other = system.model(key), system.model(key), system.model(key)
    chosen = [int(row) for row in np.flatnonzero(rows.regime == REGIMES.index("trending"))[:400]]
    mine = [record(rows, row, model_id=first if row < chosen[300] else second) for row in chosen[:-20]]
    silent = [abstained(rows, row, model_id=other) for row in chosen[-20:]]
    nobodys = np.flatnonzero(rows.regime == REGIMES.index("volatile"))[:30]
    system.store(traded())
    system.add([*mine, *silent, *(abstained(rows, int(row)) for row in nobodys)])

    done = system.run(LATER)

    assert done["keys"] == ["BTCUSDT 1h trending", "BTCUSDT 1h volatile"]
    (kept,) = system.live()
    assert (kept.key, kept.kind, kept.model_id, kept.as_of) == (key, "live", second, LATER)
    labelled = np.array([row for row in chosen[:-20] if not np.isnan(rows.label[row])])
    label = rows.label[labelled]
    confidence = np.array([record(rows, int(row))["confidence"] for row in labelled])
    accuracy = LiveAccuracy.from_json(kept.metrics)
    assert (accuracy.resolved, accuracy.answered) == (400, len(labelled))
    assert accuracy.abstained == {"no_model": 20}
    assert accuracy.unlabelled == {"gap": 380 - len(labelled)} or len(labelled) == 380
    of_first = int((labelled < chosen[300]).sum())
    assert accuracy.answered_by == {str(first): of_first, str(second): len(labelled) - of_first}
    assert (kept.rows, kept.base_rate) == (len(labelled), label.mean())
    assert kept.precision == pytest.approx(precision_score(label, confidence >= 0.55))
    assert kept.recall == pytest.approx(recall_score(label, confidence >= 0.55))
    assert kept.brier == pytest.approx(brier_score_loss(label, confidence))
    net = (rows.gross_return_atr - rows.cost_atr)[labelled]
    assert kept.net_return_atr == pytest.approx(net[confidence > 0.6].mean())
    assert accuracy.precision.low is not None
    with system.resources.transaction() as session:
        found = outcomes.live_accuracy(session, since=datetime(2018, 12, 1, tzinfo=UTC), until=LATER)
    assert [str(found_key) for found_key, _ in found] == done["keys"]
    assert found[0][1] == accuracy
    assert (found[1][1].resolved, found[1][1].answered) == (30, 0)


def test_the_window_is_by_the_signals_time_and_their_horizons_end(system: System) -> None:
    rows = batch()
    system.store(traded())
    system.add([record(rows, row, regime="trending") for row in range(500, 600)])
    system.run(LATER)
    since, until = to_datetime(rows.close_time[520]), to_datetime(rows.close_time[580])

    with system.resources.transaction() as session:
        ((_, found),) = outcomes.live_accuracy(session, since=since, until=until)

    times = [to_datetime(time) for time in rows.close_time[500:600]]
    assert found.resolved == sum(since <= time <= until - HORIZON for time in times)


def test_a_signal_asked_for_again_counts_once_and_a_shadow_not_at_all(system: System) -> None:
    rows = batch()
    system.store(traded())
    later = (to_datetime(rows.close_time[700]) + HOUR).isoformat()
    again = [
        record(rows, 700, regime="trending", confidence=0.9, as_of=later, id=str(uuid5(NAMES, f"again {n}")))
        for n in range(5)
    ]
    silent = abstained(rows, 701, regime="trending", as_of="2017-01-01T00:00:00Z", id=str(uuid5(NAMES, "s")))
    shadow = record(rows, 702, regime="trending", role="shadow")
    system.add([record(rows, 700, regime="trending", confidence=0.6), *again, silent, shadow])
    system.add([record(rows, 701, regime="trending")])
    system.run(LATER)

    with system.resources.transaction() as session:
        ((_, found),) = outcomes.live_accuracy(session, since=datetime(2018, 12, 1, tzinfo=UTC), until=LATER)

    label = rows.label[[700, 701]]
    confidence = np.array([0.6, record(rows, 701)["confidence"]])
    assert (found.resolved, found.answered, found.abstained) == (2, 2, {})
    assert found.brier.value == pytest.approx(((confidence - label) ** 2).mean())
    assert len(system.resolved()) == 9


@pytest.mark.parametrize(
    "foreign",
    [{"entry_price": 1.0}, {"atr": None, "entry_price": None}],
    ids=["candles of another market", "without a range"],
)
def test_an_answer_without_an_outcome_takes_no_others_place(system: System, foreign: dict[str, Any]) -> None:
    rows = batch()
    time = to_datetime(rows.close_time[700])
    system.store(traded())
    first = record(rows, 700, regime="trending", confidence=0.9, id=str(uuid5(NAMES, "f")), **foreign)
    own = record(rows, 700, regime="trending", confidence=0.6, as_of=(time + HOUR / 2).isoformat())
    system.add([first, own])
    system.run(LATER)

    found = only(system)

    assert (found.resolved, found.answered, found.unlabelled) == (1, 1, {})
    assert found.brier.value == pytest.approx((0.6 - rows.label[700]) ** 2)


def test_answers_given_later_than_a_candle_after_the_close_do_not_count_whatever_came_of_them(
    system: System,
) -> None:
    rows = batch()
    system.store(traded())
    took = rows.label_end - rows.close_time
    slow = [int(row) for row in np.flatnonzero(took > np.timedelta64(4, "h"))[100:104]]
    for row, late in zip(slow, (timedelta(0), HOUR, HOUR + MICROSECOND, 3 * HOUR), strict=True):
        as_of = (to_datetime(rows.close_time[row]) + late).isoformat()
        system.add([record(rows, row, regime="trending", as_of=as_of)])
    quick = int(np.flatnonzero(took == np.timedelta64(1, "h"))[100])
    stale = (to_datetime(rows.close_time[quick]) + 5 * HOUR).isoformat()
    system.add([abstained(rows, quick, regime="trending", as_of=stale, abstain_reason="stale_signal")])
    system.run(LATER)

    found = only(system)

    confidence = np.array([record(rows, row)["confidence"] for row in slow[:2]])
    assert (found.answered, found.abstained) == (2, {"stale_signal": 1})
    assert found.brier.value == pytest.approx(((confidence - rows.label[slow[:2]]) ** 2).mean())


def test_of_one_symbol_no_other_is_read(system: System) -> None:
    rows = batch()
    for symbol in ("BTCUSDT", "ETHUSDT"):
        system.store(traded(), symbol=symbol)
        system.add(
            [
                record(rows, row, symbol=symbol, regime="trending", id=str(uuid5(NAMES, f"{symbol} {row}")))
                for row in (700, 701)
            ]
        )
    system.run(LATER)
    span: dict[str, Any] = {"since": datetime(2018, 12, 1, tzinfo=UTC), "until": LATER}

    with system.resources.transaction() as session:
        whole = outcomes.live_accuracy(session, **span)
        ether = outcomes.live_accuracy(session, symbol="ETHUSDT", **span)
        none = outcomes.live_accuracy(session, symbol="SOLUSDT", **span)
        keys = stored_outcomes.keys(session, "ETHUSDT")

    assert [str(key) for key, _ in whole] == ["BTCUSDT 1h trending", "ETHUSDT 1h trending"]
    assert (ether, none) == (whole[1:], [])
    assert [str(key) for key in keys] == ["ETHUSDT 1h trending"]


def test_a_run_that_dies_over_one_keys_figures_keeps_those_of_the_keys_before(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = batch()
    system.store(traded())
    model = system.model(ModelKey("BTCUSDT", "1h", "trending"))
    for row, regime in ((700, "trending"), (701, "sideways")):
        system.add([record(rows, row, regime=regime, model_id=model)])
    judged: list[Any] = []

    def dies_at_the_second(*args: Any, **options: Any) -> LiveAccuracy:
        judged.append(args)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return live_accuracy(*args, **options)

    monkeypatch.setattr("tasks.outcomes.judge", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        system.run(LATER)

    assert [str(row.key) for row in system.live()] == ["BTCUSDT 1h sideways"]
    assert len(system.resolved()) == 2


def test_records_without_a_horizon_are_judged_in_blocks_of_candles(system: System) -> None:
    """Blocks of no length would be as many as there are microseconds."""
    rows = batch()
    system.store(traded())
    for row in (700, 900):
        system.add(
            [record(rows, row, regime="trending", horizon_end=to_datetime(rows.close_time[row]).isoformat())]
        )
    system.run(LATER)

    assert only(system).answered == 2


def only(system: System) -> LiveAccuracy:
    """Of the one key."""
    with system.resources.transaction() as session:
        ((_, found),) = outcomes.live_accuracy(session, since=datetime(2018, 12, 1, tzinfo=UTC), until=LATER)
    return found
