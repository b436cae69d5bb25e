"""Answers given, and what became of them. A prediction is written once; its outcome is added once.

Writing the same prediction again changes nothing, so whoever brings it here may bring it twice. Candles'
COPY is binary because they are arrays; records come as JSON, and go on as text.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg2.extensions
import sqlalchemy as sa
from sqlalchemy.orm import Session

from db.base import Json
from db.models import Prediction
from ml.errors import InputRejected
from ml.keys import MODEL_REGIMES, check_symbol

__all__ = [
    "COLUMNS",
    "EACH_KEY",
    "Outcome",
    "Prediction",
    "ResolvedPrediction",
    "beginning",
    "get",
    "recent",
    "resolve",
    "resolved",
    "unknown_columns",
    "write",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one prediction. It may have no label: where the candles have a gap, say."""

    id: UUID
    signal_time: datetime
    label: int | None
    """1: the profit-take was reached first; 0: it was not."""
    label_end: datetime | None
    """When the label became known; needed with a label."""
    net_return_atr: float | None
    """After fees and slippage, in ATR of the signal's candle."""
    resolved_at: datetime
    """The clock's now."""
    metadata: Json = field(default_factory=dict)
    """Added to the prediction's own; a key that is there already is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPrediction:
    """A prediction whose label is known, without what only its replay needs."""

    id: UUID
    signal_time: datetime
    as_of: datetime
    regime: str
    model_id: int | None
    served_regime: str | None
    role: str
    direction: int
    patterns: list[str]
    pattern_confidence: float | None
    confidence: float | None
    decision: str
    abstain_reason: str | None
    expected_net_return_atr: float | None
    out_of_distribution: float | None
    label: float
    label_end: datetime
    net_return_atr: float | None
    resolved_at: datetime


def write(session: Session, records: Iterable[Mapping[str, Any]]) -> int:
    """Add the records that are new, in bulk. Several writers at once are in no danger of each other.

    Of two records with one id and signal time the first one stays. A record that is refused refuses
    them all.

    Args:
        session: the caller's.
        records: as they come out of JSON: of ``COLUMNS`` and nothing else; times are ISO-8601 texts with a
            zone, features base64; numbers are finite. One that is left out is None, as a version before
            this one does that does not know it.

    Returns:
        How many rows are new.

    Raises:
        InputRejected: a record is no object, has a key too many, or a value of another kind.
        sqlalchemy.exc.DataError, psycopg2.DataError: a text that is no UUID or no time.
        sqlalchemy.exc.IntegrityError: a value that the table refuses, None where there must be one, or a
            model that does not exist.
    """
    lines = "".join(_line(position, record) for position, record in enumerate(records))
    if not lines:
        return 0
    _stage(session, lines)
    return _changed(session.execute(_INSERT))


def get(session: Session, prediction_id: UUID) -> Prediction | None:
    """The prediction of this id, or None."""
    query = sa.select(Prediction).where(Prediction.id == prediction_id)
    return session.scalars(query.order_by(Prediction.signal_time).limit(1)).one_or_none()


def recent(
    session: Session,
    *,
    symbol: str | None = None,
    interval: str | None = None,
    regime: str | None = None,
    decision: str | None = None,
    resolved: bool | None = None,
    limit: int,
) -> Sequence[Prediction]:
    """The newest ``limit`` answers by signal time, newest first; of all keys, or of those that fit.

    Champions' answers: nobody was given a shadow's.

    Each key's newest are looked up by index, and the newest of these are taken: there are few keys and
    many predictions.
    """
    query = sa.select(Prediction).from_statement(_RECENT)
    parameters = {"symbol": symbol, "interval": interval, "regime": regime, "decision": decision}
    return session.scalars(query, parameters | {"resolved": resolved, "limit": limit}).all()


def beginning(session: Session, digits: str, limit: int) -> Sequence[Prediction]:
    """At most ``limit`` predictions whose id begins with these digits.

    Args:
        session: the caller's.
        digits: 1 to 32 of 0-9 and a-f.
        limit: rows.
    """
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    return session.scalars(
        sa.select(Prediction).where(Prediction.id.between(first, last)).order_by(Prediction.id).limit(limit)
    ).all()


def resolve(session: Session, outcomes: Iterable[Outcome]) -> int:
    """Add outcomes, in bulk. A prediction that has one keeps it; one that is not there is passed over.

    Returns:
        How many predictions were changed.

    Raises:
        ValueError: a net return is not finite.
        sqlalchemy.exc.IntegrityError: a label is not 0 or 1, or has no end.
    """
    values = json.dumps([asdict(outcome) for outcome in outcomes], default=str, allow_nan=False)
    return _changed(session.execute(_RESOLVE, {"outcomes": values}))


def resolved(
    session: Session, *, symbol: str, interval: str, since: datetime, until: datetime
) -> list[ResolvedPrediction]:
    """Answers with a label, by signal time: of candles that closed from ``since`` on (itself included).

    Shadows are left out: nobody was served.

    A label that became known after ``until`` is left out, whenever its row was written: asked again for
    the same span, the answer is the same once every outcome is in.
    """
    columns = [Prediction.__table__.c[name] for name in ResolvedPrediction.__slots__]
    query = (
        sa.select(*columns)
        .where(
            Prediction.symbol == check_symbol(symbol),
            Prediction.interval == interval,
            Prediction.regime.in_(MODEL_REGIMES),  # all of them: the index has it before the time
            Prediction.signal_time >= since,
            Prediction.signal_time < until,
            Prediction.role == "champion",
            Prediction.label.is_not(None),
            Prediction.label_end <= until,
        )
        .order_by(Prediction.signal_time, Prediction.id)
    )
    return [ResolvedPrediction(**row) for row in session.execute(query).mappings()]


def unknown_columns(record: Any) -> set[str]:
    """Keys that this version knows no column for, as a newer version's record may have."""
    return record.keys() - _ENCODERS.keys() if isinstance(record, Mapping) else set()


