"""One key's trouble is its own: it is logged, and the keys after it have their turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from pydantic import ValidationError

from ml.errors import (
    AlphaPlusError,
    AuditChainBroken,
    RetryLater,
    SchemaOutdated,
    ServersMissing,
    StoreFull,
)
from ml.keys import ModelKey

__all__ = ["on_its_own"]

EVERYBODYS: Final = (RetryLater, StoreFull, SchemaOutdated, ServersMissing, AuditChainBroken)
"""These would stop the next key as well: the task is retried, or a person looks."""
ITS_OWN: Final = (AlphaPlusError, LookupError, ValidationError)
"""Stored options that this version does not know are a ``ValidationError``."""

log = structlog.get_logger(__name__)


@contextmanager
def on_its_own(event: str, key: ModelKey, **named: object) -> Iterator[None]:
    """Run the block; an error that is this key's alone ends it, is logged, and goes no further.

    Args:
        event: of the log.
        key: whose turn it is.
        named: other fields of the log.

    Raises:
        AlphaPlusError: one of ``EVERYBODYS``. What is no error of ours, but a defect, is not caught either.
    """
    try:
        yield
    except EVERYBODYS:
        raise
    except ITS_OWN as error:
        log.exception(event, model_key=str(key), error=str(error), **named)
