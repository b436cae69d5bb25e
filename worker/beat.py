"""The scheduler that beat runs: redbeat's, made to lose no run and to send none twice.

Redbeat notes a run and then sends it, so a beat killed between the two loses the run until the next
day. Here it is sent first. The message's id is made from the entry and from the run before it, so
that whoever sends the same run again, after a crash or beside another beat that has not yet noticed
that it lost the lock, sends the same id: one job (its id is the task's), however often it is sent.
"""

from __future__ import annotations

import os
import platform
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import redis
import structlog
from redbeat.schedulers import (
    RedBeatScheduler,
    RedBeatSchedulerEntry,
    acquire_distributed_beat_lock,
)

from worker.schedule import Beat, Schedule

__all__ = ["Scheduler"]

RUNS = uuid.UUID("6f0f6c5e-6a55-4d43-9b0e-3d8f6e1c7a10")
"""The namespace of scheduled runs (RFC 9562, version 5)."""
BROKER_RETRY_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Scheduler(RedBeatScheduler):
    """Takes its entries from Redis, where ``beat_schedule.py`` is brought in at the start."""

    _lock_lost = False

    def setup_schedule(self) -> None:
        """Bring in what the code ships, without touching what the operator changed."""
        self._schedule_store = Schedule(self.app)
        self._schedule_store.seed()

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due; return the seconds until the next look.

        An outage of Redis is waited out here: most crashes of a beat would be that.
        """
        try:
            if self.lock is None:
                # Redbeat takes it once, at the start, where Celery swallows the error of a broker away.
                acquire_distributed_beat_lock(SimpleNamespace(scheduler=self))
            if self._lock_lost:
                self.lock.acquire()
                self._schedule_store.seed()  # what held the lock may have gone with the lock
                self._lock_lost = False
                log.info("beat_lock_regained")
            wait: float = super().tick(*args, **kwargs)
            beat = Beat(host=platform.node(), pid=os.getpid(), last_tick=datetime.now(UTC))
            self._schedule_store.record_tick(beat, timedelta(seconds=self.lock_timeout))
        except redis.exceptions.LockError as error:
            log.warning("beat_lock_lost", error=str(error))
            self._lock_lost = True
            return 0.0
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
            log.warning("beat_broker_away", error=str(error))
            return BROKER_RETRY_SECONDS
        return wait

    def close(self) -> None:
        """Let go of the lock, so that a beat that waits takes over at once."""
        if self.lock and not self._lock_lost:
            self._schedule_store.forget_beat()
        super().close()

    def apply_async(
        self, entry: RedBeatSchedulerEntry, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """Send one run, then note it."""
        entry.options = {**entry.options, "task_id": run_id(entry.name, entry.last_run_at)}
        sent = super().apply_async(entry, producer=producer, advance=False, **kwargs)
        if advance:
            self.reserve(entry)
        return sent


def run_id(name: str, run_before: datetime) -> str:
    """The task id of the run that follows ``run_before``: the same whoever sends it, and how often."""
    return str(uuid.uuid5(RUNS, f"{name} {run_before.astimezone(UTC).isoformat()}"))