def _stage(session: Session, lines: str) -> None:
    session.execute(_STAGING)
    session.execute(sa.text("TRUNCATE staged_predictions"))
    raw = session.connection().connection.driver_connection
    assert isinstance(raw, psycopg2.extensions.connection)
    with raw.cursor() as cursor:
        cursor.copy_expert("COPY staged_predictions FROM STDIN", io.BytesIO(lines.encode()))


def _changed(result: sa.Result[Any]) -> int:
    assert isinstance(result, sa.CursorResult)
    return result.rowcount


def _line(position: int, record: Mapping[str, Any]) -> str:
    """One row of COPY's text format: https://www.postgresql.org/docs/current/sql-copy.html."""
    if not isinstance(record, Mapping):
        raise InputRejected("record", record, "an object, keyed by columns of ml_performance_tracking")
    if unknown := unknown_columns(record):
        raise InputRejected("record", sorted(unknown), "columns of ml_performance_tracking")
    fields = [str(position)]
    for name, (kind, encode) in _ENCODERS.items():
        value = record.get(name)
        try:
            fields.append("\\N" if value is None else encode(value))
        except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            raise InputRejected(name, value, kind) from error
    return "\t".join(fields) + "\n"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # half of a surrogate pair is no text
    return _escaped(value)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return repr(value)


def _time(value: Any) -> str:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError
    return moment.isoformat()


def _names(value: Any) -> str:
    if not isinstance(value, list):
        raise TypeError
    quoted = (name.replace("\\", "\\\\").replace('"', '\\"') for name in value)
    return _text("{" + ",".join(f'"{name}"' for name in quoted) + "}")


def _bytes(value: Any) -> str:
    return "\\\\x" + base64.b64decode(value, validate=True).hex()


def _object(value: Any) -> str:
    if not isinstance(value, dict):
        raise TypeError
    return _escaped(json.dumps(value, allow_nan=False))


def _escaped(text: str) -> str:
    return text if text.isalnum() else text.translate(_ESCAPES)  # most are


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})

_TYPES = {
    "uuid": ("a UUID", _text),
    "text": ("text", _text),
    "timestamptz": ("an ISO-8601 time with its zone", _time),
    "bigint": ("a number", _number),
    "smallint": ("a number", _number),
    "float8": ("a finite number", _number),
    "text[]": ("a list of names", _names),
    "bytea": ("base64", _bytes),
    "jsonb": ("an object", _object),
}

