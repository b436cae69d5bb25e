"""tasks.predict: answers a pattern detector's signals; docs/integration.md has the request and the reply."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import structlog
from celery import shared_task

from ml.keys import ModelKey
from tasks.base import Task

if TYPE_CHECKING:
    from tasks.answering import Answering

__all__ = ["PredictTask", "predict"]

log = structlog.get_logger(__name__)


class PredictTask(Task):
    """Holds this process's models and candles; a wrong call is answered by the body, not raised."""

    abstract = True
    # Each would be one more message to Redis before the answer.
    track_started = False
    send_events = False
    resultrepr_maxsize = 16
    """Of the reply in the worker's log, where nobody reads it: a long one takes 0.1 ms."""

    def __init__(self) -> None:
        self._answering: tuple[int, Answering] | None = None

    @property
    def answering(self) -> Answering:
        """This process's own, made on first use: connections do not survive a fork."""
        # Not above: beat and the command line import this module and answer nothing.
        from tasks.answering import Answering

        if self._answering is None or self._answering[0] != os.getpid():
            self._answering = (os.getpid(), Answering(self.resources))
        return self._answering[1]

    def champion_changed(self, key: ModelKey) -> None:
        """Look at the registry again before this key is answered for."""
        if self._answering is not None:
            self.answering.models.forget(key)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the body, which takes any arguments and says what is wrong with them.

        No retry and no dead letter: nobody waits for either, and each would keep the request's candles.
        """
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(task=self.name, task_id=self.request.id)
        return self.run(*args, **kwargs)

    def on_failure(
        self,
        exc: Exception,
        task_id: str,
        args: Any,  # noqa: ARG002 - Celery's signature
        kwargs: dict[str, Any],
        einfo: object,  # noqa: ARG002
    ) -> None:
        """No caller shall wait for an answer that will not come."""
        log.error("prediction_failed", task_id=task_id, error=str(exc))
        self.answering.fail(task_id, kwargs or {})


@shared_task(base=PredictTask, bind=True, name="tasks.predict", max_retries=0)
def predict(self: PredictTask, /, *args: object, **options: object) -> dict[str, Any] | None:
    """Answer a signal or a list of them: ``args = [signals]``, ``options`` may hold ``reply_to``.

    Bad input comes back as a value, ``error``; too much work as ``busy``; neither is recorded.

    Returns:
        The reply; None where ``reply_to`` names a list, for then it is there.
    """
    handled = self.answering.handle(self.request.id, args, options)
    if handled.pushed:
        # The answer is on its list: nothing is stored. (Raising Ignore would log a traceback each time.)
        self.request.update(ignore_result=True)
        return None
    # A stored result would carry the request's candles back.
    self.request.update(args=None, kwargs=None)
    return handled.reply
