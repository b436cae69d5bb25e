"""What workers are told by Celery's control broadcast. Imported by them only."""

from __future__ import annotations

from typing import Any

from celery.worker.control import control_command

from ml.errors import InputRejected
from ml.keys import ModelKey
from tasks.champions import CHAMPION_CHANGED

__all__ = ["champion_changed"]


@control_command(name=CHAMPION_CHANGED, args=[("symbol", str), ("interval", str), ("regime", str)])
def champion_changed(state: Any, symbol: str, interval: str, regime: str) -> dict[str, str]:
    """Another model answers for this key: look at the registry before the next answer."""
    try:
        key = ModelKey(symbol, interval, regime)
    except InputRejected as error:
        return {"error": str(error)}
    state.app.tasks["tasks.predict"].champion_changed(key)
    return {"ok": f"{key} will be looked up"}
