"""Live outcomes in a training job: what was known at its cut weighs, in the fit and in its address."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
import sqlalchemy as sa

from db import candles, jobs, predictions, registry
from db.models import Artifact
from ml.candles import to_datetime
from ml.config import TrainingConfig
from ml.dataset import build_rows
from ml.keys import ModelKey
from ml.noise import clean
from ml.rows import SignalRows
from runtime.settings import Settings
from tasks import pipeline
from tasks.base import Resources
from tasks.lease import Lease
from tasks.run import Run
from tasks.served import served_confidence
from tests.real_candles import real_candles

pytestmark = pytest.mark.inference

KEY = ModelKey("BTCUSDT", "1h", "trending")
CUT = datetime(2019, 9, 1, tzinfo=UTC)
OFF: dict[str, Any] = {
    "pool": "symbol",
    "bootstrap_samples": 100,
    "fit": {"n_estimators": 30, "threads": 1},
    "drift": {"null_months": 15},
}
ON = OFF | {"live": {"error_weight": 1.0, "min_outcomes": 50}}


class FixedClock:
    def now(self) -> datetime:
        return CUT + timedelta(hours=1)


@pytest.fixture
def resources(database_url: str) -> Resources:
    settings = Settings(database_url=database_url, redis_url="redis://127.0.0.1:1/0")
    made = Resources(lambda: settings, lambda _: FixedClock())
    with made.transaction() as session:
        for symbol in ("BTCUSDT", "ETHUSDT"):
            series = real_candles(symbol).until(CUT)
            candles.write(session, symbol=symbol, interval="1h", candles=series, source="test", now=CUT)
    return made


@pytest.fixture(scope="module")
def fitted_rows() -> SignalRows:
    """400 signals of BTC from the fit part, as a training labels them."""
    cleaned = clean(real_candles().until(CUT)).candles
    rows = build_rows(cleaned, symbol="BTCUSDT", config=TrainingConfig().labels)
    return rows.take(np.arange(1000, 1400))


def train(resources: Resources, options: dict[str, Any]) -> dict[str, Any]:
    """One whole job, as tasks.train runs it; with the booster's sha256 and the fit's address."""
    job_id = str(uuid4())
    with resources.transaction() as session:
        jobs.enqueue(session, job_id=job_id, key=KEY, reason="test", requested_by="me", as_of=CUT)
        claim = jobs.claim(session, job_id, owner="test", lease=timedelta(minutes=1))
    assert isinstance(claim, jobs.Claimed)
    with Lease(resources, job_id, claim.fencing_token) as lease:
        config = TrainingConfig.from_mapping(options)
        outcome = pipeline.train_key(Run(resources=resources, lease=lease, job=claim.job, config=config))
    with resources.transaction() as session:
        version = session.get_one(registry.ModelRow, outcome["model_id"])
        stored = sa.select(Artifact.address).where(Artifact.sha256 == version.booster_sha256)
        return outcome | {"booster": version.booster_sha256, "address": session.scalar(stored)}


def live(
    resources: Resources,
    rows: SignalRows,
    *,
    confidence: float | None = 0.9,
    answered_after: timedelta = timedelta(seconds=1),
    resolved_at: datetime = CUT,
    **changes: Any,
) -> None:
    """Record an answer to each row's signal, and its outcome."""
    records, outcomes = [], []
    for closed, end, direction, label in zip(
        rows.close_time, rows.label_end, rows.direction.tolist(), rows.label, strict=True
    ):
        signal_time = to_datetime(closed)
        records.append(record(signal_time, direction, confidence, answered_after) | changes)
        outcomes.append(
            predictions.Outcome(
                id=UUID(records[-1]["id"]),
                signal_time=signal_time,
                label=int(label),
                label_end=to_datetime(end),
                net_return_atr=0.5,
                resolved_at=resolved_at,
            )
        )
    with resources.transaction() as session:
        assert predictions.write(session, records) == len(rows)
        assert predictions.resolve(session, outcomes) == len(rows)


def record(
    signal_time: datetime, direction: int, confidence: float | None, answered_after: timedelta
) -> dict[str, Any]:
    return dict.fromkeys(predictions.COLUMNS) | {
        "id": str(uuid4()),
        "signal_time": signal_time.isoformat(),
        "as_of": (signal_time + answered_after).isoformat(),
        "symbol": "BTCUSDT",
        "interval": "1h",
        "regime": "trending",
        "role": "champion",
        "direction": direction,
        "patterns": ["CDLDOJI"],
        "confidence": confidence,
        "decision": "abstain" if confidence is None else "accept",
        "abstain_reason": "no_model" if confidence is None else None,
        "horizon_end": (signal_time + timedelta(hours=12)).isoformat(),
        "metadata": {},
    }


