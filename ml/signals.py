"""What a caller asks: a signal or a list of them as plain JSON values, checked field by field.

Every refusal names the field as the caller wrote it (``signals[3].direction``), the value and the limit.
"""

from __future__ import annotations

import base64
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ml.candles import Candles
from ml.errors import CandlesRejected, InputRejected
from ml.features import FEATURE_NAMES
from ml.keys import check_symbol, interval_duration
from ml.patterns import PATTERN_NAMES

__all__ = ["MAX_CANDLES", "MAX_SIGNALS", "SignalRequest", "parse_signals"]

Floats = NDArray[np.float64]

MAX_SIGNALS: Final = 256
MAX_CANDLES: Final = 2048
MAX_ID_CHARACTERS: Final = 100
MAX_FEATURE: Final = 1e30
"""A float32 holds it; no feature comes near."""
CLOCK_SKEW: Final = timedelta(seconds=5)
"""A caller's clock may be ahead of ours by so much."""
YEAR_9999_MS: Final = 253_402_300_800_000
LARGEST: Final = float(np.finfo(np.float64).max)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
OHLCV_COLUMNS: Final = 6

FIELDS: Final = (
    "symbol", "interval", "time", "direction", "patterns", "confidence", "id", "candles", "features",
)  # fmt: skip
_BIT: Final = {name: 1 << bit for bit, name in enumerate(PATTERN_NAMES)}
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignalRequest:
    """One signal to answer, checked."""

    symbol: str
    interval: str
    time: datetime | None
    """Close of the signal's candle, aware, UTC; None: the newest closed candle."""
    direction: int
    """+1 long, -1 short."""
    patterns: int | None
    """Bit i: pattern i of ``PATTERN_NAMES``; None: those of the candle are to be found."""
    confidence: float | None
    """The patterns' own, in [0, 1]; None: the model's hit rate of them."""
    signal_id: str | None
    candles: Candles | None
    """The market up to the signal, if the caller brings it."""
    features: Floats | None
    """(``len(FEATURE_NAMES)``,) market features, if the caller brings them; NaN is missing."""


def parse_signals(value: object, *, default_interval: str, now: datetime) -> tuple[SignalRequest, ...]:
    """Check what came over the wire.

    Args:
        value: an object with ``FIELDS``, or a list of 1 to ``MAX_SIGNALS`` of them.
        default_interval: of a signal that names none.
        now: aware; no signal and no candle may lie after it.

    Raises:
        InputRejected: the first field that is missing, misspelt or out of its range; KeyRejected and
            CandlesRejected where it is a part of the key or of the candles.
    """
    if not isinstance(value, list):
        return (_parse(value, "", default_interval, now),)
    if not 1 <= len(value) <= MAX_SIGNALS:
        raise InputRejected("signals", len(value), f"a list of 1 to {MAX_SIGNALS}", "send several requests")
    return tuple(
        _parse(signal, f"signals[{index}].", default_interval, now) for index, signal in enumerate(value)
    )


def _parse(value: object, path: str, default_interval: str, now: datetime) -> SignalRequest:
    try:
        return _signal(value, default_interval, now)
    except InputRejected as error:
        field = f"{path}{error.field}".removesuffix(".")
        raise type(error)(field, error.value, error.limit, error.hint) from None


def _signal(value: object, default_interval: str, now: datetime) -> SignalRequest:
    if not isinstance(value, Mapping):
        raise InputRejected("", _kind(value), "an object with symbol and direction")
    for name in value:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name)[:40], FIELDS, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            raise InputRejected(str(name)[:40], "an unknown field", "one of " + ", ".join(FIELDS), hint)
    interval = value.get("interval")
    interval = default_interval if interval is None else interval
    duration = interval_duration(_scalar(interval))
    symbol = check_symbol(_scalar(_required(value, "symbol")))
    features = _features(value.get("features"))
    request = SignalRequest(
        symbol=symbol,
        interval=interval,
        time=_time(value.get("time"), duration, now),
        direction=_direction(_required(value, "direction")),
        patterns=_patterns(value.get("patterns")),
        confidence=_confidence(value.get("confidence")),
        signal_id=_id(value.get("id")),
        candles=_candles(value.get("candles"), interval, now),
        features=features,
    )
    if features is not None:
        _check_features_alone(request)
    return request


def _check_features_alone(request: SignalRequest) -> None:
    """Features say nothing of the candle that they were made of."""
    if request.candles is not None:
        raise InputRejected("candles", "beside features", "candles or features, not both")
    if request.time is None:
        raise InputRejected("time", None, "the close of the signal's candle, for it brings features")
    if request.patterns is None:
        raise InputRejected("patterns", None, "the signal's patterns, for it brings features")


def _required(value: Mapping[Any, Any], field: str) -> object:
    found = value.get(field, _ABSENT)
    if found is _ABSENT:
        raise InputRejected(field, "missing", "a value: this field is required")
    return found


