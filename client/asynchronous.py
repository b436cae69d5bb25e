"""The client for asyncio: many calls at once over two connections, on one event loop.

One connection sends. A task pops replies from the client's own list on the other for as long as calls wait,
and ends with the last of them, so that an idle client is silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

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
from ml.errors import InputRejected

__all__ = ["AsyncPredictionClient"]


class AsyncPredictionClient:
    """Asks the inference workers and waits for their answers; many tasks of one event loop may share one.

    Args:
        redis_url: as redis-py takes it: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_seconds: how long a call waits for its answer, up to an hour.

    Raises:
        ConfigRejected: the timeout is out of its range.
    """

    def __init__(self, redis_url: str, *, timeout_seconds: float = 5.0) -> None:
        pool: Any = redis.asyncio.ConnectionPool.from_url(redis_url, **connection_options(Retry))
        self._timeout_seconds = checked_timeout(timeout_seconds)
        self._reply_list = new_reply_list()
        self._requests = pool.make_connection()
        self._replies = pool.make_connection()
        self._sending = asyncio.Lock()
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._failure: RedisError | None = None
        """Of the last look for replies, until Redis is seen to answer."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def predict(
        self,
        signal: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> list[dict[str, Any]]:
        """The answers to one signal or a list of them, in their order; may be cancelled.

        Arguments and errors are those of `PredictionClient.predict`; another event loop than the first
        call's is a RuntimeError too (a fork's child has another).
        """
        timeout = self._timeout_seconds if timeout_seconds is None else checked_timeout(timeout_seconds)
        request_id = checked_request_id(request_id)
        message = encode_request(
            signal,
            request_id=request_id,
            reply_list=self._reply_list,
            timeout_seconds=timeout,
            now=datetime.now(UTC),
        )
        future = self._enter(request_id)
        try:
            async with asyncio.timeout(timeout):
                await self._send(message)
                outcome = await future
        except TimeoutError:
            raise missed(self._failure, request_id, timeout) from None
        finally:
            del self._waiting[request_id]
        return outcome.unwrap()

    async def close(self) -> None:
        """End waiting calls with AnswerTimeout and remove the reply list; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for request_id, future in self._waiting.items():
            if not future.done():
                future.set_result(closed(request_id))
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        async with self._sending:
            try:
                await self._requests.send_command("DEL", self._reply_list)
                await self._requests.read_response()
            except RedisError:
                pass  # the list's own expiry does the same, later
        await self._requests.disconnect()
        await self._replies.disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _enter(self, request_id: str) -> asyncio.Future[Outcome]:
        """The place where the outcome will lie; a task looks for it from now on."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise RuntimeError("the prediction client is closed")
        if self._loop not in {None, loop}:
            raise RuntimeError("the prediction client belongs to another event loop: make one in this loop")
        if request_id in self._waiting:
            raise InputRejected("request_id", request_id, "an id that no other call is waiting for")
        self._loop = loop
        self._waiting[request_id] = future = loop.create_future()
        if self._reader is None or self._reader.done():
            self._reader = loop.create_task(self._read_replies())
        return future

    async def _send(self, message: bytes) -> None:
        async with self._sending:
            try:
                await self._push(message)
                self._failure = None
            except RedisError as error:
                raise not_sent(error) from error

    async def _push(self, message: bytes) -> None:
        try:
            await self._requests.send_command("LPUSH", QUEUE, message)
            await self._requests.read_response()
        except RedisConnectionError:
            # As in the client for threads: a server that was restarted is there again.
            await self._requests.disconnect()
            await self._requests.send_command("LPUSH", QUEUE, message)
            await self._requests.read_response()

    async def _read_replies(self) -> None:
        """Hand replies to their calls until nobody waits."""
        failures = 0
        while self._waiting:
            try:
                await self._replies.send_command("BRPOP", self._reply_list, f"{POP_SECONDS:.3f}")
                item = await self._replies.read_response()
            except RedisError as error:
                await self._replies.disconnect()
                self._failure, failures = error, failures + 1
                await asyncio.sleep(backoff_seconds(failures))
                continue
            self._failure, failures = None, 0
            outcome = read_reply(item[1]) if item else None
            future = self._waiting.get(outcome.request_id) if outcome else None
            if outcome is not None and future is not None and not future.done():  # else its call gave up
                future.set_result(outcome)
                # Its call goes on before we look whether anyone waits.
                await asyncio.sleep(0)
