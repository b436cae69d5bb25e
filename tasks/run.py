"""What a claimed job is to do, and with what."""

from __future__ import annotations

from dataclasses import dataclass

from db import jobs
from ml.config import TrainingConfig
from ml.keys import ModelKey
from tasks.base import Resources
from tasks.lease import Lease

__all__ = ["Run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One attempt at a job, under its lease."""

    resources: Resources
    lease: Lease
    job: jobs.TrainingJob
    config: TrainingConfig

    @property
    def key(self) -> ModelKey:
        """Whose model is trained."""
        return self.job.key
