"""What a caller asks is checked field by field: each refusal names the field, the value and the limit."""

from __future__ import annotations

import base64
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from ml.errors import CandlesRejected, InputRejected, KeyRejected
from ml.features import FEATURE_NAMES
from ml.patterns import pattern_mask
from ml.signals import MAX_CANDLES, MAX_SIGNALS, SignalRequest, parse_signals

pytestmark = pytest.mark.inference

NOW = datetime(2026, 11, 23, 14, 0, 30, tzinfo=UTC)
LAST_CLOSE = datetime(2026, 11, 23, 14, tzinfo=UTC)
HOUR_MS = 3_600_000
SIGNAL: dict[str, Any] = {"symbol": "BTCUSDT", "direction": 1}


def rows(
    count: int = 3, *, last_close: datetime = datetime(2026, 11, 23, 14, tzinfo=UTC)
) -> list[list[float]]:
    first = int(last_close.timestamp() * 1000) - count * HOUR_MS
    return [[first + at * HOUR_MS, 10.0, 12.0, 9.0, 11.0, 5.0] for at in range(count)]


def features(**changed: object) -> dict[str, object]:
    return dict.fromkeys(FEATURE_NAMES, 0.5) | changed


def parse(value: object) -> tuple[SignalRequest, ...]:
    return parse_signals(value, default_interval="1h", now=NOW)


def one(**fields: object) -> SignalRequest:
    (request,) = parse(SIGNAL | fields)
    return request


def test_a_signal_with_the_least_fields_takes_the_defaults() -> None:
    request = one()
    assert (request.symbol, request.interval, request.direction) == ("BTCUSDT", "1h", 1)
    assert [request.time, request.patterns, request.confidence, request.signal_id] == [None] * 4
    assert [request.candles, request.features] == [None, None]


def test_every_field_is_read() -> None:
    request = one(
        interval="30m",
        time="2026-11-23T15:30:00+02:00",
        direction=-1,
        patterns=["CDLDOJI", "CDLENGULFING"],
        confidence=1,
        id="mine 1",
    )
    assert request.time == datetime(2026, 11, 23, 13, 30, tzinfo=UTC)
    assert request.patterns == pattern_mask(["CDLENGULFING", "CDLDOJI"])
    assert (request.interval, request.direction, request.confidence) == ("30m", -1, 1.0)
    assert request.signal_id == "mine 1"


def test_candles_are_read_as_ccxt_gives_them() -> None:
    candles = one(candles=rows(2)).candles
    assert candles is not None
    assert candles.open_time.tolist() == [datetime(2026, 11, 23, hour) for hour in (12, 13)]  # noqa: DTZ001
    assert [candles.open[0], candles.high[0], candles.low[0], candles.close[0], candles.volume[0]] == [
        10.0, 12.0, 9.0, 11.0, 5.0,
    ]  # fmt: skip


def packed(table: list[list[float]]) -> str:
    return base64.b64encode(np.array(table, "<f8").tobytes()).decode()


