"""tasks.check_drift: whether a champion's market, its confidence or its outcomes have drifted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import structlog
from celery import shared_task

from db import registry
from ml.keys import ModelKey
from tasks.base import Task
from tasks.retraining import send

if TYPE_CHECKING:
    from tasks.drift_checks import DriftChecks

__all__ = ["DriftTask", "check_all_drift", "check_drift"]

EXPIRES_SECONDS: Final = 3600
"""By then the next fan-out has come."""

log = structlog.get_logger(__name__)


class DriftTask(Task):
    """Holds this process's models and signals between checks."""

    abstract = True

    def __init__(self) -> None:
        self._checks: tuple[int, DriftChecks] | None = None

    @property
    def checks(self) -> DriftChecks:
        """This process's own, made on first use: connections do not survive a fork."""
        # Not above: beat and the command line import this module and check nothing.
        from tasks.drift_checks import DriftChecks

        if self._checks is None or self._checks[0] != os.getpid():
            self._checks = (os.getpid(), DriftChecks(self.resources))
        return self._checks[1]


@shared_task(base=DriftTask, bind=True, name="tasks.check_drift")
def check_drift(self: DriftTask, symbol: str, regime: str, interval: str | None = None) -> dict[str, Any]:
    """Check the champion of (symbol, interval, regime) for drift, and begin or schedule what follows.

    Each kind's check is a row of ``ml_drift_alerts``. A second run by the same candles changes nothing.

    Returns:
        ``state`` is ``checked``, with ``severity`` and ``score`` of the worst kind, ``checks`` kind by kind,
        the ``action`` taken or that is open, and ``snoozed_until`` where nothing is started; where signals
        were too few for some kinds, ``not_checked`` names these, with ``rows``, ``limit`` and ``detail``. Or
        why nothing was checked, with a ``detail``: ``no_champion``, ``no_calibration``, ``no_candles``,
        ``too_few_rows`` (with ``rows`` and ``limit``; no outcome is known either), ``no_new_candles``,
        ``champion_changed``, or a code of ``ml.inference.ABSTAIN_REASONS`` where the champion cannot answer.

    Raises:
        KeyRejected: an argument.
    """
    resources = self.resources
    key = ModelKey(symbol, resources.settings.default_interval if interval is None else interval, regime)
    structlog.contextvars.bind_contextvars(model_key=str(key))
    found, retraining = self.checks.check(key, self.app.next_slot)
    if retraining is not None:
        send(self.app, resources, retraining)
    log.info("drift_checked", **{name: found.get(name) for name in ("state", "severity", "score", "detail")})
    return {"key": str(key), **found}


@shared_task(base=Task, bind=True, name="tasks.check_all_drift", ignore_result=True)
def check_all_drift(self: Task) -> list[str]:
    """Send a check of each champion. Sent twice in an hour, the second ones find nothing new.

    Returns:
        The keys.
    """
    with self.resources.transaction() as session:
        keys = [row.key for row in registry.champions(session)]  # a symbol's together: they share its candles
    for key in keys:
        arguments = [key.symbol, key.regime, key.interval]
        self.app.send_task("tasks.check_drift", args=arguments, expires=EXPIRES_SECONDS, ignore_result=True)
    return [str(key) for key in keys]
