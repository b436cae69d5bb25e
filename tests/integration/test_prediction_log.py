"""From the stream into the table: each record once, and the bad ones set aside."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from db import predictions
from db.models import Prediction
from db.session import create_engine, transaction
from ml.errors import InputRejected
from tasks import prediction_log
from tasks.prediction_log import GROUP, REJECTED, STREAM, Drained, PredictionLog, bring_back, check_reply_key
from tests.integration.db.prediction_rows import record
from tests.integration.db.rows import race
from tests.integration.prediction_stream import (
    LIMIT,
    ids,
    let_taken_entries_age,
    log_requests,
    store,
    stored,
    waiting,
)
from tests.processes import ROOT, RunningProcess

pytestmark = pytest.mark.inference

REPLY_KEY = "alphaplus:reply:0123456789abcdef"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


# Writing


def test_a_record_and_its_reply_are_there_together_and_the_reply_expires(client: redis.Redis) -> None:
    log = PredictionLog(client)
    assert log.record('[{"a": 1}]', REPLY_KEY, '{"b": "ü"}', 37, LIMIT)
    entries: Any = client.xrange(STREAM)
    assert [fields for _, fields in entries] == [{b"records": b'[{"a": 1}]'}]
    assert client.lrange(REPLY_KEY, 0, -1) == ['{"b": "ü"}'.encode()]
    assert 0 < int(client.ttl(REPLY_KEY)) <= 37


def test_without_a_reply_key_only_the_record_is_written(client: redis.Redis) -> None:
    assert PredictionLog(client).record("[]", None, "unused", 60, LIMIT)
    assert client.keys() == [STREAM.encode()]


def test_a_full_stream_takes_neither_record_nor_reply(client: redis.Redis) -> None:
    log = PredictionLog(client)
    assert [log.record("[]", REPLY_KEY, str(number), 60, 2) for number in range(3)] == [True, True, False]
    assert client.xlen(STREAM) == 2
    assert client.lrange(REPLY_KEY, 0, -1) == [b"1", b"0"]
    assert log.record("[]", REPLY_KEY, "3", 60, 3)


def test_a_server_that_has_forgotten_the_script_gets_it_again(client: redis.Redis) -> None:
    log = PredictionLog(client)
    assert log.record("[]", None, "", 60, LIMIT)
    client.script_flush()
    assert log.record("[]", None, "", 60, LIMIT)
    assert client.xlen(STREAM) == 2


@pytest.mark.parametrize("name", ["a" * 8, "0123456789-abcdef-ABCDEF", "Z" * 64])
def test_a_reply_key_of_the_prefix_is_accepted(name: str) -> None:
    assert check_reply_key(f"alphaplus:reply:{name}") == f"alphaplus:reply:{name}"


@pytest.mark.parametrize(
    "key",
    [
        "inference",
        STREAM,
        "alphaplus:reply:",
        "alphaplus:reply:" + "a" * 7,
        "alphaplus:reply:" + "a" * 65,
        "alphaplus:reply:aaaaaaaa\n",
        "alphaplus:reply:aaaa:aaaa",
        "alphaplus:reply:aaaaaaaü",
        "ALPHAPLUS:REPLY:aaaaaaaa",
        " alphaplus:reply:aaaaaaaa",
        7,
        None,
        ["alphaplus:reply:aaaaaaaa"],
    ],
)
def test_any_other_reply_key_is_refused(key: object) -> None:
    with pytest.raises(InputRejected) as refused:
        check_reply_key(key)
    assert refused.value.field == "reply_to"


# Draining


def test_each_record_becomes_one_row_and_leaves_the_stream(client: redis.Redis, engine: Engine) -> None:
    requests = [[record()], [record(), record()], [], [record() for _ in range(256)]]
    log_requests(client, requests)
    assert store(client, engine, batch=2) == Drained(entries=4, rows=259, rejected=0)
    assert stored(engine) == ids(requests)
    assert waiting(client) == (0, 0)
    assert store(client, engine) == Drained(entries=0, rows=0, rejected=0)
    later = [[record()]]
    log_requests(client, later)
    assert store(client, engine) == Drained(entries=1, rows=1, rejected=0)
    assert stored(engine) == ids(requests + later)


def test_an_empty_log_needs_neither_stream_nor_database(client: redis.Redis) -> None:
    nowhere = create_engine("postgresql://nobody@127.0.0.1:9/none", application_name="tests", pooled=False)
    assert store(client, nowhere) == Drained(entries=0, rows=0, rejected=0)
    assert client.keys() == []


def test_a_request_that_was_answered_twice_is_recorded_once(client: redis.Redis, engine: Engine) -> None:
    first = record(confidence=0.6)
    log_requests(client, [[first], [first | {"confidence": 0.7}]])
    assert store(client, engine) == Drained(entries=2, rows=1, rejected=0)
    with transaction(engine) as session:
        assert session.scalars(sa.select(Prediction.confidence)).all() == [0.6]


def test_a_group_that_somebody_removed_is_made_again(client: redis.Redis, engine: Engine) -> None:
    requests = [[record()], [record()]]
    log_requests(client, requests)
    client.xgroup_destroy(STREAM, GROUP)
    assert store(client, engine) == Drained(entries=2, rows=2, rejected=0)
    assert stored(engine) == ids(requests)


def test_a_drain_ends_when_its_time_is_over(client: redis.Redis, engine: Engine) -> None:
    requests = [[record()] for _ in range(5)]
    log_requests(client, requests)
    assert store(client, engine, batch=2, seconds=0) == Drained(entries=2, rows=2, rejected=0)
    assert waiting(client) == (3, 0)
    assert store(client, engine, batch=2).entries == 3
    assert stored(engine) == ids(requests)


def test_drains_at_once_share_the_work(redis_url: str, client: redis.Redis, engine: Engine) -> None:
    requests = [[record() for _ in range(1 + number % 4)] for number in range(300)]
    log_requests(client, requests)

    def contender() -> Drained:
        with redis.Redis.from_url(redis_url) as own:
            return store(own, engine, batch=7)

    shares = race(contender, contender, contender)
    assert sum(share.entries for share in shares) == 300
    assert sum(share.rows for share in shares) == 750
    assert stored(engine) == ids(requests)
    assert waiting(client) == (0, 0)


def test_records_that_come_in_while_processes_drain_are_all_stored_once(
    redis_url: str, client: redis.Redis, database_url: str, engine: Engine
) -> None:
    context = multiprocessing.get_context("spawn")
    drains = [context.Process(target=_drain_until_told, args=(redis_url, database_url)) for _ in range(2)]
    for process in drains:
        process.start()
    requests = [[record()] for _ in range(2000)]
    log_requests(client, requests)
    client.set("stop", 1)
    for process in drains:
        process.join(60)
    assert [process.exitcode for process in drains] == [0, 0]
    assert stored(engine) == ids(requests)
    assert waiting(client) == (0, 0)


def _drain_until_told(redis_url: str, database_url: str) -> None:
    engine = create_engine(database_url, application_name="tests")
    with redis.Redis.from_url(redis_url) as client:
        while client.xlen(STREAM) or not client.exists("stop"):
            store(client, engine, batch=13)
    engine.dispose()


# Entries that the table refuses

POISON: dict[str, tuple[Any, str]] = {
    "broken JSON": ("[{", "JSON"),
    "no JSON": ("\x00\xff", "JSON"),
    "nested too deep": ("[" * 100_000, "JSON"),
    "no list": ({"id": 1}, "array"),
    "a list of numbers": ([1, 2], "an object"),
    "a column left out": ([{k: v for k, v in record().items() if k != "horizon_end"}], "horizon_end"),
    "no number": ([record(confidence="high")], "confidence"),
    "not a number": ([record(confidence=float("nan"))], "confidence"),
    "a whole number too big for a float": ([record(latency_ms=10**400)], "latency_ms"),
    "no UUID": ([record(id="7")], "uuid"),
    "a zero byte": ([record(signal_id="a\x00")], "0x00"),
    "half a surrogate pair": ([record(signal_id="\ud800")], "signal_id"),
    "an impossible confidence": ([record(confidence=1.7)], "ck_ml_performance_tracking_confidence"),
    "an unknown model": ([record(model_id=987_654)], "ml_models"),
    "nothing where something must be": ([record(horizon_end=None)], "horizon_end"),
    "a good one beside a bad one": ([record(), record(direction=3)], "direction"),
}


@pytest.mark.parametrize("kind", POISON)
def test_a_bad_entry_is_set_aside_and_the_others_are_stored(
    kind: str, client: redis.Redis, engine: Engine
) -> None:
    content, reason = POISON[kind]
    body = content if isinstance(content, str) else json.dumps(content)
    good = [[record()], [record(), record()]]
    log_requests(client, good[:1])
    assert PredictionLog(client).record(body, None, "", 60, LIMIT)
    log_requests(client, good[1:])
    assert store(client, engine) == Drained(entries=3, rows=3, rejected=1)
    assert stored(engine) == ids(good)
    assert waiting(client) == (0, 0)
    rejected: Any = client.xrange(REJECTED)
    ((_, fields),) = rejected
    assert fields[b"records"] == body.encode()
    assert reason in fields[b"error"].decode()
    assert store(client, engine) == Drained(entries=0, rows=0, rejected=0)


def test_an_error_that_nobody_thought_of_sets_only_its_entry_aside(
    client: redis.Redis, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(value: Any) -> str:
        raise OSError

    monkeypatch.setitem(predictions._ENCODERS, "signal_id", ("text", strange))
    good = [[record(signal_id=None)]]
    log_requests(client, [[record(signal_id="a")], *good])
    assert store(client, engine) == Drained(entries=2, rows=1, rejected=1)
    assert stored(engine) == ids(good)
    rejected: Any = client.xrange(REJECTED)
    assert [fields[b"error"] for _, fields in rejected] == [b"OSError()"]


def test_an_entry_of_another_shape_is_set_aside(client: redis.Redis, engine: Engine) -> None:
    client.xadd(STREAM, {"something": "else"})
    assert store(client, engine) == Drained(entries=1, rows=0, rejected=1)
    assert client.xlen(REJECTED) == 1


def test_the_entries_set_aside_are_all_kept_and_count_against_the_limit(
    client: redis.Redis, engine: Engine
) -> None:
    log = PredictionLog(client)
    for number in range(1_200):
        assert log.record(str(number), None, "", 60, LIMIT)
    assert store(client, engine) == Drained(entries=1_200, rows=0, rejected=1_200)
    rejected: Any = client.xrange(REJECTED)
    assert [int(fields[b"records"]) for _, fields in rejected] == list(range(1_200))
    assert not log.record("[]", REPLY_KEY, "1", 60, 1_200)
    assert log.record("[]", REPLY_KEY, "2", 60, 1_201)
    assert client.lrange(REPLY_KEY, 0, -1) == [b"2"]


def test_what_was_set_aside_is_brought_back_and_stored_once_mended(
    client: redis.Redis, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "BATCH_ENTRIES", 3)
    requests = [[record(confidence=0.5 + number / 100)] for number in range(8)]
    log_requests(client, [[record(direction=3)], *requests])
    with monkeypatch.context() as patch:  # a fault of the drain's, say

        def broken(value: Any) -> str:
            raise ZeroDivisionError

        patch.setitem(predictions._ENCODERS, "confidence", ("number", broken))
        assert store(client, engine) == Drained(entries=9, rows=0, rejected=9)

    assert bring_back(client) == 9
    assert client.xlen(REJECTED) == 0
    assert store(client, engine) == Drained(entries=9, rows=8, rejected=1)
    assert stored(engine) == ids(requests)
    assert client.xlen(REJECTED) == 1
    assert bring_back(client) == 1


# Two versions side by side, while an update is under way


def test_records_of_a_newer_version_wait_for_its_drain(
    client: redis.Redis,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newer = [[record() | {"a_new_column": 1, "another": None}], [record(), record() | {"another": 2}]]
    mine = [[record()], [record(), record()]]
    log_requests(client, [*newer, *mine])
    with capture_logs() as events:
        assert store(client, engine, batch=1) == Drained(entries=2, rows=3, rejected=0, left=2)
    assert [(one["event"], one["entries"], one["columns"]) for one in events] == [
        ("prediction_records_too_new", 2, ["a_new_column", "another"])
    ]
    assert waiting(client) == (2, 2)
    assert not client.exists(REJECTED)
    # The next run does not turn to them at once, and they are in nobody's way.
    log_requests(client, mine)
    assert store(client, engine) == Drained(entries=2, rows=0, rejected=0)

    let_taken_entries_age(client)
    assert store(client, engine).left == 2
    let_taken_entries_age(client)
    # As the newer version's would: it knows the columns. (Which table has them does not matter here.)
    newer_write = predictions.write

    def write(session: Session, records: Iterable[dict[str, Any]]) -> int:
        return newer_write(session, [{name: one[name] for name in predictions.COLUMNS} for one in records])

    monkeypatch.setattr(predictions, "unknown_columns", lambda _: set())
    monkeypatch.setattr(predictions, "write", write)
    assert store(client, engine) == Drained(entries=2, rows=3, rejected=0)
    assert stored(engine) == ids(newer + mine)
    assert waiting(client) == (0, 0)


def test_records_of_an_older_version_are_stored_without_the_columns_that_it_did_not_know(
    client: redis.Redis, engine: Engine
) -> None:
    older = record()
    del older["model_age_seconds"], older["signal_id"]
    log_requests(client, [[older]])
    assert store(client, engine) == Drained(entries=1, rows=1, rejected=0)
    with transaction(engine) as session:
        [row] = session.scalars(sa.select(Prediction))
    assert (str(row.id), row.model_age_seconds, row.latency_ms) == (older["id"], None, 1.25)


def test_a_table_that_is_not_there_is_no_fault_of_the_entries(
    client: redis.Redis, empty_database_url: str
) -> None:
    engine = create_engine(empty_database_url, application_name="tests", pooled=False)
    log_requests(client, [[record()]])
    with pytest.raises(sa.exc.ProgrammingError):
        store(client, engine)
    assert waiting(client) == (1, 1)
    assert not client.exists(REJECTED)


# The task


def test_a_worker_drains_when_it_is_told_to(
    worker_process: Callable[..., RunningProcess],
    settings_env: dict[str, str],
    client: redis.Redis,
    engine: Engine,
) -> None:
    worker = worker_process("maintenance", "--pool=solo")
    requests = [[record(), record()]]
    log_requests(client, requests)
    program = "from worker.celery import app; app.send_task('tasks.drain_predictions')"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=settings_env, check=True, timeout=60)
    worker.wait_for(lambda: stored(engine) == ids(requests), "the records in the table")
    worker.wait_for_line("predictions_stored")
    assert waiting(client) == (0, 0)