def _kind(value: object) -> str:
    """What JSON calls it: a long value need not come back whole."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object of {len(value)} fields"
    return "null" if value is None else str(value)[:80]


def _scalar(value: object) -> object:
    return _kind(value) if isinstance(value, list | Mapping) else value


def _direction(value: object) -> int:
    if type(value) is not int or value not in (1, -1):
        raise InputRejected("direction", _kind(value), "1 (long) or -1 (short)")
    return value


def _confidence(value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1:  # type: ignore[operator]
        raise InputRejected("confidence", _kind(value), "a number from 0 to 1")
    return float(value)  # type: ignore[arg-type]


def _id(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_CHARACTERS or not value.isprintable():
        raise InputRejected("id", _kind(value), f"1 to {MAX_ID_CHARACTERS} printable characters")
    return value


def _time(value: object, duration: timedelta, now: datetime) -> datetime | None:
    if value is None:
        return None
    limit = "an ISO-8601 time with its zone, such as 2026-11-23T14:00:00+00:00"
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InputRejected("time", _kind(value), limit)
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise InputRejected("time", _kind(value), limit) from None
    if (moment - EPOCH) % duration:
        raise InputRejected("time", _kind(value), f"the close of a candle: whole steps of {duration}")
    if moment > now + CLOCK_SKEW:
        raise InputRejected("time", _kind(value), f"a time that has come: now is {now.isoformat()}")
    return moment


def _patterns(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= len(PATTERN_NAMES):
        limit = f"a list of 1 to {len(PATTERN_NAMES)} names; left out, the candle's are found"
        raise InputRejected("patterns", _kind(value), limit)
    mask = 0
    for index, name in enumerate(value):
        bit = _BIT.get(name) if isinstance(name, str) else None
        if bit is None:
            limit = "one of TA-Lib's patterns, such as CDLENGULFING"
            raise InputRejected(f"patterns[{index}]", _kind(name), limit)
        mask |= bit
    return mask


def _features(value: object) -> Floats | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InputRejected("features", _kind(value), f"an object of {len(FEATURE_NAMES)} names and numbers")
    numbers = np.empty(len(FEATURE_NAMES))
    for index, name in enumerate(FEATURE_NAMES):
        number = value.get(name, _ABSENT)
        if number is None:
            numbers[index] = math.nan
        elif type(number) in (int, float) and abs(number) < MAX_FEATURE:
            numbers[index] = number
        else:
            shown = "missing" if number is _ABSENT else _kind(number)
            raise InputRejected(f"features.{name}", shown, f"a number under {MAX_FEATURE:g}, or null")
    if len(value) > len(FEATURE_NAMES):
        unknown = next(str(name)[:40] for name in value if name not in FEATURE_NAMES)
        raise InputRejected(f"features.{unknown}", "an unknown name", "the names of docs/features.md")
    return numbers


def _candles(value: object, interval: str, now: datetime) -> Candles | None:
    """ccxt's rows: ``[open time in ms, open, high, low, close, volume]``, as JSON or packed."""
    if value is None:
        return None
    table = _unpacked(value) if isinstance(value, str) else _listed(value)
    ms = table[:, 0]
    bad = ~((ms >= 0) & (ms < YEAR_9999_MS) & (np.floor(ms) == ms))
    if bad.any():
        row = int(np.argmax(bad))
        limit = "a whole number of milliseconds since 1970"
        raise CandlesRejected(f"candles[{row}], open_time", float(ms[row]), limit)
    open_time = (ms.astype(np.int64) * 1000).astype("datetime64[us]")
    candles = Candles(interval, open_time, *table[:, 1:].T)
    fault = candles.first_fault(now=now + CLOCK_SKEW)
    if fault is not None:
        raise CandlesRejected(f"candles[{fault.row}], {fault.field}", fault.value, fault.limit)
    return candles


def _unpacked(text: str) -> Floats:
    """(n, 6) of base64 of little-endian float64, row after row: a twentieth of the time that JSON takes."""
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f8")
    except ValueError:
        numbers = np.empty(0)
    rows, rest = divmod(len(numbers), OHLCV_COLUMNS)
    if rest or not 1 <= rows <= MAX_CANDLES:
        limit = f"base64 of 1 to {MAX_CANDLES} rows of six little-endian float64"
        raise CandlesRejected("candles", f"a text of {len(text)} characters", limit)
    return numbers.reshape(rows, OHLCV_COLUMNS)


def _listed(value: object) -> Floats:
    """(n, 6) of a list of rows."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CANDLES:
        raise CandlesRejected("candles", _kind(value), f"a list of 1 to {MAX_CANDLES} rows")
    # Looked at before NumPy does: of one long text among the numbers it would make gigabytes of text.
    shaped = all(type(row) is list and len(row) == OHLCV_COLUMNS for row in value)
    if not shaped or not set(map(type, chain.from_iterable(value))) <= {int, float}:
        raise _first_bad_row(value)
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError:  # a whole number that no float holds
        raise _first_bad_row(value) from None


def _first_bad_row(rows: list[object]) -> CandlesRejected:
    limit = "[open time in ms, open, high, low, close, volume], six numbers"
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != OHLCV_COLUMNS:
            return CandlesRejected(f"candles[{index}]", _kind(row), limit)
        for value in row:
            if type(value) not in (int, float) or abs(value) > LARGEST:
                return CandlesRejected(f"candles[{index}]", _kind(value), limit)
    return CandlesRejected("candles", _kind(rows), f"rows of {limit}")
