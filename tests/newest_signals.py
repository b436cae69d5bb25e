"""What the newest candles of the trained database hold, hour by hour, for tests that ask about them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db.models import Prediction
from db.session import transaction
from tasks.detect import Detection, read_signals
from tests.trained import CUT

__all__ = ["HOUR", "NOW", "Json", "directions", "every_signal", "first_hour", "get", "given", "newest"]

HOUR: Final = timedelta(hours=1)
NOW: Final = CUT + timedelta(minutes=30)

Json = dict[str, Any]


def newest(engine: Engine, moment: datetime, symbol: str = "BTCUSDT") -> Detection:
    """The detector's look at a moment."""
    with transaction(engine) as session:
        return read_signals(session, symbol=symbol, interval="1h", now=moment, max_age_bars=1.0)


def first_hour(engine: Engine, fits: Callable[[Detection], bool], symbol: str = "BTCUSDT") -> datetime:
    """The first half past an hour, from the cut on, at which the newest candle fits."""
    moment = NOW
    while not fits(newest(engine, moment, symbol)):
        moment += HOUR
    return moment


def every_signal(engine: Engine, hours: int, symbol: str = "BTCUSDT") -> list[tuple[datetime, list[Json]]]:
    """Each hour from the cut on that has signals, with them."""
    moments = (NOW + index * HOUR for index in range(hours))
    found = ((moment, newest(engine, moment, symbol)) for moment in moments)
    return [(moment, one.messages()) for moment, one in found if one.signals]


def get(engine: Engine, prediction_id: str) -> Prediction:
    """The stored row."""
    with transaction(engine) as session:
        [row] = session.scalars(sa.select(Prediction).where(Prediction.id == prediction_id))
    return row


def directions(found: Detection) -> list[int | None]:
    """Of the lines that a candle gets."""
    return [one.direction for one in found.signals] or [None]


def given(answers: list[Json]) -> Json:
    """The first that is no abstention."""
    return next(one for one in answers if one["decision"] != "abstain")
