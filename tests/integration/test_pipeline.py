"""A training job on a real database: refusals, the champion beside the challenger, tampering."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import audit, candles, evaluations, jobs, references, registry
from db.models import Artifact, AuditEntry, EvaluationRow, ModelRow
from db.session import transaction
from ml.candles import Candles
from ml.config import TrainingConfig
from ml.errors import ArtifactCorrupt, KeyRejected, LeaseLost, RetryLater, TrainingRefused
from ml.keys import ModelKey
from runtime.settings import Settings
from tasks import pipeline
from tasks.base import Resources
from tasks.lease import Lease
from tasks.run import Run
from tasks.stored_model import load
from tests.real_candles import real_candles

pytestmark = pytest.mark.training

KEY = ModelKey("BTCUSDT", "1h", "trending")
CUT = datetime(2019, 10, 1, tzinfo=UTC)
OPEN_GATES = {
    "min_f1": 0,
    "min_precision": 0,
    "min_recall": 0,
    "rel_improvement_f1": 0,
    "max_feature_drift_ks": 1,
    "min_auc_lower": 0,
    "min_brier_skill_lower": -1,
    "max_f1_loss": 1,
    "promotion_alpha": 1,
    "alpha_days": 0,
    "slice_alpha": 0,
}
SMALL: dict[str, Any] = {
    "pool": "symbol",
    "bootstrap_samples": 100,
    "fit": {"n_estimators": 30, "threads": 1},
    "drift": {"null_months": 15},
}
PROMOTING = SMALL | {"gates": OPEN_GATES}
REJECTING = SMALL | {"gates": OPEN_GATES | {"min_f1": 1}}


class FixedClock:
    def now(self) -> datetime:
        return CUT + timedelta(hours=1)


@pytest.fixture
def resources(database_url: str) -> Resources:
    settings = Settings(database_url=database_url, redis_url="redis://127.0.0.1:1/0")
    return Resources(lambda: settings, lambda _: FixedClock())


def store(resources: Resources, series: Candles, symbol: str = "BTCUSDT") -> None:
    with resources.transaction() as session:
        candles.write(session, symbol=symbol, interval="1h", candles=series, source="test", now=CUT)


def train(
    resources: Resources, options: dict[str, Any], *, key: ModelKey = KEY, cut: datetime = CUT
) -> dict[str, Any]:
    """One whole job, as tasks.train runs it."""
    job_id = str(uuid4())
    with resources.transaction() as session:
        jobs.enqueue(session, job_id=job_id, key=key, reason="test", requested_by="me", as_of=cut)
        claim = jobs.claim(session, job_id, owner="test", lease=timedelta(minutes=1))
    assert isinstance(claim, jobs.Claimed)
    with Lease(resources, job_id, claim.fencing_token) as lease:
        config = TrainingConfig.from_mapping(options)
        return pipeline.train_key(Run(resources=resources, lease=lease, job=claim.job, config=config))


def last_job(resources: Resources) -> jobs.TrainingJob:
    with resources.transaction() as session:
        return jobs.recent(session, 1)[0]


def counts(resources: Resources) -> list[int]:
    tables = (ModelRow, EvaluationRow, AuditEntry)
    with resources.transaction() as session:
        return [session.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in tables]


def test_a_symbol_without_candles_is_rejected_by_name_and_the_row_says_so(resources: Resources) -> None:
    store(resources, real_candles().slice(0, 50), "ETHUSDT")

    with pytest.raises(KeyRejected, match="ETHUSDT"):
        train(resources, SMALL)

    job = last_job(resources)
    assert job.state == "refused"
    assert job.outcome is not None
    assert job.outcome["error"]["field"] == "symbol"


@pytest.mark.parametrize(
    ("series", "reason", "detail"),
    [
        (real_candles().slice(0, 900), "too_few_rows", "at least 500 are needed"),
        (
            real_candles().take(real_candles().open_time.astype("datetime64[h]").astype(int) % 10 > 0),
            "gaps",
            "at most 5\\.00% may be",
        ),
    ],
    ids=["few", "gaps"],
)
def test_data_that_carries_no_model_is_refused_with_value_and_limit_on_the_row(
    resources: Resources, series: Candles, reason: str, detail: str
) -> None:
    store(resources, series)

    with pytest.raises(TrainingRefused, match=detail):
        train(resources, SMALL)

    job = last_job(resources)
    assert job.state == "refused"
    assert job.outcome is not None
    assert job.outcome["refused"] == reason
    assert counts(resources) == [0, 0, 0]


def test_a_key_with_few_rows_of_its_own_says_that_the_fallback_serves_it(resources: Resources) -> None:
    store(resources, real_candles())
    options = SMALL | {"split": {"min_test_rows": 5000}}

    with pytest.raises(TrainingRefused, match="served by BTCUSDT all"):
        train(resources, options)


def test_training_reads_only_what_was_known_at_its_cut(resources: Resources) -> None:
    """Candles after the cut, and a correction that came after it, change nothing: the same bytes."""
    early = datetime(2019, 6, 1, tzinfo=UTC)
    store(resources, real_candles().until(early))
    before = train(resources, PROMOTING, cut=early)
    whole = real_candles()
    corrected = Candles(
        "1h", whole.open_time, whole.open, whole.high * 1.001, whole.low, whole.close, whole.volume
    )
    store(resources, corrected)

    after = train(resources, PROMOTING, cut=early)

    assert before["result"] == "promoted"
    assert (after["result"], after["model_id"]) == ("unchanged", before["model_id"])


def test_a_challenger_is_held_against_the_champion_on_the_same_rows_and_replaces_it(
    resources: Resources,
) -> None:
    store(resources, real_candles())
    first = train(
        resources, PROMOTING | {"fit": {"n_estimators": 1, "threads": 1}}, cut=CUT - timedelta(days=30)
    )
    assert first["decision"]["gates"][3]["value"] is None  # no champion to improve on

    second = train(resources, PROMOTING | {"threshold_margin": 0.0})

    with resources.transaction() as session:
        judged = evaluations.recent(session, KEY, 10)
        champion = registry.champion(session, KEY)
        assert champion is not None
        rows = {(row.kind, row.model_id): row for row in judged if row.job_id == last_job(resources).id}
        challenger, incumbent = rows["challenger", second["model_id"]], rows["champion", first["model_id"]]
        span = ("rows", "first_close", "last_close")
        assert [challenger.metrics[name] for name in span] == [incumbent.metrics[name] for name in span]
        assert challenger.metrics["f1"]["value"] > incumbent.metrics["f1"]["value"]
        assert (champion.id, second["result"]) == (second["model_id"], "promoted")
        replaced = registry.get(session, KEY, 1)
        assert replaced is not None
        assert (replaced.state, champion.replaces_id) == ("archived", replaced.id)
        assert references.load(session, champion.id) is not None
        assert [entry.action for entry in audit.recent(session, 10)] == ["promote", "promote"]


def test_a_symbol_with_holes_is_left_out_of_the_pool_by_name_and_stops_nobody_else(
    resources: Resources,
) -> None:
    store(resources, real_candles())
    whole = real_candles("ETHUSDT")
    store(resources, whole.take(np.arange(len(whole)) % 10 > 0), "ETHUSDT")

    outcome = train(resources, PROMOTING | {"pool": "all"})

    assert outcome["result"] == "promoted"
    assert list(outcome["left_out"]) == ["ETHUSDT"]
    assert outcome["left_out"]["ETHUSDT"].startswith("gaps: ETHUSDT 1h: ")
    assert list(outcome["sources"]) == ["BTCUSDT"]
    with pytest.raises(TrainingRefused, match="ETHUSDT 1h"):
        train(resources, PROMOTING | {"pool": "all"}, key=ModelKey("ETHUSDT", "1h", "trending"))


def test_a_champion_whose_bytes_are_damaged_does_not_freeze_its_key(resources: Resources) -> None:
    store(resources, real_candles())
    first = train(resources, PROMOTING, cut=CUT - timedelta(days=30))
    with resources.transaction() as session:
        damaged = registry.get(session, KEY, 1)
        assert damaged is not None
        session.execute(
            sa.update(Artifact).where(Artifact.sha256 == damaged.artifact_sha256).values(body=b"x", size=1)
        )

    second = train(resources, PROMOTING)

    assert second["result"] == "promoted"
    with resources.transaction() as session:
        champion = registry.champion(session, KEY)
        assert champion is not None
        assert champion.id == second["model_id"] != first["model_id"]
        assert load(session, champion).model.key == KEY


def test_a_rejected_challenger_is_kept_with_its_reasons_and_an_audit_row(resources: Resources) -> None:
    store(resources, real_candles())

    outcome = train(resources, REJECTING)

    assert outcome["result"] == "rejected"
    with resources.transaction() as session:
        row = registry.get(session, KEY, 1)
        assert row is not None
        assert (row.state, registry.champion(session, KEY)) == ("rejected", None)
        (entry,) = audit.recent(session, 10)
        assert (entry.action, entry.subject) == ("reject", str(KEY))
        assert entry.why == "; ".join(outcome["decision"]["reasons"])


def test_a_champion_that_changed_meanwhile_sends_the_job_back_to_be_judged_again(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(resources, real_candles())
    rejected = train(resources, REJECTING)
    judge = pipeline._judge

    def judge_and_promote_another(*args: Any, **options: Any) -> Any:
        judged = judge(*args, **options)
        with resources.transaction() as session:  # an operator, between the judgement and the saving
            registry.promote(session, rejected["model_id"], now=CUT, actor="operator", why="test", details={})
        return judged

    monkeypatch.setattr(pipeline, "_judge", judge_and_promote_another)
    with pytest.raises(RetryLater, match="champion changed"):
        train(resources, PROMOTING)

    assert last_job(resources).state == "queued"
    assert counts(resources)[0] == 1


def test_a_run_whose_job_was_taken_over_writes_no_model(
    resources: Resources, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    store(resources, real_candles())
    judge = pipeline._judge

    def judge_and_lose(run: Run, *args: Any, **options: Any) -> Any:
        judged = judge(run, *args, **options)
        with transaction(engine) as session:
            session.execute(
                sa.text("UPDATE ml_training_jobs SET lease_expires_at = now() - interval '1 second'")
            )
        with transaction(engine) as session:
            taken = jobs.claim(session, run.job.id, owner="another", lease=timedelta(minutes=1))
            assert isinstance(taken, jobs.Claimed)
        return judged

    monkeypatch.setattr(pipeline, "_judge", judge_and_lose)
    with pytest.raises(LeaseLost):
        train(resources, PROMOTING)

    assert counts(resources) == [0, 0, 0]
    assert (last_job(resources).state, last_job(resources).owner) == ("running", "another")


def test_a_model_is_loaded_only_as_the_audit_log_names_it(resources: Resources) -> None:
    store(resources, real_candles())
    trending = train(resources, PROMOTING)
    everything = train(resources, PROMOTING, key=KEY.fallback)
    with resources.transaction() as session:
        champion, other = registry.champion(session, KEY), registry.champion(session, KEY.fallback)
        assert champion is not None
        assert other is not None
        assert load(session, champion).model.key == KEY
        assert trending["model_id"] != everything["model_id"]
        whole = (champion.artifact_sha256, champion.booster_sha256)

        # By hand: another model's bytes, which are whole and match their own sha256.
        champion.artifact_sha256 = other.artifact_sha256
        session.flush()
        with pytest.raises(ArtifactCorrupt, match="the audit log names no artifact"):
            load(session, champion)

        champion.artifact_sha256 = whole[0]
        for sha256 in whole:
            body = session.scalar(sa.select(Artifact.body).where(Artifact.sha256 == sha256)) or b""
            flipped = bytes([body[0] ^ 1]) + body[1:]
            session.execute(sa.update(Artifact).where(Artifact.sha256 == sha256).values(body=flipped))
            with pytest.raises(ArtifactCorrupt, match=sha256):
                load(session, champion)
            session.execute(sa.update(Artifact).where(Artifact.sha256 == sha256).values(body=body))
        assert load(session, champion).model.key == KEY
