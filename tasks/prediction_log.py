"""The prediction log: every answer is in a Redis stream before its caller has it.

A worker puts the records of a request into the stream and its answer on the caller's reply list in one
Lua script, so there is neither an answer without its record nor a wait for PostgreSQL. From the stream
``tasks.drain_predictions`` brings the records into the table. Redis gives an entry to one drain at a time and
keeps it until that one has committed; an entry whose drain died goes to the next one, which may find its
rows there already.

Nothing is thrown away. What the table refuses waits in a second stream for a person; what a newer version
wrote waits in the first one for a drain of that version.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg2
import redis
import sqlalchemy as sa
import structlog
from celery import shared_task
from sqlalchemy.orm import Session

from db import predictions
from ml.errors import Busy, InputRejected, StoreFull, StoreUnavailable
from tasks.base import Task

__all__ = [
    "GROUP",
    "REJECTED",
    "REPLY_PREFIX",
    "STREAM",
    "Drained",
    "PredictionLog",
    "bring_back",
    "check_reply_key",
    "drain",
    "drain_predictions",
]

STREAM: Final = "alphaplus:predictions"
GROUP: Final = "store"
FIELD: Final = "records"
"""Of an entry: a JSON array of records, those of one request."""
REJECTED: Final = "alphaplus:predictions:rejected"
"""Entries that the table refuses, each with the error; a person looks, and may ``bring_back`` them. They
count against the limit of the log: a fault that has every record refused is told to the callers."""
ERROR_CHARACTERS = 500

TAKE_OVER_MS = 30_000
"""After so long a drain that has not acknowledged an entry is taken for dead. One that was only slow does
no harm: the entry is written twice, the second time without effect."""
BATCH_ENTRIES = 128
"""Of at most 256 records each; what is in memory at once."""
DRAIN_SECONDS = 5.0
UPDATE: Final = "a newer version wrote them: update the maintenance workers too, and they are stored"
SOCKET_SECONDS = 10.0

log = structlog.get_logger(__name__)

REPLY_PREFIX: Final = "alphaplus:reply:"
_REPLY_KEY = re.compile(re.escape(REPLY_PREFIX) + "[A-Za-z0-9-]{8,64}")

_RECORD = """
if redis.call('XLEN', KEYS[1]) + redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[1]) then
    return 0
end
if redis.call('XLEN', KEYS[1]) == 0 then
    -- Here, because draining a memory that is full cannot: making a group needs some.
    redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[6], '0', 'MKSTREAM')
end
redis.call('XADD', KEYS[1], '*', ARGV[2], ARGV[3])
if KEYS[3] then
    redis.call('LPUSH', KEYS[3], ARGV[4])
    redis.call('EXPIRE', KEYS[3], ARGV[5])
