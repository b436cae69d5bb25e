"""Who answers for a key has changed: every inference worker is told."""

from __future__ import annotations

from typing import Final

import celery
import structlog

from ml.keys import ModelKey
from tasks.base import BROKER_ERRORS

__all__ = ["CHAMPION_CHANGED", "announce_champion"]

CHAMPION_CHANGED: Final = "champion_changed"
"""The control command that inference workers know."""

log = structlog.get_logger(__name__)


def announce_champion(app: celery.Celery, key: ModelKey) -> None:
    """Tell them, after the commit. Should the message be lost, they look by themselves soon."""
    arguments = {"symbol": key.symbol, "interval": key.interval, "regime": key.regime}
    try:
        app.control.broadcast(CHAMPION_CHANGED, arguments=arguments)
    except BROKER_ERRORS as error:
        log.warning("champion_not_announced", model_key=str(key), error=str(error))
