"""A database with real candles and champions: trained once a run, copied for each test that asks for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from db import candles, jobs
from ml.config import TrainingConfig
from ml.keys import ModelKey
from runtime.settings import Settings
from tasks import pipeline
from tasks.base import Resources
from tasks.lease import Lease
from tasks.run import Run
from tests.real_candles import real_candles

__all__ = ["CHAMPIONS", "CUT", "REPLAY_ENV", "TRAINING", "FixedClock", "fill", "resources_of", "train"]

CUT: Final = datetime(2019, 9, 3, tzinfo=UTC)
"""The data cut of every champion; four weeks of candles follow it."""
CHAMPIONS: Final = tuple(
    ModelKey("BTCUSDT", "1h", regime) for regime in ("all", "trending", "sideways", "volatile")
)
"""BTC's consolidation is left to the fallback; of ETH nothing is trained."""
TRAINING: Final[dict[str, Any]] = {
    "pool": "symbol",
    "bootstrap_samples": 100,
    "fit": {"n_estimators": 60, "threads": 1},
    "drift": {"null_months": 15},
    # Whatever comes out becomes champion: these tests are about answering.
    "gates": {
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
    },
}
REPLAY_ENV: Final = {
    "ALPHAPLUS_CLOCK": "replay",
    "ALPHAPLUS_REPLAY_START": (CUT + timedelta(minutes=30)).isoformat(),
    "ALPHAPLUS_LOG_FORMAT": "json",
}


class FixedClock:
    """Stands still."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment


def resources_of(database_url: str, moment: datetime, **settings: Any) -> Resources:
    """Of a test's own process: this database, a clock that stands at ``moment``."""
    made = Settings(database_url=database_url, **{"redis_url": "redis://127.0.0.1:1/0", **settings})
    return Resources(lambda: made, lambda _: FixedClock(moment))


def fill(database_url: str) -> None:
    """Candles of BTC and ETH to the samples' end, champions as of ``CUT``."""
    resources = resources_of(database_url, CUT + timedelta(hours=1))
    for symbol in ("BTCUSDT", "ETHUSDT"):
        with resources.transaction() as session:
            candles.write(
                session,
                symbol=symbol,
                interval="1h",
                candles=real_candles(symbol),
                source="test",
                now=CUT,
            )
    for key in CHAMPIONS:
        outcome = train(resources, key)
        assert outcome["result"] == "promoted", outcome
    resources.engine.dispose()


def train(resources: Resources, key: ModelKey, cut: datetime = CUT, **options: Any) -> dict[str, Any]:
    """One whole job, as tasks.train runs it."""
    job_id = str(uuid4())
    with resources.transaction() as session:
        jobs.enqueue(session, job_id=job_id, key=key, reason="test", requested_by="me", as_of=cut)
        claim = jobs.claim(session, job_id, owner="test", lease=timedelta(minutes=1))
    assert isinstance(claim, jobs.Claimed)
    with Lease(resources, job_id, claim.fencing_token) as lease:
        config = TrainingConfig.from_mapping(TRAINING | options)
        return pipeline.train_key(Run(resources=resources, lease=lease, job=claim.job, config=config))
