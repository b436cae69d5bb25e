"""Celery's consumer, with one thing added: a message that nobody can read does not end the worker.

Celery unpacks a message outside its error handling. A body without its third part, a header of the wrong
kind: the worker ends, the message goes back to the head of the queue, and ends the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery.worker.consumer import Consumer as CeleryConsumer

__all__ = ["Consumer"]

log = structlog.get_logger(__name__)


class Consumer(CeleryConsumer):
    """Drops what it cannot read, with a line in the log."""

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """Celery's own handler of messages, guarded."""
        handle = super().create_task_handler(*args, **options)
        # A connection that broke is Celery's to mend.
        passed_on = (*self.connection_errors, MemoryError)

        def guarded(message: Any) -> None:
            headers = message.headers
            named = isinstance(headers, dict) and all(
                isinstance(headers.get(name), str) for name in ("task", "id")
            )
            if not named:
                self._drop(message, "headers without a task and an id")
                return
            try:
                handle(message)
            except passed_on:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the message must not come back
                self._drop(message, repr(error))

        return guarded

    def _drop(self, message: Any, why: str) -> None:
        log.error("message_dropped", why=why[:200], body=str(message.body)[:200])
        if not message.acknowledged:
            message.reject_log_error(log, self.connection_errors)
