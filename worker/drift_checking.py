"""Drift checks from the command line: sent through the queue, and waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from celery.result import AsyncResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ml.errors import AnswerTimeout
from ml.keys import ModelKey
from runtime.queues import DRIFT
from worker.tables import console, time_text

__all__ = ["Checked", "send_checks"]

EXPIRES_SECONDS = 3600
POLL_SECONDS = 0.05
NO_WORKER_SECONDS = 10.0
ROWS_OF = {"checked", "no_new_candles"}
"""States after which the newest check's rows are those that were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A check that was sent, and what came of it."""

    key: ModelKey
    task_id: str
    report: dict[str, Any] = field(default_factory=dict)
    """As ``tasks.check_drift`` returns it; empty where nobody waited. Of state ``failed`` with an error."""
    error: Exception | None = None
    """As the task raised it; ``AnswerTimeout`` where nothing came in time."""

    @property
    def rows(self) -> datetime | None:
        """``as_of`` of the rows that say what was found; None where nothing was checked."""
        if self.report.get("state") not in ROWS_OF:
            return None
        return datetime.fromisoformat(self.report["as_of"])

    @property
    def sentence(self) -> str:
        """Which candles were looked at, and what was left out."""
        candles = f"candles up to {time_text(self.rows)} UTC"
        if self.report["state"] == "checked":
            left_out = f"; {self.report['detail']}" if "not_checked" in self.report else ""
            return f"version {self.report['version']}, {candles}: {self.report['severity']}{left_out}"
        return f"no candle has closed since the last check; it saw {candles}"

    @property
    def snoozed_until(self) -> datetime | None:
        """Until then alerts of the key start nothing."""
        moment = self.report.get("snoozed_until")
        return None if moment is None else datetime.fromisoformat(moment)


def send_checks(keys: Sequence[ModelKey], *, timeout_seconds: float | None) -> list[Checked]:
    """Send a check of each key, and wait for what comes of it, with a bar.

    Args:
        keys: that have champions.
        timeout_seconds: without a finished check; None waits for nothing.

    Returns:
        One a key; a check that failed, or that did not come back in time, has an error and loses no other.

    Raises:
        BrokerUnavailable: nothing was sent.
        AnswerTimeout: no check at all came back in so long.
    """
    from worker.celery import app, require_broker

    require_broker()
    sent = [Checked(key=key, task_id=str(uuid4())) for key in keys]
    results = []
    for one in sent:
        arguments = [one.key.symbol, one.key.regime, one.key.interval]
        results.append(
            app.send_task("tasks.check_drift", args=arguments, task_id=one.task_id, expires=EXPIRES_SECONDS)
        )
    if timeout_seconds is None:
        return sent
    answers = _wait(results, timeout_seconds)
    return [_checked(one, answer) for one, answer in zip(sent, answers, strict=True)]


def _checked(sent: Checked, answer: dict[str, Any] | Exception) -> Checked:
    if not isinstance(answer, Exception):
        return replace(sent, report=answer)
    report = {
        "key": str(sent.key),
        "state": "failed",
        "error": type(answer).__name__,
        "detail": f"{type(answer).__name__}: {answer}",
    }
    return replace(sent, report=report, error=answer)


def _wait(results: Sequence[AsyncResult[Any]], timeout_seconds: float) -> list[dict[str, Any] | Exception]:
    """Each check's report, or why there is none. Raises AnswerTimeout where there is none of any."""
    out = console(stderr=True)
    reports: list[dict[str, Any] | Exception] = []
    columns = TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn()
    began = heard = time.monotonic()
    told = False
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        bar = progress.add_task("checking drift", total=len(results))
        while len(reports) < len(results):
            if results[len(reports)].ready():  # a queue is worked off in its order
                # A task that failed has its exception for a result.
                reports.append(results[len(reports)].get(timeout=timeout_seconds, propagate=False))
                heard = time.monotonic()
                progress.update(bar, completed=len(reports))
                continue
            silent = time.monotonic() - heard
            if silent > timeout_seconds:
                late = AnswerTimeout(_silence(len(reports), len(results), timeout_seconds))
                if not reports:
                    raise late
                return [*reports, *[late] * (len(results) - len(reports))]
            if not (told or reports) and time.monotonic() - began > NO_WORKER_SECONDS:
                told = True
                out.print("No worker has done it yet; `alphaplus worker drift` starts one.")
            time.sleep(POLL_SECONDS)
    return reports


def _silence(done: int, asked: int, timeout_seconds: float) -> str:
    how = f"{done} of {asked} checks were done, then none" if done else "no check was done"
    return (
        f"{how} for {timeout_seconds:g} s: no worker of the queue {DRIFT} runs (`alphaplus worker drift` "
        "starts one), or it is behind (try a longer --timeout); what was sent stays in the queue for an hour"
    )