def known(resources: Resources, symbols: Iterable[str] = ("BTCUSDT",)) -> dict[Any, float]:
    with resources.transaction() as session:
        return dict(served_confidence(session, symbols, "1h", cut=CUT).of)


def signal(rows: SignalRows, at: int) -> tuple[str, int, int]:
    return "BTCUSDT", int(rows.close_time[at].astype(np.int64)), int(rows.direction[at])


def test_on_other_outcomes_are_another_fit_and_off_nothing_is_read(
    resources: Resources, fitted_rows: SignalRows
) -> None:
    before = train(resources, OFF)
    live(resources, fitted_rows)
    off, on = train(resources, OFF), train(resources, ON)
    live(resources, fitted_rows.take(np.arange(10)), confidence=0.2, answered_after=timedelta(0))
    changed = train(resources, ON)
    again = train(resources, ON)

    assert (off["result"], off["booster"], off["address"], off["fit_reused"]) == (
        "unchanged",
        before["booster"],
        before["address"],
        True,
    )
    assert [run["live_outcomes"] for run in (before, off, on, changed)] == [0, 0, 400, 400]
    assert not on["fit_reused"]
    assert len({run["booster"] for run in (before, on, changed)}) == 3
    assert len({run["address"] for run in (before, on, changed)}) == 3
    assert (again["booster"], again["fit_reused"], again["live_outcomes"]) == (changed["booster"], True, 400)


def test_what_was_written_after_the_cut_changes_nothing(
    resources: Resources, fitted_rows: SignalRows
) -> None:
    plain = train(resources, OFF)
    first = train(resources, ON)
    live(resources, fitted_rows, resolved_at=CUT + timedelta(microseconds=1))

    second = train(resources, ON)

    assert known(resources) == {}
    assert first["booster"] == plain["booster"]
    assert (second["address"], second["fit_reused"], second["live_outcomes"]) == (first["address"], True, 0)


def test_an_outcome_that_lies_after_the_cut_is_not_known_whatever_its_row_says(
    resources: Resources, fitted_rows: SignalRows
) -> None:
    one = fitted_rows.take(np.array([0]))
    shift = np.datetime64("2019-09-01", "us") - one.label_end[0] + np.timedelta64(1, "us")
    beyond = SignalRows(
        **{name: getattr(one, name) for name in SignalRows.__dataclass_fields__}
        | {"close_time": one.close_time + shift, "label_end": one.label_end + shift}
    )
    live(resources, beyond)

    assert known(resources) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"confidence": None},
        {"role": "shadow"},
        {"symbol": "ETHUSDT"},
        {"interval": "4h"},
        {"answered_after": timedelta(days=2)},
        {"answered_after": timedelta(hours=1, microseconds=1)},
    ],
    ids=["abstention", "shadow", "another symbol", "another interval", "after the outcome", "a candle late"],
)
def test_what_no_champion_answered_live_is_left_out(
    resources: Resources, fitted_rows: SignalRows, changes: dict[str, Any]
) -> None:
    slow = np.flatnonzero(fitted_rows.label_end - fitted_rows.close_time > np.timedelta64(4, "h"))
    live(resources, fitted_rows.take(np.r_[:3, slow[:3]]), **changes)

    assert known(resources) == {}


def test_an_answer_of_one_candle_after_the_close_is_live_however_quick_its_outcome(
    resources: Resources, fitted_rows: SignalRows
) -> None:
    quick = np.flatnonzero(fitted_rows.label_end - fitted_rows.close_time == np.timedelta64(1, "h"))[:3]
    live(resources, fitted_rows.take(quick), answered_after=timedelta(hours=1))

    assert known(resources) == {signal(fitted_rows, int(at)): 0.9 for at in quick}


def test_of_several_answers_to_one_signal_the_first_counts(
    resources: Resources, fitted_rows: SignalRows
) -> None:
    one = fitted_rows.take(np.array([0]))
    for seconds, confidence in ((5, 0.5), (1, 0.1), (9, 0.9)):
        live(resources, one, confidence=confidence, answered_after=timedelta(seconds=seconds))

    assert known(resources) == {signal(one, 0): 0.1}
    assert known(resources, ("ETHUSDT",)) == {}
