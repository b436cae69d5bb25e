"""The right to make a shared fit: one run at a time, never longer than its lease. An ensemble is another."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import candles, jobs, registry
from db.models import Artifact
from db.session import transaction
from ml.config import TrainingConfig
from ml.ensemble import choose
from ml.errors import LeaseLost
from ml.keys import ModelKey
from runtime.settings import Settings
from tasks import pipeline, shared_fit
from tasks.base import Resources
from tasks.lease import Lease
from tasks.run import Run
from tasks.shared_fit import fit_address, fit_slots
from tasks.stored_model import load
from tests.real_candles import real_candles

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


CUT = datetime(2019, 9, 1, tzinfo=UTC)
ONE: dict[str, Any] = {
    "pool": "symbol",
    "bootstrap_samples": 100,
    "fit": {"n_estimators": 30, "threads": 1},
    "drift": {"null_months": 15},
}
THREE = ONE | {"ensemble": {"members": 3}}
FIRST, SECOND = (ModelKey("BTCUSDT", "1h", regime) for regime in ("trending", "volatile"))


class FixedClock:
    def now(self) -> datetime:
        return CUT + timedelta(hours=1)


@pytest.fixture
def resources(database_url: str) -> Resources:
    settings = Settings(database_url=database_url, redis_url="redis://127.0.0.1:1/0")
    made = Resources(lambda: settings, lambda _: FixedClock())
    with made.transaction() as session:
        series = real_candles().until(CUT)
        candles.write(session, symbol="BTCUSDT", interval="1h", candles=series, source="test", now=CUT)
    return made


def train(resources: Resources, key: ModelKey, options: dict[str, Any]) -> dict[str, Any]:
    """One whole job, as tasks.train runs it; with the sha256 of the trees that its model uses."""
    job_id = str(uuid4())
    with resources.transaction() as session:
        jobs.enqueue(session, job_id=job_id, key=key, reason="test", requested_by="me", as_of=CUT)
        claim = jobs.claim(session, job_id, owner="test", lease=LONG)
    assert isinstance(claim, jobs.Claimed)
    with Lease(resources, job_id, claim.fencing_token) as lease:
        config = TrainingConfig.from_mapping(options)
        outcome = pipeline.train_key(Run(resources=resources, lease=lease, job=claim.job, config=config))
    with resources.transaction() as session:
        model = session.get_one(registry.ModelRow, outcome["model_id"])
        return outcome | {"booster": model.booster_sha256}


def kept(resources: Resources) -> dict[str, str]:
    """Address -> sha256 of the fits that are stored."""
    query = sa.select(Artifact.address, Artifact.sha256).where(Artifact.address.is_not(None))
    with resources.transaction() as session:
        return {str(address): sha256 for address, sha256 in session.execute(query)}


def slots(resources: Resources, options: dict[str, Any]) -> list[str]:
    """The addresses of the fits of a job."""
    with resources.transaction() as session:
        known = candles.fingerprint(session, "1h", known_at=CUT)
    return [slot.address for slot in fit_slots(FIRST, TrainingConfig.from_mapping(options), known)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kind of fit was begun in this process."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    for name in ("fit_booster", "fit_ensemble"):
        fit = getattr(shared_fit, name)

        def counted(*args: Any, _name: str = name, _fit: Any = fit, **options: Any) -> Any:
            with lock:
                counts[_name] += 1
            return _fit(*args, **options)

        monkeypatch.setattr(shared_fit, name, counted)
    return counts


def test_an_ensemble_has_an_address_of_its_own_and_leaves_the_single_fits_as_it_is() -> None:
    def addresses(**changes: Any) -> list[str]:
        known = changes.pop("known", KNOWN)
        config = TrainingConfig.from_mapping(changes)
        return [slot.address for slot in fit_slots(ModelKey("BTCUSDT", "1h", "trending"), config, known)]

    [single] = addresses()
    assert addresses(ensemble={"members": 1, "span_ratio": 0.7}) == [single]
    two = addresses(ensemble={"members": 2})
    assert two[0] == single
    others = [
        addresses(ensemble={"members": 3}),
        addresses(ensemble={"members": 2, "span_ratio": 0.7}),
        addresses(ensemble={"members": 2}, fit={"seed": 8}),
        addresses(ensemble={"members": 2}, known=KNOWN | {"ETHUSDT": "21-bc"}),
    ]
    assert len({single, two[1], *(one[1] for one in others)}) == 6
    assert addresses(ensemble={"members": 2}, gates={"min_f1": 0.7}) == two


def test_with_one_member_a_job_makes_one_fit_and_says_nothing_of_an_ensemble(
    resources: Resources, made: Counter[str]
) -> None:
    first = train(resources, FIRST, ONE)
    again = train(resources, FIRST, ONE | {"ensemble": {"members": 1, "span_ratio": 0.9}})

    assert made == {"fit_booster": 1}
    assert "ensemble" not in first
    assert (again["result"], again["model_id"]) == ("unchanged", first["model_id"])
    assert kept(resources) == {slots(resources, ONE)[0]: first["booster"]}


def test_two_fits_are_made_once_and_each_key_uses_the_one_that_its_own_rows_choose(
    resources: Resources, made: Counter[str]
) -> None:
    alone = train(resources, FIRST, ONE)
    first, second = train(resources, FIRST, THREE), train(resources, SECOND, THREE)

    # The single fit is found where a job without an ensemble has kept it, and is not made again.
    assert made == {"fit_booster": 1, "fit_ensemble": 1}
    assert [outcome["fit_reused"] for outcome in (alone, first, second)] == [False, False, True]
    single, ensemble = (kept(resources)[address] for address in slots(resources, THREE))
    assert single == alone["booster"] != ensemble
    for outcome in (first, second):
        verdict = outcome["ensemble"]
        assert verdict["members"] == 3
        assert verdict["used"] == (verdict["brier_difference"]["low"] > 0)
        assert outcome["booster"] == (ensemble if verdict["used"] else single)


def test_the_chosen_ensemble_is_what_the_model_answers_with(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is made to say yes: what it says otherwise is its own tests'."""
    monkeypatch.setattr(pipeline, "choose", lambda *args: (args[3], choose(*args)[1]))

    outcome = train(resources, FIRST, THREE)

    assert outcome["booster"] == kept(resources)[slots(resources, THREE)[1]]
    with resources.transaction() as session:
        model = session.get_one(registry.ModelRow, outcome["model_id"])
        assert load(session, model).booster.num_boosted_rounds() > 30