def test_packed_candles_are_the_same_candles() -> None:
    listed, binary = one(candles=rows(3)).candles, one(candles=packed(rows(3))).candles
    assert listed is not None
    assert binary is not None
    for name in ("open_time", "open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(getattr(binary, name), getattr(listed, name))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "candles"),
        ("?", "candles"),
        (packed(rows(2))[:-8], "candles"),
        (base64.b64encode(b"x" * 47).decode(), "candles"),
        (packed(rows(MAX_CANDLES + 1)), "candles"),
        (packed([[math.nan] * 6]), "candles[0], open_time"),
        (packed([[rows(1)[0][0], 1, 1, 1, math.inf, 1]]), "candles[0], close"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_bad_packed_candles_are_named(text: str, field: str) -> None:
    with pytest.raises(CandlesRejected) as refused:
        one(candles=text)
    assert refused.value.field == field


def test_features_are_put_in_order_and_null_is_missing() -> None:
    given = features(hour_cos=None, move_1=-2) | {"adx_14": 30}
    request = one(features=dict(reversed(given.items())), time="2026-11-23T14:00:00Z", patterns=["CDLDOJI"])
    assert request.features is not None
    expected = [math.nan if given[name] is None else float(str(given[name])) for name in FEATURE_NAMES]
    np.testing.assert_array_equal(request.features, expected)


def test_a_list_keeps_its_order() -> None:
    requests = parse([SIGNAL | {"id": str(index)} for index in range(MAX_SIGNALS)])
    assert [request.signal_id for request in requests] == [str(index) for index in range(MAX_SIGNALS)]


SCALARS = [
    ({"symbol": "btcusdt"}, "symbol", KeyRejected),
    ({"symbol": "B"}, "symbol", KeyRejected),
    ({"symbol": ["BTCUSDT"]}, "symbol", KeyRejected),
    ({"symbol": None}, "symbol", KeyRejected),
    ({"interval": "2h"}, "interval", KeyRejected),
    ({"interval": 60}, "interval", KeyRejected),
    ({"interval": {"a": 1}}, "interval", KeyRejected),
    ({"direction": 3}, "direction", InputRejected),
    ({"direction": 0}, "direction", InputRejected),
    ({"direction": True}, "direction", InputRejected),
    ({"direction": 1.0}, "direction", InputRejected),
    ({"direction": "long"}, "direction", InputRejected),
    ({"direction": None}, "direction", InputRejected),
    ({"confidence": 1.7}, "confidence", InputRejected),
    ({"confidence": -0.1}, "confidence", InputRejected),
    ({"confidence": math.nan}, "confidence", InputRejected),
    ({"confidence": True}, "confidence", InputRejected),
    ({"confidence": "0.5"}, "confidence", InputRejected),
    ({"confidence": 10**400}, "confidence", InputRejected),
    ({"id": ""}, "id", InputRejected),
    ({"id": "x" * 101}, "id", InputRejected),
    ({"id": "a\x00b"}, "id", InputRejected),
    ({"id": "\ud800"}, "id", InputRejected),
    ({"id": 7}, "id", InputRejected),
    ({"time": "2026-11-23T14:00:00"}, "time", InputRejected),
    ({"time": "yesterday"}, "time", InputRejected),
    ({"time": 1_700_000_000}, "time", InputRejected),
    ({"time": "2026-11-23T13:30:00Z"}, "time", InputRejected),
    ({"time": "2026-11-23T15:00:00Z"}, "time", InputRejected),
    ({"time": "0001-01-01T00:00:00+14:00"}, "time", InputRejected),
    ({"patterns": []}, "patterns", InputRejected),
    ({"patterns": "CDLDOJI"}, "patterns", InputRejected),
    ({"patterns": ["CDLDOJI"] * 62}, "patterns", InputRejected),
    ({"patterns": ["CDLDOJI", "CDLDOGE"]}, "patterns[1]", InputRejected),
    ({"patterns": [["CDLDOJI"]]}, "patterns[0]", InputRejected),
    ({"patern": ["CDLDOJI"]}, "patern", InputRejected),
]


@pytest.mark.parametrize(("fields", "field", "error"), SCALARS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_named(fields: dict[str, object], field: str, error: type[InputRejected]) -> None:
    with pytest.raises(error) as alone:
        one(**fields)
    assert alone.value.field == field
    assert alone.value.limit
    with pytest.raises(error) as listed:
        parse([SIGNAL, SIGNAL, SIGNAL | fields])
    assert listed.value.field == f"signals[2].{field}"


@pytest.mark.parametrize("missing", ["symbol", "direction"])
def test_a_missing_field_is_named(missing: str) -> None:
    with pytest.raises(InputRejected, match=rf"^{missing}: 'missing' is not accepted"):
        parse({name: value for name, value in SIGNAL.items() if name != missing})


def test_a_misspelt_field_is_told_the_right_one() -> None:
    with pytest.raises(InputRejected, match="did you mean direction"):
        parse(SIGNAL | {"dirction": 1})


@pytest.mark.parametrize("value", [None, 3, "BTCUSDT", [], [None], [[]], [SIGNAL] * (MAX_SIGNALS + 1)])
def test_what_is_no_signal_is_rejected(value: object) -> None:
    with pytest.raises(InputRejected):
        parse(value)


def test_a_time_may_be_ahead_by_a_clocks_skew_only() -> None:
    ahead = NOW.replace(second=0)
    just = parse_signals(
        SIGNAL | {"time": ahead.isoformat()}, default_interval="1h", now=ahead - timedelta(seconds=5)
    )
    assert just[0].time == ahead
    with pytest.raises(InputRejected, match=r"^time: "):
        parse_signals(
            SIGNAL | {"time": ahead.isoformat()}, default_interval="1h", now=ahead - timedelta(seconds=6)
        )


def swapped() -> list[list[float]]:
    first, second, third = rows()
    return [second, first, third]


def changed(row: int, column: int, value: object) -> list[list[object]]:
    table: list[list[object]] = [list(one_row) for one_row in rows()]
    table[row][column] = value
    return table


CANDLES = [
    ([], "candles"),
    ({"open": [1]}, "candles"),
    (rows(MAX_CANDLES + 1), "candles"),
    ([[1, 2, 3]], "candles[0]"),
    ([rows()[0], rows()[1][:5]], "candles[1]"),
    ([rows()[0], None], "candles[1]"),
    (changed(1, 4, "11"), "candles[1]"),
    (changed(1, 4, None), "candles[1]"),
    (changed(1, 4, [1]), "candles[1]"),
    (changed(1, 4, 10**400), "candles[1]"),
    (changed(1, 4, math.nan), "candles[1], close"),
    (changed(1, 4, math.inf), "candles[1], close"),
    (changed(1, 2, -1.0), "candles[1], high"),
    (changed(1, 5, -1.0), "candles[1], volume"),
    (changed(1, 0, -1), "candles[1], open_time"),
    (changed(1, 0, 1e300), "candles[1], open_time"),
    (changed(1, 0, 0.5), "candles[1], open_time"),
    (changed(1, 0, rows()[1][0] + 1), "candles[1], open_time"),
    (swapped(), "candles[1], open_time"),
    (rows(last_close=datetime(2026, 11, 23, 15, tzinfo=UTC)), "candles[2], open_time"),
]


@pytest.mark.parametrize(("candles", "field"), CANDLES, ids=[str(index) for index in range(len(CANDLES))])
def test_bad_candles_name_row_and_column(candles: object, field: str) -> None:
    with pytest.raises(CandlesRejected) as refused:
        parse([SIGNAL | {"candles": candles}])
    assert refused.value.field == f"signals[0].{field}"
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ([0.5] * len(FEATURE_NAMES), "features"),
        (features(move_1=math.inf), "features.move_1"),
        (features(move_1=math.nan), "features.move_1"),
        (features(move_1=1e31), "features.move_1"),
        (features(move_1=True), "features.move_1"),
        (features(move_1="1"), "features.move_1"),
        (features(moon=1), "features.moon"),
        (dict.fromkeys(FEATURE_NAMES[1:], 0.5), f"features.{FEATURE_NAMES[0]}"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_features_are_named(given: object, field: str) -> None:
    with pytest.raises(InputRejected) as refused:
        one(features=given, time="2026-11-23T14:00:00Z", patterns=["CDLDOJI"])
    assert refused.value.field == field


@pytest.mark.parametrize("left_out", ["time", "patterns"])
def test_features_alone_do_not_say_when_or_what(left_out: str) -> None:
    fields = {"features": features(), "time": "2026-11-23T14:00:00Z", "patterns": ["CDLDOJI"]}
    with pytest.raises(InputRejected) as refused:
        one(**{name: value for name, value in fields.items() if name != left_out})
    assert refused.value.field == left_out


def test_candles_and_features_are_not_both_accepted() -> None:
    with pytest.raises(InputRejected, match="candles or features, not both"):
        one(features=features(), candles=rows(), time="2026-11-23T14:00:00Z", patterns=["CDLDOJI"])
