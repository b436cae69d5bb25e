"""The right to make a shared fit: one run at a time, and never longer than its lease."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy.engine import Engine

from db import jobs
from db.session import transaction
from ml.config import TrainingConfig
from ml.errors import LeaseLost
from ml.keys import ModelKey
from tasks.shared_fit import fit_address

pytestmark = pytest.mark.training

ADDRESS = "ab" * 32
LONG, SHORT = timedelta(minutes=1), timedelta(milliseconds=300)
KNOWN = {"BTCUSDT": "10-aa", "ETHUSDT": "20-bb"}


def claimed(engine: Engine, regime: str, lease: timedelta = LONG) -> tuple[str, int]:
    """A running job of a key of its own."""
    job_id, key = str(uuid4()), ModelKey("BTCUSDT", "1h", regime)
    with transaction(engine) as session:
        jobs.enqueue(
            session,
            job_id=job_id,
            key=key,
            reason="test",
            requested_by="test",
            as_of=datetime(2019, 10, 1, tzinfo=UTC),
        )
        claim = jobs.claim(session, job_id, owner=f"worker of {regime}", lease=lease)
        assert isinstance(claim, jobs.Claimed)
        return job_id, claim.fencing_token


def begin(engine: Engine, job: tuple[str, int]) -> bool:
    with transaction(engine) as session:
        return jobs.begin_fit(session, *job, ADDRESS)


def test_one_run_makes_a_fit_and_the_next_waits_until_it_ends(engine: Engine) -> None:
    maker, waiter = claimed(engine, "trending"), claimed(engine, "sideways")

    assert begin(engine, maker)
    assert begin(engine, maker)  # a second time changes nothing
    assert not begin(engine, waiter)
    with transaction(engine) as session:
        jobs.finish(session, *maker, state="failed", outcome={"reason": "test"})
    assert begin(engine, waiter)


def test_a_maker_that_stalls_past_its_lease_holds_nobody_up_and_is_refused_when_its_job_is_taken(
    engine: Engine,
) -> None:
    stalled, waiter = claimed(engine, "trending", SHORT), claimed(engine, "sideways")
    assert begin(engine, stalled)
    assert not begin(engine, waiter)
    time.sleep(SHORT.total_seconds())

    assert begin(engine, waiter)
    with transaction(engine) as session:
        jobs.sweep(session, queued_grace=LONG)
    with pytest.raises(LeaseLost):
        begin(engine, stalled)


@pytest.mark.parametrize(
    "changed",
    [
        {"key": ModelKey("BTCUSDT", "30m", "trending")},
        {"config": TrainingConfig.from_mapping({"fit": {"seed": 8}})},
        {"config": TrainingConfig.from_mapping({"labels": {"horizon_bars": 24}})},
        {"config": TrainingConfig.from_mapping({"pool": "symbol"})},
        {"known": KNOWN | {"ETHUSDT": "21-bc"}},
        {"known": KNOWN | {"SOLUSDT": "5-cc"}},
    ],
)
def test_an_address_changes_with_whatever_could_change_a_tree(changed: dict[str, object]) -> None:
    same = {"key": ModelKey("BTCUSDT", "1h", "trending"), "config": TrainingConfig(), "known": KNOWN}

    assert fit_address(**same).address != fit_address(**(same | changed)).address  # type: ignore[arg-type]


def test_keys_share_an_address_where_the_pool_is_shared_and_not_where_it_is_their_own() -> None:
    trending, volatile = ModelKey("BTCUSDT", "1h", "trending"), ModelKey("ETHUSDT", "1h", "volatile")
    gates = TrainingConfig.from_mapping({"gates": {"min_f1": 0.7}})
    own = TrainingConfig.from_mapping({"pool": "key"})

    assert fit_address(trending, TrainingConfig(), KNOWN) == fit_address(volatile, TrainingConfig(), KNOWN)
    assert fit_address(trending, gates, KNOWN) == fit_address(trending, TrainingConfig(), KNOWN)
    assert fit_address(trending, own, KNOWN) != fit_address(ModelKey("BTCUSDT", "1h", "volatile"), own, KNOWN)
    assert fit_address(trending, own, KNOWN).symbols == ("BTCUSDT",)
