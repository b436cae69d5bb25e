"""What every task shares: resources made after the fork, log context, and what becomes of an error.

=====================  ==================================================================
error                  what happens
=====================  ==================================================================
RetryLater             retried with exponential backoff and jitter, ``max_retries`` times
InputRejected          the task fails at once with the typed error; nothing was written
LeaseLost              the task fails; whoever took the job over finishes it
StopForOperator        the message is copied to the dead-letter queue, the task fails
anything else          the task fails, with its traceback in the log
=====================  ==================================================================
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import celery
import kombu.exceptions
import redis
import structlog
from celery.exceptions import Ignore, Reject, Retry
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db.session import create_engine, transaction
from ml.errors import AlphaPlusError, BrokerUnavailable, InputRejected, RetryLater, StopForOperator
from runtime.clock import Clock
from runtime.queues import DEAD_LETTER
from runtime.settings import Settings

__all__ = ["BROKER_ERRORS", "Resources", "Task"]

BACKOFF_CAP_SECONDS = 60.0
BROKER_ERRORS = (
    kombu.exceptions.OperationalError,
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
)
"""What Celery and redis-py raise where the broker is away."""

log = structlog.get_logger(__name__)


class Resources:
    """Settings, clock and database of one process, each made on first use.

    A prefork child must not share its parent's connections, so the engine belongs to the process
    that made it: a child that finds another process's engine makes its own.

    Args:
        load_settings: called once, on first use.
        make_clock: builds the clock that the settings ask for.
    """

    def __init__(
        self, load_settings: Callable[[], Settings], make_clock: Callable[[Settings], Clock]
    ) -> None:
        self._load_settings = load_settings
        self._make_clock = make_clock
        self._settings: Settings | None = None
        self._clock: Clock | None = None
        self._engine: tuple[int, Engine] | None = None

    @property
    def settings(self) -> Settings:
        """The settings of this process. Raises ConfigRejected or ServersMissing."""
        if self._settings is None:
            self._settings = self._load_settings()
        return self._settings

    @property
    def clock(self) -> Clock:
        """The clock every task takes its ``now`` from."""
        if self._clock is None:
            self._clock = self._make_clock(self.settings)
        return self._clock

    @property
    def engine(self) -> Engine:
        """This process's own engine."""
        if self._engine is None or self._engine[0] != os.getpid():
            url = self.settings.required_database_url
            self._engine = (os.getpid(), create_engine(url, application_name="alphaplus"))
        return self._engine[1]

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on any error. Raises StoreUnavailable."""
        with transaction(self.engine) as session:
            yield session


class Task(celery.Task):
    """Base of every task of ours."""

    abstract = True
    max_retries = 8
    throws = (AlphaPlusError,)  # expected: one line in the log, no traceback

    @property
    def resources(self) -> Resources:
        """What the composition root gave the app."""
        resources: Resources = self.app.resources
        return resources

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body with its log context, and turn its errors into what the table above says."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(task=self.name, task_id=self.request.id)
        try:
            self._check_arguments(args, kwargs)
            return super().__call__(*args, **kwargs)
        except (Retry, Ignore, Reject):
            raise
        except (RetryLater, *BROKER_ERRORS) as error:
            countdown = backoff_seconds(self.request.retries)
            log.warning("task_retried", error=str(error), retries=self.request.retries, countdown=countdown)
            transient = error if isinstance(error, RetryLater) else BrokerUnavailable(str(error))
            raise self.retry(exc=transient, countdown=countdown) from error
        except InputRejected as error:
            log.warning("input_rejected", **error.as_json())
            raise
        except StopForOperator as error:
            log.exception("operator_needed", error=str(error))
            self._copy_to_dead_letter(args, kwargs, error)
            raise

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`send_task` checks no arity; a wrong call must say so in the caller's words."""
        signature = inspect.signature(self.run)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputRejected(
                "arguments", [*args, kwargs], f"{self.name}{signature}", str(error)
            ) from error

    def _copy_to_dead_letter(self, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> None:
        with self.app.producer_or_acquire() as producer:
            producer.publish(
                {
                    "task": self.name,
                    "id": self.request.id,
                    "args": args,
                    "kwargs": kwargs,
                    "error": str(error),
                },
                routing_key=DEAD_LETTER,
                serializer="json",
                retry=True,
            )


def backoff_seconds(retries: int) -> float:
    """Exponential backoff with full jitter over its upper half: 1, 2, 4 … 60 s, times 0.5 to 1."""
    return min(BACKOFF_CAP_SECONDS, 2.0 ** min(retries, 10)) * random.uniform(0.5, 1.0)
