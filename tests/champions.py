"""Champions for tests: small, but trained by the system's own pipeline and promoted through its gates."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from db import jobs, registry
from ml.config import TrainingConfig
from ml.keys import ModelKey
from tasks import pipeline
from tasks.base import Resources
from tasks.lease import Lease
from tasks.run import Run

__all__ = ["train_champion"]

OPTIONS: dict[str, Any] = {
    "pool": "symbol",
    "bootstrap_samples": 100,
    "fit": {"n_estimators": 30, "threads": 1},
    "gates": {
        "min_f1": 0,
        "min_precision": 0,
        "min_recall": 0,
        "rel_improvement_f1": 0,
        "max_feature_drift_ks": 1,
        "min_auc_lower": 0,
        "min_brier_skill_lower": -1,
    },
}
"""Open gates: whatever is trained becomes champion."""


def train_champion(resources: Resources, key: ModelKey, *, as_of: datetime) -> registry.ModelRow:
    """Train ``key`` on what the database knew at ``as_of``, and promote it.

    Args:
        resources: of the test's own database; its clock must not stand before ``as_of``.
        key: its candles are stored.
        as_of: aware, the data cut.
    """
    job_id = str(uuid4())
    with resources.transaction() as session:
        jobs.enqueue(session, job_id=job_id, key=key, reason="test", requested_by="a test", as_of=as_of)
        claim = jobs.claim(session, job_id, owner="a test", lease=timedelta(minutes=5))
    assert isinstance(claim, jobs.Claimed)
    config = TrainingConfig.from_mapping(OPTIONS)
    with Lease(resources, job_id, claim.fencing_token) as lease:
        pipeline.train_key(Run(resources=resources, lease=lease, job=claim.job, config=config))
    with resources.transaction() as session:
        champion = registry.champion(session, key)
    assert champion is not None
    return champion
