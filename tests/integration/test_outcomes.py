"""Outcomes of recorded answers on a real database: the labels of training, never early, each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import pytest
import sqlalchemy as sa
from celery import Celery
from sklearn.metrics import brier_score_loss, precision_score, recall_score
from sqlalchemy.orm import Session

from db import candles, predictions
from db.models import EvaluationRow, ModelRow, Prediction
from ml.candles import Candles, to_datetime
from ml.config import LabelConfig
from ml.dataset import label_signals, read_market
from ml.keys import REGIMES, ModelKey
from ml.live_accuracy import LiveAccuracy
from ml.noise import clean
from ml.rows import SignalRows
from runtime.settings import Settings
from tasks import outcomes
from tasks.base import Resources
from tests.integration.db.rows import add_model, race
from tests.processes import RunningProcess
from tests.real_candles import real_candles

pytestmark = pytest.mark.inference

HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)
HORIZON = 12 * HOUR
LABELS = LabelConfig()
NAMES = UUID(int=3)
LATER = datetime(2024, 1, 1, tzinfo=UTC)


class SetClock:
    def __init__(self, now: datetime) -> None:
        self.at = now

    def now(self) -> datetime:
        return self.at


class System:
    """A database, a clock that stands where it is put, and what the tests do with them."""

    def __init__(self, database_url: str, **options: Any) -> None:
        self.clock = SetClock(LATER)
        settings = Settings(
            database_url=database_url, redis_url="redis://127.0.0.1:1/0", live_window_days=3650, **options
        )
        self.resources = Resources(lambda: settings, lambda _: self.clock)

    def store(self, series: Candles, *, now: datetime = LATER, symbol: str = "BTCUSDT") -> None:
        with self.resources.transaction() as session:
            candles.write(session, symbol=symbol, interval="1h", candles=series, source="test", now=now)

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        with self.resources.transaction() as session:
            assert predictions.write(session, records) == len(records)

    def model(self, key: ModelKey, labels: dict[str, Any] | None = None) -> int:
        with self.resources.transaction() as session:
            row = add_model(session, key)
            session.execute(
                sa.update(ModelRow).where(ModelRow.id == row.id).values(config={"labels": labels or {}})
            )
            return row.id

    def run(self, now: datetime) -> dict[str, Any]:
        self.clock.at = now
        return outcomes.resolve_due(self.resources)

    def predictions(self) -> list[Prediction]:
        with self.resources.transaction() as session:
            query = sa.select(Prediction).order_by(Prediction.signal_time, Prediction.direction)
            return list(session.scalars(query))

    def resolved(self) -> list[Prediction]:
        return [row for row in self.predictions() if row.resolved_at is not None]

    def live(self) -> list[EvaluationRow]:
        with self.resources.transaction() as session:
            query = sa.select(EvaluationRow).order_by(EvaluationRow.id)
            return list(session.scalars(query))


@pytest.fixture
def system(database_url: str) -> System:
    return System(database_url)


@cache
def traded() -> Candles:
    """Half a year with two gaps of over two candles in it."""
    whole = real_candles()
    return whole.take(whole.open_time >= np.datetime64("2018-12-20")).until(datetime(2019, 7, 5, tzinfo=UTC))


@cache
def crashed() -> Candles:
    """The same with a tick in it that looks like noise, and stopped every long position."""
    low = traded().low.copy()
    low[2000] /= 3
    return with_columns(traded(), low=low)


def with_columns(series: Candles, **columns: Any) -> Candles:
    names = ("open", "high", "low", "close", "volume")
    return Candles("1h", series.open_time, *(columns.get(name, getattr(series, name)) for name in names))


@cache
def batch(labels: LabelConfig = LABELS, crash: bool = False) -> SignalRows:
    """What training makes of the same candles."""
    candles = crashed() if crash else traded()
    market = read_market(clean(candles).candles)
    return label_signals(market, symbol="BTCUSDT", config=labels, traded=candles)


def record(rows: SignalRows, row: int, **changes: Any) -> dict[str, Any]:
    """The answer to one of the batch's signals, as an inference worker records it."""
    time = to_datetime(rows.close_time[row])
    made: dict[str, Any] = dict.fromkeys(predictions.COLUMNS)
    confidence = round(0.45 + (row * 7 % 23) / 100, 2)
    return (
        made
        | {
            "id": str(uuid5(NAMES, f"{row}")),
            "signal_time": time.isoformat(),
            "as_of": time.isoformat(),
            "symbol": "BTCUSDT",
            "interval": "1h",
            "regime": REGIMES[rows.regime[row]],
            "role": "champion",
            "direction": int(rows.direction[row]),
            "patterns": ["CDLDOJI"],
            "pattern_confidence": float(rows.pattern_confidence[row]),
            "confidence": confidence,
            "decision": "accept" if confidence > 0.6 else "reject",
            "entry_price": float(rows.entry_price[row]),
            "atr": float(rows.atr[row]),
            "horizon_end": (time + HORIZON).isoformat(),
            "metadata": {"threshold": 0.55},
        }
        | changes
    )


def abstained(rows: SignalRows, row: int, **changes: Any) -> dict[str, Any]:
    unknown: dict[str, Any] = {
        "confidence": None,
        "decision": "abstain",
        "abstain_reason": "no_model",
        "metadata": {},
    }
    return record(rows, row, **unknown | changes)


def expected(rows: SignalRows, *, until: datetime) -> list[tuple[Any, ...]]:
    """(label, its end, net return, reason) of each whose horizon has ended."""
    net = rows.gross_return_atr - rows.cost_atr
    return [
        (None, None, None, "gap")
        if np.isnan(rows.label[row])
        else (rows.label[row], to_datetime(rows.label_end[row]), pytest.approx(net[row], abs=1e-12), None)
        for row in range(len(rows))
        if to_datetime(rows.close_time[row]) + HORIZON <= until
    ]


def got(found: Sequence[Prediction]) -> list[tuple[Any, ...]]:
    return [(row.label, row.label_end, row.net_return_atr, row.details.get("unresolved")) for row in found]


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


@pytest.mark.parametrize("stored", [False, True], ids=["no series", "a series that ended"])
def test_candles_that_never_come_are_given_up_after_thirty_days(system: System, stored: bool) -> None:
    rows = batch()
    end = to_datetime(rows.close_time[700]) + HORIZON
    if stored:
        system.store(traded().until(end - HOUR))
    system.add([record(rows, 700)])

    assert system.run(end + timedelta(days=30)) == {"labelled": 0, "unlabelled": 0, "keys": []}
    assert system.run(end + timedelta(days=30) + MICROSECOND)["unlabelled"] == 1

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


def test_answers_that_stay_open_do_not_hide_those_behind_them(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "BATCH", 10)
    rows = batch()
    now = to_datetime(rows.close_time[630]) + HORIZON
    system.store(traded().until(now))
    system.add(
        [record(rows, row, symbol="ETHUSDT", id=str(uuid5(NAMES, f"e{row}"))) for row in range(500, 560)]
    )
    system.add([record(rows, row) for row in range(600, 630)])

    done = system.run(now)

    assert done["labelled"] + done["unlabelled"] == 30
    assert {row.symbol for row in system.resolved()} == {"BTCUSDT"}


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
    later = "2020-01-01T00:00:00Z"
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
