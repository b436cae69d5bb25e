"""The client for threads: many calls at once over two connections, without a thread of its own.

One connection sends. On the other, one of the waiting calls (the leader) pops replies from the client's own
list and hands the others theirs; when it has its own, another waiting call takes the lead. So a caller who is
alone reads its answer itself, which saves the hop between two threads (some 0.05 ms, and as much
again because the commands go over bare connections instead of through ``redis.Redis``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import Any, Final, Self

import redis
from redis.retry import Retry

from client.broker import POP_SECONDS, backoff_seconds, closed, connection_options, missed, not_sent
from client.messages import (
    QUEUE,
    Outcome,
    checked_request_id,
    checked_timeout,
    encode_request,
    new_reply_list,
    read_reply,
)
from ml.errors import BrokerUnavailable, InputRejected

__all__ = ["PredictionClient"]

LEAD: Final = None
"""What an inbox gets instead of an outcome when its call is to look for replies."""
CLOSE_SECONDS: Final = 3.0
"""How long `close` waits for a leader that is stuck with a server which does not answer."""

Inbox = SimpleQueue[Outcome | None]


class PredictionClient:
    """Asks the inference workers and waits for their answers; many threads may share one.

    After a fork the child's first call gives it connections and a reply list of its own.

    Args:
        redis_url: as redis-py takes it: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_seconds: how long a call waits for its answer, up to an hour.

    Raises:
        ConfigRejected: the timeout is out of its range.
    """

    def __init__(self, redis_url: str, *, timeout_seconds: float = 5.0) -> None:
        self._redis_url = redis_url
        self._timeout_seconds = checked_timeout(timeout_seconds)
        self._link = _Link(redis_url)

    def predict(
        self,
        signal: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> list[dict[str, Any]]:
        """The answers to one signal or a list of them, in their order.

        Where the network swallows packets without a word, a call may end up to two seconds late.

        Args:
            signal: as docs/integration.md describes it.
            timeout_seconds: instead of the client's.
            request_id: 1 to 100 letters, digits and hyphens; asking again under the same id records the
                answers once. By default a new one.

        Raises:
            InputRejected: or one of its kinds: a signal is wrong; nothing was written.
            Busy: the workers, or Redis, have too much to do; nothing was computed.
            AnswerTimeout: no answer in time. It may have been computed and recorded all the same.
            BrokerUnavailable: Redis does not answer; the next call tries again.
            RetryLater: the worker failed; its log says why.
            RuntimeError: the client is closed.
        """
        timeout = self._timeout_seconds if timeout_seconds is None else checked_timeout(timeout_seconds)
        deadline = time.monotonic() + timeout
        request_id = checked_request_id(request_id)
        link = self._link
        if link.pid != os.getpid() and not link.closed:
            link = self._link = _Link(self._redis_url)
        message = encode_request(
            signal,
            request_id=request_id,
            reply_list=link.reply_list,
            timeout_seconds=timeout,
            now=datetime.now(UTC),
        )
        outcome = link.ask(request_id, message, deadline)
        if outcome is None:
            raise missed(link.failure, request_id, timeout)
        return outcome.unwrap()

    def close(self) -> None:
        """End waiting calls with AnswerTimeout and remove the reply list; a second call does nothing."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Link:
    """One process's connections, its reply list, and the calls that wait there."""

    def __init__(self, redis_url: str) -> None:
        pool: Any = redis.ConnectionPool.from_url(redis_url, **connection_options(Retry))
        self.pid = os.getpid()
        self.reply_list = new_reply_list()
        self.closed = False
        self.failure: redis.RedisError | None = None
        """Of the last look for replies, until Redis is seen to answer."""
        self._failures = 0
        self._requests = pool.make_connection()
        self._replies = pool.make_connection()
        self._sending = threading.Lock()
        self._state = threading.Condition(threading.Lock())
        """Guards what is below; notified when nobody waits any more."""
        self._inboxes: dict[str, Inbox] = {}
        self._leader: Inbox | None = None

    def ask(self, request_id: str, message: bytes, deadline: float) -> Outcome | None:
        """Send, and wait for the outcome; None when the time is over. Errors are those of `predict`."""
        inbox: Inbox = SimpleQueue()
        with self._state:
            if self.closed:
                raise RuntimeError("the prediction client is closed")
            if request_id in self._inboxes:
                raise InputRejected("request_id", request_id, "an id that no other call is waiting for")
            self._inboxes[request_id] = inbox
        try:
            self._send(message, deadline)
            return self._wait(inbox, deadline)
        finally:
            self._leave(request_id, inbox)

    def close(self) -> None:
        """As `PredictionClient.close`."""
        if self.pid != os.getpid():
            self.closed = True  # connections, list and locks are the parent's
            return
        with self._state:
            if self.closed:
                return
            self.closed = True
            waiting = dict(self._inboxes)
        for request_id, inbox in waiting.items():
            inbox.put(closed(request_id))
        if waiting:
            self._command("LPUSH", self.reply_list, "null")  # wakes the leader
            with self._state:
                self._state.wait_for(lambda: not self._inboxes, CLOSE_SECONDS)
        self._command("DEL", self.reply_list)
        self._requests.disconnect()
        self._replies.disconnect()

    def _send(self, message: bytes, deadline: float) -> None:
        if not self._sending.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise BrokerUnavailable("Redis did not take the requests before this one in time")
        try:
            self._push(message)
            self.failure = None
        except redis.RedisError as error:
            raise not_sent(error) from error
        finally:
            self._sending.release()

    def _push(self, message: bytes) -> None:
        try:
            self._requests.send_command("LPUSH", QUEUE, message)
            self._requests.read_response()
        except redis.ConnectionError:
            # The server was restarted, or dropped an idle connection: connecting again tells. Should it have
            # taken the request before that, the second copy's records have the first one's ids, and its
            # reply is dropped.
            self._requests.disconnect()
            self._requests.send_command("LPUSH", QUEUE, message)
            self._requests.read_response()

    def _wait(self, inbox: Inbox, deadline: float) -> Outcome | None:
        while True:
            leads = self._lead(inbox)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            if leads and inbox.empty():
                self._pop(remaining)
            try:
                item = inbox.get(timeout=0 if leads else remaining)
            except Empty:
                continue
            if item is not LEAD:
                return item

    def _lead(self, inbox: Inbox) -> bool:
        """Take the lead if nobody has it; whether this call has it."""
        with self._state:
            if self._leader is None:
                self._leader = inbox
            return self._leader is inbox

    def _leave(self, request_id: str, inbox: Inbox) -> None:
        """Stop waiting. A leader passes the lead on, also one that got it and never knew."""
        with self._state:
            del self._inboxes[request_id]
            if self._leader is inbox:
                self._leader = next(iter(self._inboxes.values()), None)
                if self._leader is not None:
                    self._leader.put(LEAD)
            if not self._inboxes:
                self._state.notify_all()

    def _pop(self, remaining: float) -> None:
        """Wait for one reply, at most a second, and give it to its call; only the leader does this."""
        try:
            # Not 0, which would wait for ever.
            seconds = max(0.001, min(POP_SECONDS, remaining))
            self._replies.send_command("BRPOP", self.reply_list, f"{seconds:.3f}")
            item = self._replies.read_response()
        except redis.RedisError as error:
            self._replies.disconnect()
            self.failure = error
            self._failures += 1
            time.sleep(min(remaining, backoff_seconds(self._failures)))
            return
        self.failure, self._failures = None, 0
        outcome = read_reply(item[1]) if item else None
        if outcome is None:
            return
        with self._state:
            inbox = self._inboxes.get(outcome.request_id)
        if inbox is not None:  # else its call gave up
            inbox.put(outcome)

    def _command(self, *words: str) -> None:
        """One of closing's commands; where Redis is away its own expiry does the same, later."""
        with self._sending:
            try:
                self._requests.send_command(*words)
                self._requests.read_response()
            except redis.RedisError:
                self._requests.disconnect()
