"""Requests as bytes, replies as outcomes: no server needed."""

from __future__ import annotations

import base64
import json
import math
import struct
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import redis

from client.broker import backoff_seconds, closed, missed, not_sent
from client.messages import (
    checked_request_id,
    checked_timeout,
    encode_request,
    new_reply_list,
    read_reply,
)
from ml.errors import (
    AnswerTimeout,
    BrokerUnavailable,
    Busy,
    CandlesRejected,
    ConfigRejected,
    InputRejected,
    KeyRejected,
    RetryLater,
)
from tasks.prediction_log import check_reply_key
from tests.acceptance.echo import REPLIES

pytestmark = pytest.mark.inference

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
REPLY_LIST = "alphaplus:reply:0123456789"


def encoded(signal: Any, now: datetime = NOON) -> dict[str, Any]:
    message = encode_request(signal, request_id="r-1", reply_list=REPLY_LIST, timeout_seconds=2.5, now=now)
    envelope: dict[str, Any] = json.loads(message)
    return envelope


def test_the_body_holds_the_signals_and_where_to_reply() -> None:
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    for signal, written in (
        ({"symbol": "BTCUSDT"}, {"symbol": "BTCUSDT"}),
        ([{"symbol": "ÉTH"}, {}], [{"symbol": "ÉTH"}, {}]),
        (({"symbol": "A"},), [{"symbol": "A"}]),
        ([], []),
    ):
        body = json.loads(base64.b64decode(encoded(signal)["body"]))
        assert body == [[written], {"reply_to": REPLY_LIST, "request_id": "r-1"}, embed]


def test_a_request_expires_when_its_caller_stops_waiting_on_the_utc_clock() -> None:
    for now in (NOON, NOON.astimezone(timezone(timedelta(hours=-5)))):
        headers = encoded({}, now)["headers"]
        assert headers["expires"] == "2026-11-23T12:00:02.500000+00:00"
        assert (headers["id"], headers["task"]) == (headers["root_id"], "tasks.predict")
        assert headers["ignore_result"] is True


def test_each_message_has_its_own_ids_also_under_one_request_id() -> None:
    messages = [encoded({}) for _ in range(3)]
    assert len({message["properties"]["delivery_tag"] for message in messages}) == 3
    assert len({message["headers"]["id"] for message in messages}) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, NOON, {1, 2}, b"x", 3 + 4j])
def test_what_json_cannot_say_is_refused_before_it_is_sent(value: object) -> None:
    with pytest.raises(InputRejected) as rejected:
        encoded({"symbol": "BTCUSDT", "confidence": value})
    assert rejected.value.field == "signal"


def test_a_worker_takes_our_reply_lists_and_each_is_another() -> None:
    lists = {new_reply_list() for _ in range(3)}
    assert len(lists) == 3
    assert {check_reply_key(key) for key in lists} == lists


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 3600.5, "5", None])
def test_a_timeout_is_over_zero_and_at_most_an_hour(seconds: Any) -> None:
    with pytest.raises(ConfigRejected, match="timeout_seconds"):
        checked_timeout(seconds)
    assert checked_timeout(3600) == 3600.0


@pytest.mark.parametrize("request_id", ["", "a" * 101, "a b", "ä", "a\n", 7])
def test_a_request_id_is_short_and_plain(request_id: Any) -> None:
    with pytest.raises(InputRejected, match="request_id"):
        checked_request_id(request_id)
    assert checked_request_id("a" * 100) == "a" * 100
    assert checked_request_id(None) != checked_request_id(None)


def test_answers_come_as_they_were_written() -> None:
    outcome = read_reply(b'{"id": "r-1", "answers": [{"confidence": 0.5}, {"confidence": null}]}')
    assert outcome is not None
    assert outcome.request_id == "r-1"
    assert outcome.unwrap() == [{"confidence": 0.5}, {"confidence": None}]


@pytest.mark.parametrize(
    ("symbol", "kind", "message"),
    [
        ("InputRejected", InputRejected, "direction: '3' is not accepted; expected 1 or -1"),
        ("KeyRejected", KeyRejected, "direction: '3' is not accepted; expected 1 or -1"),
        ("CandlesRejected", CandlesRejected, "direction: '3' is not accepted; expected 1 or -1"),
        ("ConfigRejected", ConfigRejected, "direction: '3' is not accepted; expected 1 or -1"),
        ("NewerRejected", InputRejected, "direction: '3' is not accepted; expected 1 or -1"),
        ("FAILED", RetryLater, "the worker failed at request r-1; see the log"),
        ("BUSY", Busy, "the inference workers are busy: queue at 1200, limit 1000; try later"),
        ("FULL", Busy, "the inference workers are busy: records, limit 100000; try later"),
    ],
)
def test_each_refusal_is_its_own_exception(symbol: str, kind: type[Exception], message: str) -> None:
    outcome = read_reply(json.dumps({"id": "r-1", **REPLIES[symbol]}))
    assert outcome is not None
    with pytest.raises(kind) as raised:
        outcome.unwrap()
    assert type(raised.value) is kind
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "raw", ["", "no json", "null", "[1]", "{}", '{"id": 1, "answers": []}', '{"id": "r-1"}', b"\xff",
            '{"id": "r-1", "answers": "none"}', '{"id": "r-1", "busy": 1}', '{"id": "r-1", "error": "x"}']
)  # fmt: skip
def test_what_no_worker_writes_is_nobodys_answer(raw: str | bytes) -> None:
    assert read_reply(raw) is None


def test_connecting_again_is_at_once_then_slower_and_at_least_once_a_second() -> None:
    assert [backoff_seconds(failures) for failures in range(1, 8)] == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert backoff_seconds(10_000) == 1.0


def test_errors_say_whether_redis_or_the_answer_is_missing() -> None:
    gone = redis.ConnectionError("refused")
    assert type(missed(gone, "r-1", 5)) is BrokerUnavailable
    assert type(missed(None, "r-1", 5)) is AnswerTimeout
    assert type(not_sent(gone)) is BrokerUnavailable
    assert type(not_sent(redis.exceptions.OutOfMemoryError("maxmemory"))) is Busy
    with pytest.raises(AnswerTimeout, match="closed"):
        closed("r-1").unwrap()


def sent_candles(candles: Any) -> Any:
    body = json.loads(
        base64.b64decode(encoded([{"symbol": "A"}, {"symbol": "B", "candles": candles}])["body"])
    )
    return body[0][0][1]["candles"]


def test_candles_go_packed_and_what_does_not_fit_as_it_is() -> None:
    rows = [[1_567_468_800_000, 1.5, 2.0, 1.0, 1.75, 10], (1_567_472_400_000, 1, 2, 0.5, 1, 0)]
    packed = struct.unpack("<12d", base64.b64decode(sent_candles(rows)))
    assert list(packed) == [float(number) for row in rows for number in row]
    for other in ([[1, 2, 3]], [[1, 2, 3, 4, 5, "6"]], [[1, 2, 3, 4, 5, 10**400]], "text", [1], None):
        assert sent_candles(other) == other