end
return 1
"""


def check_reply_key(key: object) -> str:
    """Return ``key`` if a worker may write a reply there; any other key could be anybody's data.

    Raises:
        InputRejected: it is not the prefix and 8 to 64 of A-Z, a-z, 0-9 and "-".
    """
    if not isinstance(key, str) or not _REPLY_KEY.fullmatch(key):
        raise InputRejected("reply_to", key, f"{REPLY_PREFIX} and 8 to 64 of A-Z, a-z, 0-9 and -")
    return key


class PredictionLog:
    """The writing end of the stream.

    Args:
        client: of this process; used for nothing until the first record.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._record = client.register_script(_RECORD)

    def record(
        self, records_json: str, reply_key: str | None, reply_json: str, reply_seconds: int, limit: int
    ) -> bool:
        """Log the records of one request and push its reply, both or neither, in one round trip.

        Where the connection breaks, redis-py sends again, and so may log and reply twice: the second
        record has the first one's ids and is dropped on its way into the table.

        Args:
            records_json: JSON array of 1 to 256 records, keyed by the columns of ``ml_performance_tracking``.
            reply_key: as ``check_reply_key`` accepts it; None pushes nothing.
            reply_json: the reply; unused without ``reply_key``.
            reply_seconds: how long the reply list is kept.
            limit: no more requests than this wait, the rejected ones included.

        Returns:
            False if so many wait: then nothing was logged and nothing pushed.

        Raises:
            Busy: Redis has no memory left; nothing was logged and nothing pushed.
        """
        keys = [STREAM, REJECTED] if reply_key is None else [STREAM, REJECTED, reply_key]
        try:
            recorded = self._record(keys, [limit, FIELD, records_json, reply_json, reply_seconds, GROUP])
        except redis.exceptions.OutOfMemoryError as error:
            raise Busy(f"memory: {error}") from error
        return bool(recorded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What one drain did."""

    entries: int
    """Taken off the stream, rejected ones included."""
    rows: int
    """New in the table."""
    rejected: int
    left: int = 0
    """Left on the stream, for they have columns that this version does not know."""

    def plus(self, taken: int, done: _Stored) -> Drained:
        """With one more batch, of ``taken`` entries."""
        return Drained(
            entries=self.entries + taken - len(done.left),
            rows=self.rows + done.rows,
            rejected=self.rejected + len(done.refused),
            left=self.left + len(done.left),
        )


class _TooNew(Exception):
    """An entry has columns that this version does not know."""

    def __init__(self, columns: set[str]) -> None:
        self.columns = columns


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    id: bytes
    body: bytes

    def records(self) -> list[Any]:
        """Raises InputRejected: it is not a JSON array; _TooNew."""
        try:
            records = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise InputRejected(FIELD, self.body.decode(errors="replace"), "JSON", str(error)) from error
        if not isinstance(records, list):
            raise InputRejected(FIELD, records, "an array of records")
        if unknown := set[str]().union(*map(predictions.unknown_columns, records)):
            raise _TooNew(unknown)
        return records


@dataclass(slots=True)
class _Stored:
    """What became of a batch; the entries that are named nowhere are in the table."""

    rows: int = 0
    refused: list[tuple[_Entry, Exception]] = field(default_factory=list)
    left: set[bytes] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    """Columns of those that were left."""


def drain(
    client: redis.Redis,
    transaction: Callable[[], AbstractContextManager[Session]],
    *,
    consumer: str,
    batch: int = BATCH_ENTRIES,
    seconds: float = DRAIN_SECONDS,
) -> Drained:
    """Move entries from the stream into the table until none is left or the time is over.

    An entry that cannot be stored goes to the stream ``REJECTED``, and the others of its batch are stored.
    One with columns that this version does not know stays, and is offered to the drains again after
    ``TAKE_OVER_MS``: in an update they run beside inference workers of the next version, and the last of
    them is of that version. Any number of drains may run at once.

    Args:
        client: without ``decode_responses``.
        transaction: opens one, as ``Resources.transaction`` does.
        consumer: how Redis shows who has an entry; two drains may share the name.
        batch: entries a transaction.
        seconds: no batch is begun after so long.

    Raises:
        StoreUnavailable: PostgreSQL does not answer. What was not committed stays in the stream.
    """
    deadline = time.monotonic() + seconds
    total, unknown = Drained(entries=0, rows=0, rejected=0), set[str]()
    if client.xlen(STREAM):
        with transaction() as session:
            session.connection()  # while PostgreSQL is away no entry is taken, to wait for its take-over
        _make_group(client)
        for found in _batches(client, consumer, batch):
            done = _store(transaction, found)
            _acknowledge(client, [entry for entry in found if entry.id not in done.left], done.refused)
            total = total.plus(len(found), done)
            unknown |= done.unknown
            if time.monotonic() > deadline:
                break
    if unknown:
        log.error("prediction_records_too_new", entries=total.left, columns=sorted(unknown), hint=UPDATE)
    return total


def _make_group(client: redis.Redis) -> None:
    """Should somebody have removed it. Looking first: a full memory refuses to make what is there already."""
    groups: Any = client.xinfo_groups(STREAM)
    if GROUP.encode() not in [group["name"] for group in groups]:
        client.xgroup_create(STREAM, GROUP, id="0")


def _batches(client: redis.Redis, consumer: str, batch: int) -> Iterator[list[_Entry]]:
    """First what dead drains left, then what is new."""
    start: Any = "0-0"
    while True:
        answer: Any = client.xautoclaim(STREAM, GROUP, consumer, TAKE_OVER_MS, start, batch)
        start, taken, *_ = answer
        if taken:
            yield _entries(taken)
        if start == b"0-0":
            break
    while new := client.xreadgroup(GROUP, consumer, {STREAM: ">"}, batch):
        (found,) = dict(new).values()
        yield _entries(found)


def _entries(found: Any) -> list[_Entry]:
    return [_Entry(id=entry_id, body=fields.get(FIELD.encode(), b"")) for entry_id, fields in found]


def _store(transaction: Callable[[], AbstractContextManager[Session]], entries: Sequence[_Entry]) -> _Stored:
    """All in one go, or, where one is refused or too new, each for itself."""
    try:
        with transaction() as session:
            records = (record for entry in entries for record in entry.records())
            return _Stored(predictions.write(session, records))
    except Exception as error:
        if not _is_the_entrys(error):
            raise
        done = _Stored()
        with transaction() as session:
            for entry in entries:
                try:
                    with session.begin_nested():
                        done.rows += predictions.write(session, entry.records())
                except _TooNew as error:
                    done.left.add(entry.id)
                    done.unknown |= error.columns
                except Exception as error:
                    if not _is_the_entrys(error):
                        raise
                    done.refused.append((entry, error))
        return done


def _is_the_entrys(error: Exception) -> bool:
    """Whether it is an entry's own fault; anything else would meet the next entry, too.

    What a server does is told apart by its kind. Whatever else goes wrong does so in the reading of one
    entry's values, and must not stop the drain for ever, of whatever kind it is.
    """
    if isinstance(error, sa.exc.SQLAlchemyError | psycopg2.Error):
        # COPY goes past SQLAlchemy.
        own = (sa.exc.DataError, sa.exc.IntegrityError, psycopg2.DataError, psycopg2.IntegrityError)
        return isinstance(error, own)
    return not isinstance(error, StoreUnavailable | StoreFull | MemoryError)


def _acknowledge(
    client: redis.Redis, entries: Sequence[_Entry], refused: Sequence[tuple[_Entry, Exception]]
) -> None:
    """Take the stored off the stream first: that needs no memory, and keeping the refused does."""
    doomed = {entry.id for entry, _ in refused}
    stored = [entry.id for entry in entries if entry.id not in doomed]
    if stored:
        with client.pipeline() as pipeline:
            _remove(pipeline, stored)
            pipeline.execute()
    for entry, error in refused:
        reason = (str(getattr(error, "orig", None) or error).strip() or repr(error))[:ERROR_CHARACTERS]
        kept: dict[Any, Any] = {FIELD: entry.body, "entry": entry.id, "error": reason}
        with client.pipeline() as pipeline:
            pipeline.xadd(REJECTED, kept)
            _remove(pipeline, [entry.id])
            pipeline.execute()
        log.error("prediction_records_rejected", entry=entry.id.decode(), error=reason, kept_in=REJECTED)


def bring_back(client: redis.Redis) -> int:
    """Put the rejected entries on the stream again, once what was wrong is mended; the oldest first.

    A drain rejects what is still wrong again. Of two who do this at once one may bring an entry that the
    other has brought: it is stored once.

    Args:
        client: without ``decode_responses``.

    Returns:
        How many.
    """
    brought = 0
    newest: Any = client.xrevrange(REJECTED, count=1)  # what is rejected from now on is not brought again
    while newest:
        found: Any = client.xrange(REJECTED, max=newest[0][0], count=BATCH_ENTRIES)
        if not found:
            break
        for entry_id, fields in found:
            with client.pipeline() as pipeline:
                pipeline.xadd(STREAM, {FIELD: fields.get(FIELD.encode(), b"")})
                pipeline.xdel(REJECTED, entry_id)
                pipeline.execute()
        brought += len(found)
    return brought


def _remove(pipeline: redis.client.Pipeline, ids: Sequence[bytes]) -> None:
    """Both or neither: an entry acknowledged and not deleted would count against the limit for ever."""
    pipeline.xack(STREAM, GROUP, *ids)
    pipeline.xdel(STREAM, *ids)


@shared_task(base=Task, bind=True, name="tasks.drain_predictions", ignore_result=True, max_retries=0)
def drain_predictions(self: Task) -> dict[str, int]:
    """Store the answers that wait in the stream. Not retried: beat's next message comes in a moment."""
    client = redis.Redis.from_url(
        self.resources.settings.required_redis_url,
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=SOCKET_SECONDS,
    )
    with client:
        try:
            drained = drain(client, self.resources.transaction, consumer=self.request.hostname or "drain")
        except StoreFull as error:
            # The records are safe in the stream; a dead letter every other second would only fill Redis.
            log.exception("operator_needed", error=str(error))
            raise StoreUnavailable(str(error)) from error
    if drained.entries or drained.left:
        log.info("predictions_stored", **asdict(drained))
    return asdict(drained)
