"""The Celery application, and the only composition root: `celery -A worker` finds it here.

Every setting's reason is in docs/celery.md. Importing this module reads no setting and opens no
connection: both happen when the configuration is first asked for.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog
from celery import Celery, signals
from celery.schedules import schedule
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from beat_schedule import BEAT_SCHEDULE, SWEEP_JOBS
from ml.errors import BrokerUnavailable, RetryLater
from ml.keys import ModelKey
from runtime.logging import configure_logging
from runtime.queues import DEAD_LETTER, DRIFT, INFERENCE, MAINTENANCE, QUEUES, ROUTES, TRAINING
from runtime.settings import load_settings
from tasks.base import Resources
from tasks.train import record_queued
from worker.clock import make_clock
from worker.processes import SOFT_SHUTDOWN_SECONDS

__all__ = ["app", "require_broker"]

BROKER_ANSWER_SECONDS = 3.0
TASK_MODULES = (
    "tasks.train",
    "tasks.predict",
    "tasks.candles",
    "tasks.detect",
    "tasks.prediction_log",
    "tasks.outcomes",
    "tasks.drift",
    "tasks.drift_actions",
    "tasks.shadow",
    "tasks.review",
    "tasks.maintenance",
)

# XGBoost's threads otherwise spin while they wait for each other: where two workers share the cores, a fit
# that takes a second takes ten. Read by OpenMP when a child imports xgboost, after the fork.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

log = structlog.get_logger(__name__)


def _configuration() -> dict[str, Any]:
    settings = resources.settings
    redis_url = settings.required_redis_url
    visibility = settings.visibility_timeout_seconds
    transport = {
        # Seconds; over the longest hard time limit, and the same wherever Celery asks for it.
        "visibility_timeout": visibility,
        # How often unacked messages are looked at: the defaults restore after 90 s.
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        # A half-open connection hangs for ever without these.
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "retry_on_timeout": True,
        "health_check_interval": 10,
    }
    return {
        "broker_url": redis_url,
        "result_backend": redis_url,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": MAINTENANCE,
        "task_queues": [Queue(name, routing_key=name) for name in (*QUEUES, DEAD_LETTER)],
        "task_routes": ROUTES,
        "task_create_missing_queues": False,
        "task_acks_late": True,
        "task_retry_on_worker_lost": True,
        "task_track_started": True,
        "task_annotations": {
            "tasks.train": {
                "time_limit": settings.train_hard_limit_seconds,
            },
        },
        "result_extended": True,
        "result_expires": 3600,
        "result_failure_expires": 86400,
        "worker_consumer": "worker.consumer:Consumer",
        "worker_prefetch_multiplier": 1,
        "worker_eta_task_limit": 1000,
        "worker_hijack_root_logger": False,
        "worker_soft_shutdown_timeout": SOFT_SHUTDOWN_SECONDS,
        # An idle worker ends at once; messages that it holds for later go back to their queue all the same.
        "worker_enable_soft_shutdown_on_idle": False,
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "visibility_timeout": visibility,
        "broker_transport_options": transport,
        "result_backend_transport_options": {"visibility_timeout": visibility},
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "redis_socket_timeout": 10,
        "redis_socket_connect_timeout": 5,
        "redis_socket_keepalive": True,
        "redis_retry_on_timeout": True,
        "redis_backend_health_check_interval": 10,
        "timezone": "UTC",
        "beat_schedule": {
            **BEAT_SCHEDULE,
            SWEEP_JOBS: BEAT_SCHEDULE[SWEEP_JOBS] | {"schedule": schedule(settings.sweep_seconds)},
        },
        "beat_scheduler": "worker.beat:Scheduler",
        "beat_max_loop_interval": settings.beat_tick_seconds,
        "beat_enable_remote_control": True,
        "redbeat_redis_url": redis_url,
        "redbeat_redis_options": {
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        "redbeat_key_prefix": "alphaplus:beat:",
        # Without it a second beat waits up to 25 minutes for a killed one.
        "redbeat_lock_timeout": settings.beat_lock_seconds,
    }


def _next_slot(key: ModelKey) -> datetime | None:
    """When beat sends the key's next training, by the wall; None where its schedule has none."""
    from worker.schedule import Schedule

    entries = Schedule(app).entries()
    due = [one.next_run for one in entries if one.key(resources.settings.default_interval) == key]
    return min((moment for moment in due if moment is not None), default=None)


resources = Resources(load_settings, make_clock)
app = Celery("alphaplus", include=TASK_MODULES)
app.add_defaults(_configuration)
app.resources = resources
app.next_slot = _next_slot


def require_broker() -> None:
    """Pass if Redis answers: sending to one that does not is tried for 20 s, and ends in a traceback.

    Raises:
        BrokerUnavailable: it does not.
    """
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=BROKER_ANSWER_SECONDS)
    except OperationalError as error:
        raise BrokerUnavailable(f"the broker does not answer: {error}; nothing was sent") from error


@signals.setup_logging.connect
def _configure_logging(**_: object) -> None:
    configure_logging(resources.settings.log_format, resources.settings.log_level)


@signals.worker_init.connect
def _import_the_learning(sender: Any, **_: object) -> None:
    """Before the fork, so that no job waits for it and the children share its memory."""
    queues = sender.app.amqp.queues.consume_from
    if TRAINING in queues:
        importlib.import_module("tasks.pipeline")
    if DRIFT in queues:
        importlib.import_module("tasks.drift_checks")
    if list(queues) == [INFERENCE]:
        # Two lines a request, each as long to write as the answer takes to compute.
        for name in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(name).setLevel(logging.WARNING)
    # Everybody hears the broadcast; who has no model in memory has nothing to forget.
    importlib.import_module("worker.control")
    if INFERENCE in queues:
        if TRAINING not in queues:
            # Trees are read on every core otherwise, and threads are left beside a worker that needs none.
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        importlib.import_module("tasks.answering")
        importlib.import_module("xgboost")
        # What is imported stays: without this each full collection looks through it, for 0.1 s.
        gc.collect()
        gc.freeze()


@signals.before_task_publish.connect
def _record_queued_job(
    sender: str, body: tuple[Sequence[Any], Mapping[str, Any], Any], headers: Mapping[str, Any], **_: object
) -> None:
    """A training job has a row before its message goes out, whoever sends it: beat, CLI, `celery call`."""
    if sender != "tasks.train" or headers.get("retries"):
        return
    args, kwargs, _embed = body
    try:
        record_queued(resources, str(headers["id"]), args, kwargs)
    except RetryLater as error:
        # The message goes out all the same (Celery would swallow this error). The worker writes the row,
        # and retries without an end until it can.
        log.warning("job_row_not_written", job_id=headers["id"], error=str(error))
