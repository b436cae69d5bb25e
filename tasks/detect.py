"""tasks.detect_signals: the pattern detector. A closed candle's signals go to the inference workers."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import structlog
from celery import shared_task
from sqlalchemy.orm import Session

from db import candles
from ml.candles import Candles, to_datetime
from ml.keys import check_symbol, interval_duration
from tasks.base import Task

__all__ = ["DetectedSignal", "Detection", "detect_signals", "find_signals", "read_signals"]

Reason = Literal["no_candle", "stale_signal", "noisy_candle", "no_pattern"]
"""Why a candle gives no signal, in the words of an answer's abstain reasons."""

REQUESTS: Final = uuid.UUID("6f1ab3a8-0f6f-5d6e-9a0e-6f2b8d0d9a57")
"""Namespace of the detector's request ids."""
LEAST_EXPIRES_SECONDS: Final = 60.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectedSignal:
    """The patterns of one candle that say the same. How often they hit is the model's to say that answers."""

    direction: int
    """+1 long, -1 short."""
    patterns: tuple[str, ...]
    """TA-Lib's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What the newest candle of a series holds. Exactly one of ``signals`` and ``reason`` is there."""

    symbol: str
    interval: str
    close_time: datetime | None = None
    """Of the newest candle known; aware, UTC; None where there is none."""
    signals: tuple[DetectedSignal, ...] = ()
    """At most one short and one long."""
    reason: Reason | None = None
    noise: str | None = None
    """With ``noisy_candle``: a key of ``ml.noise.REASONS``."""

    @property
    def request_id(self) -> str:
        """The same for the same candle, whoever asks and however often: its answers are recorded once."""
        return str(uuid.uuid5(REQUESTS, f"{self.symbol}/{self.interval}/{self.close_time}"))

    def messages(self) -> list[dict[str, Any]]:
        """The signals as ``tasks.predict`` takes them.

        Nothing in them depends on the models: a prediction's id is made of all that its signal holds, and a
        promotion between two runs must not record it twice.
        """
        return [self._message(signal) for signal in self.signals]

    def _message(self, signal: DetectedSignal) -> dict[str, Any]:
        assert self.close_time is not None
        side = "long" if signal.direction > 0 else "short"
        close = self.close_time.astimezone(UTC)
        return {
            "id": f"{self.symbol}/{self.interval}/{close:%Y-%m-%dT%H:%MZ}/{side}",
            "symbol": self.symbol,
            "interval": self.interval,
            "time": close.isoformat(),
            "direction": signal.direction,
            "patterns": list(signal.patterns),
        }


@shared_task(base=Task, bind=True, name="tasks.detect_signals", ignore_result=True)
def detect_signals(self: Task, symbol: str, interval: str | None = None) -> str | None:
    """Send the newest closed candle's signals of a series to ``tasks.predict``, as one request.

    A second run sends the same request again, under the same id: its answers are recorded once. Where no
    pattern fired, or the candle is too old to act on, nothing is sent.

    Returns:
        The request's id, or None.
    """
    settings = self.resources.settings
    interval = interval or settings.default_interval
    max_age_bars = settings.max_signal_age_bars
    now = self.resources.clock.now()
    with self.resources.transaction() as session:
        found = read_signals(session, symbol=symbol, interval=interval, now=now, max_age_bars=max_age_bars)
    event = log.bind(symbol=symbol, interval=interval, close_time=found.close_time and str(found.close_time))
    if not found.signals:
        event.info("no_signals", reason=found.reason, noise=found.noise)
        return None
    # Workers that come back in time still answer, and with that record, a signal that is not stale.
    expires = max(LEAST_EXPIRES_SECONDS, max_age_bars * interval_duration(interval).total_seconds())
    self.app.send_task(
        "tasks.predict",
        args=[found.messages()],
        kwargs={"request_id": found.request_id},
        ignore_result=True,
        expires=expires,
    )
    event.info("signals_sent", request_id=found.request_id, signals=len(found.signals))
    return found.request_id


def read_signals(
    session: Session, *, symbol: str, interval: str, now: datetime, max_age_bars: float
) -> Detection:
    """Find the signals of the newest candle that the database knows at ``now``.

    Args:
        session: the caller's.
        symbol: as in ``ml.keys``.
        interval: as in ``ml.keys``.
        now: aware, the data's clock.
        max_age_bars: a candle that closed longer ago, counted in candles, gives none.

    Raises:
        KeyRejected: symbol or interval.
    """
    from ml.features import WINDOW

    step = interval_duration(interval)
    stored = candles.find_series(session, check_symbol(symbol), interval)
    if stored is None:
        return Detection(symbol=symbol, interval=interval, reason="no_candle")
    # Of a replay the database holds what is still to come, of a series that stopped nothing near to now.
    start = min(stored.last_open, now) - WINDOW * step
    known = candles.read(session, symbol, interval, known_at=now, start=start)
    return find_signals(known, symbol=symbol, now=now, max_age_bars=max_age_bars)


def find_signals(known: Candles, *, symbol: str, now: datetime, max_age_bars: float) -> Detection:
    """Find the signals of the newest candle.

    Args:
        known: the newest candles known at ``now``, not cleaned; ``ml.features.WINDOW`` of them.
        symbol: as in ``ml.keys``.
        now: aware.
        max_age_bars: a candle that closed longer ago, counted in candles, gives none.
    """
    from ml.noise import clean
    from ml.patterns import newest_patterns, pattern_names

    if not len(known):
        return Detection(symbol=symbol, interval=known.interval, reason="no_candle")
    close_time = to_datetime(known.close_time[-1])
    found = Detection(symbol=symbol, interval=known.interval, close_time=close_time)
    if now - close_time > max_age_bars * interval_duration(known.interval):
        return replace(found, reason="stale_signal")
    cleaned = clean(known)
    newest_open = to_datetime(known.open_time[-1])
    if cleaned.dropped and cleaned.dropped[-1].open_time == newest_open:
        return replace(found, reason="noisy_candle", noise=cleaned.dropped[-1].reason)
    signals = tuple(
        DetectedSignal(direction=direction, patterns=pattern_names(mask))
        for direction, mask in newest_patterns(cleaned.candles).items()
    )
    return replace(found, signals=signals) if signals else replace(found, reason="no_pattern")
