"""Asking a real inference worker, the way a stranger would: by Celery, with what is to be sent given raw."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import redis
from celery import Celery

from ml.candles import Candles
from ml.inference import ABSTAIN_REASONS
from tests.real_candles import real_candles
from tests.trained import CUT

__all__ = ["NOW", "SIGNAL", "Caller", "check_answer", "ohlcv_rows", "recorded"]

NOW: Final = CUT + timedelta(minutes=30)
"""Where the replay of the tests stands."""
SIGNAL: Final[dict[str, Any]] = {"symbol": "BTCUSDT", "direction": 1, "patterns": ["CDLDOJI"]}
"""Of the newest closed candle, the one that closed at ``CUT``."""
STREAM: Final = "alphaplus:predictions"
WAIT_SECONDS: Final = 20

ANSWER_FIELDS: Final = {
    "prediction_id", "signal_id", "symbol", "interval", "time", "direction", "patterns", "regime",
    "decision", "abstain_reason", "confidence", "pattern_confidence", "expected_net_return_atr",
    "out_of_distribution", "model", "model_version", "model_age_seconds", "fallback", "as_of",
}  # fmt: skip


class Caller:
    """One caller with a reply list of its own.

    Args:
        redis_url: broker and backend.
    """

    def __init__(self, redis_url: str) -> None:
        self.app = Celery(broker=redis_url, backend=redis_url)
        self.redis: redis.Redis = redis.Redis.from_url(redis_url)
        self.reply_list = f"alphaplus:reply:{uuid4()}"

    def close(self) -> None:
        """Give the connections back."""
        self.app.close()
        self.redis.close()

    def send(self, /, *args: object, **options: object) -> str:
        """Send ``tasks.predict`` with these arguments, whatever they are; returns the request's id."""
        sent = self.app.send_task(
            "tasks.predict",
            args=list(args),
            kwargs={"reply_to": self.reply_list, **options},
            queue="inference",
            ignore_result=True,
        )
        return str(sent.id)

    def receive(self, wait_seconds: int = WAIT_SECONDS) -> dict[str, Any]:
        """The next reply. Raises AssertionError where none comes."""
        popped = self.redis.brpop([self.reply_list], timeout=wait_seconds)
        assert popped is not None, "no reply came"
        reply = json.loads(popped[1])
        assert isinstance(reply, dict)
        return reply

    def ask(self, /, *args: object, **options: object) -> dict[str, Any]:
        """One request, and its reply."""
        request_id = self.send(*args, **options)
        reply = self.receive()
        assert reply["id"] == request_id
        return reply

    def answer(self, signal: dict[str, Any]) -> dict[str, Any]:
        """The answer to one signal."""
        (found,) = self.ask(signal)["answers"]
        assert isinstance(found, dict)
        return found


def check_answer(answer: dict[str, Any]) -> None:
    """What holds of every answer."""
    assert set(answer) == ANSWER_FIELDS
    abstains = answer["decision"] == "abstain"
    assert answer["decision"] in {"accept", "reject", "abstain"}
    assert (answer["abstain_reason"] in ABSTAIN_REASONS) if abstains else answer["abstain_reason"] is None
    assert (answer["confidence"] is None) == abstains
    for name in ("confidence", "pattern_confidence", "out_of_distribution"):
        assert answer[name] is None or 0 <= answer[name] <= 1
    assert datetime.fromisoformat(answer["time"]) <= datetime.fromisoformat(answer["as_of"])
    assert datetime.fromisoformat(answer["time"]).tzinfo is not None


def recorded(client: redis.Redis) -> list[dict[str, Any]]:
    """Every record that waits in the stream, oldest first."""
    entries: Any = client.xrange(STREAM)
    return [record for _, fields in entries for record in json.loads(fields[b"records"])]


def ohlcv_rows(
    candles: Candles | None = None, *, until: datetime = CUT, count: int = 1024
) -> list[list[float]]:
    """The last ``count`` candles closed at ``until``, as ccxt has them."""
    series = (real_candles() if candles is None else candles).until(until).slice(-count)
    ms = series.open_time.astype("datetime64[ms]").astype(int).tolist()
    columns = (series.open, series.high, series.low, series.close, series.volume)
    return [list(row) for row in zip(ms, *(column.tolist() for column in columns), strict=True)]


def wait_until(condition: Any, what: str, seconds: float = 30.0) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def at(hours: int) -> str:
    """ISO time of a candle's close, so many hours from ``CUT``."""
    return (CUT + timedelta(hours=hours)).astimezone(UTC).isoformat()
