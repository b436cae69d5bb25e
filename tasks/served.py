"""What champions answered live, as the next training may know it at its data cut."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from db import predictions
from ml.live_weights import ServedConfidence, Signal
from ml.outcomes import live_until

__all__ = ["served_confidence"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def served_confidence(
    session: Session, symbols: Iterable[str], interval: str, *, cut: datetime
) -> ServedConfidence:
    """The first answer to each signal whose outcome was written, and known, by ``cut``.

    Left out: abstentions, shadows (nobody was served), and answers given later than
    ``ml.outcomes.live_until``: such a model may have learned the outcome, so its error says nothing.
    """
    first: dict[Signal, float] = {}
    for symbol in symbols:
        found = predictions.resolved(session, symbol=symbol, interval=interval, since=EPOCH, until=cut)
        for answer in sorted(found, key=lambda answer: (answer.as_of, answer.id)):
            in_time = answer.as_of <= live_until(answer.signal_time, interval)
            known = answer.role == "champion" and answer.resolved_at <= cut
            if in_time and known and answer.confidence is not None:
                closed = (answer.signal_time - EPOCH) // timedelta(microseconds=1)
                first.setdefault((symbol, closed, answer.direction), answer.confidence)
    return ServedConfidence(first)