def test_a_job_killed_between_its_two_fits_leaves_the_first_and_the_next_makes_the_second(
    resources: Resources, made: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_args: Any, **_options: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shared_fit, "fit_ensemble", die)
        train(resources, FIRST, THREE)
    single, ensemble = slots(resources, THREE)
    assert list(kept(resources)) == [single]
    with resources.transaction() as session:  # the dead run's lease ends
        session.execute(sa.text("UPDATE ml_training_jobs SET lease_expires_at = now() - interval '1 s'"))

    outcome = train(resources, SECOND, THREE)

    assert made == {"fit_booster": 1, "fit_ensemble": 1}
    assert not outcome["fit_reused"]
    assert set(kept(resources)) == {single, ensemble}


def test_jobs_at_once_make_each_of_the_two_fits_once(resources: Resources, made: Counter[str]) -> None:
    keys = [ModelKey("BTCUSDT", "1h", regime) for regime in ("trending", "sideways", "volatile", "all")]

    with ThreadPoolExecutor(len(keys)) as pool:
        outcomes = list(pool.map(lambda key: train(resources, key, THREE), keys))

    assert made == {"fit_booster": 1, "fit_ensemble": 1}
    assert len(kept(resources)) == 2
    assert {outcome["booster"] for outcome in outcomes} <= set(kept(resources).values())


@pytest.mark.parametrize(("before", "grown"), [(None, 3), (ONE, 2)], ids=["both", "ensemble"])
def test_the_bar_goes_once_through_every_member_that_the_job_grows(
    resources: Resources,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, Any] | None,
    grown: int,
) -> None:
    if before is not None:
        train(resources, FIRST, before)
    told: list[float] = []
    progress = Lease.progress

    def note(lease: Lease, fraction: float) -> None:
        told.append(fraction)
        progress(lease, fraction)

    monkeypatch.setattr(Lease, "progress", note)
    train(resources, FIRST, THREE)

    assert told == sorted(told)
    assert told[0] == pytest.approx(1 / 30 / grown)
    assert told[-1] <= 1
    for member in range(grown):
        assert any(member / grown < fraction <= (member + 1) / grown for fraction in told)