_COLUMN_TYPES = {
    "id": "uuid",
    "signal_time": "timestamptz",
    "signal_id": "text",
    "as_of": "timestamptz",
    "symbol": "text",
    "interval": "text",
    "regime": "text",
    "model_id": "bigint",
    "served_regime": "text",
    "role": "text",
    "direction": "smallint",
    "patterns": "text[]",
    "pattern_confidence": "float8",
    "confidence": "float8",
    "decision": "text",
    "abstain_reason": "text",
    "expected_net_return_atr": "float8",
    "out_of_distribution": "float8",
    "model_age_seconds": "float8",
    "latency_ms": "float8",
    "features": "bytea",
    "entry_price": "float8",
    "atr": "float8",
    "horizon_end": "timestamptz",
    "metadata": "jsonb",
}

COLUMNS = tuple(_COLUMN_TYPES)
"""Keys of a record: columns of ``ml_performance_tracking``. The others are PostgreSQL's or the outcome's."""

_ENCODERS: dict[str, tuple[str, Callable[[Any], str]]] = {
    name: _TYPES[kind] for name, kind in _COLUMN_TYPES.items()
}

EACH_KEY = """
WITH RECURSIVE keys AS (
    (SELECT symbol, interval, regime FROM ml_performance_tracking
     ORDER BY symbol, interval, regime LIMIT 1)
    UNION ALL
    SELECT next.* FROM keys CROSS JOIN LATERAL (
        SELECT symbol, interval, regime FROM ml_performance_tracking
        WHERE (symbol, interval, regime) > (keys.symbol, keys.interval, keys.regime)
        ORDER BY symbol, interval, regime LIMIT 1
    ) AS next
)
"""
"""Begins a query with the table's keys: hops from one to the next along the index, for there are few keys and
many predictions (PostgreSQL's wiki calls it a loose index scan)."""

_STAGING = sa.text(
    "CREATE TEMPORARY TABLE IF NOT EXISTS staged_predictions (position integer, "
    + ", ".join(f"{name} {kind}" for name, kind in _COLUMN_TYPES.items())
    + ") ON COMMIT DELETE ROWS"
)

# In one order, or two writers of the same records could wait for each other.
_INSERT = sa.text(f"""
    INSERT INTO ml_performance_tracking ({", ".join(COLUMNS)})
    SELECT {", ".join(COLUMNS)} FROM staged_predictions ORDER BY id, signal_time, position
    ON CONFLICT (id, signal_time) DO NOTHING
""")

_RECENT = sa.text(f"""
    {EACH_KEY}
    SELECT newest.* FROM keys CROSS JOIN LATERAL (
        SELECT * FROM ml_performance_tracking
        WHERE symbol = keys.symbol AND interval = keys.interval AND regime = keys.regime
          AND role = 'champion'
          AND (CAST(:decision AS text) IS NULL OR decision = :decision)
          AND (CAST(:resolved AS boolean) IS NULL OR (resolved_at IS NOT NULL) = :resolved)
        ORDER BY signal_time DESC LIMIT :limit
    ) AS newest
    WHERE (CAST(:symbol AS text) IS NULL OR keys.symbol = :symbol)
      AND (CAST(:interval AS text) IS NULL OR keys.interval = :interval)
      AND (CAST(:regime AS text) IS NULL OR keys.regime = :regime)
    ORDER BY newest.signal_time DESC, newest.id LIMIT :limit
""")

# The rows are locked in one order first, or two who resolve the same ones could wait for each other.
_RESOLVE = sa.text("""
    WITH open AS (
        SELECT tracked.id, tracked.signal_time, outcome.label, outcome.label_end, outcome.net_return_atr,
               outcome.resolved_at, outcome.metadata
        FROM jsonb_to_recordset(CAST(:outcomes AS jsonb)) AS outcome (
            id uuid, signal_time timestamptz, label float8, label_end timestamptz, net_return_atr float8,
            resolved_at timestamptz, metadata jsonb
        ) JOIN ml_performance_tracking AS tracked USING (id, signal_time)
        WHERE tracked.resolved_at IS NULL
        ORDER BY tracked.id, tracked.signal_time FOR UPDATE OF tracked
    )
    UPDATE ml_performance_tracking AS tracked
    SET label = open.label, label_end = open.label_end, net_return_atr = open.net_return_atr,
        resolved_at = open.resolved_at, metadata = tracked.metadata || open.metadata
    FROM open WHERE (tracked.id, tracked.signal_time) = (open.id, open.signal_time)
""")
