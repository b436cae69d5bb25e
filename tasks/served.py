"""What champions answered live, as the next training may know it at its data cut."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session

from db import predictions
from ml.live_weights import ServedConfidence, Signal

__all__ = ["served_confidence"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def served_confidence(
    session: Session, symbols: Iterable[str], interval: str, *, cut: datetime
) -> ServedConfidence:
    """The first answer to each signal whose outcome was written, and known, by ``cut``.

    Left out: abstentions, shadows (nobody was served), and answers given once the outcome was known: such a
    model may have learned it, so its error says nothing.
    """
    first: dict[Signal, float] = {}
    for symbol in symbols:
        found = predictions.resolved(session, symbol=symbol, interval=interval, since=EPOCH, until=cut)
        for answer in sorted(found, key=lambda answer: (answer.as_of, answer.id)):
            live = answer.role == "champion" and answer.as_of < answer.label_end and answer.resolved_at <= cut
            if live and answer.confidence is not None:
                closed = (answer.signal_time - EPOCH) // timedelta(microseconds=1)
                first.setdefault((symbol, closed, answer.direction), answer.confidence)
    return ServedConfidence(first)
