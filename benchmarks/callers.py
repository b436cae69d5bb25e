"""Those who ask inference workers: by Celery's ``.get()``, by reply list, and many at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from celery import Celery

from benchmarks.workers import Worker
from client import PredictionClient
from ml.errors import RetryLater
from runtime.queues import INFERENCE

__all__ = ["Ask", "Crowd", "Line", "Question", "ask_at_once", "open_line"]

REPLY_SECONDS: Final = 30

Json = dict[str, Any]
Question = Json | list[Json]
"""A signal or a list of them."""
Ask = Callable[[Question], list[Json]]
"""Returns the answers."""


class Line:
    """One caller's two ways to ask the workers of one Redis database."""

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.app = Celery(broker=redis_url, backend=redis_url)
        self.client = PredictionClient(redis_url, timeout_seconds=REPLY_SECONDS)

    def by_get(self, question: Question) -> list[Json]:
        """By plain Celery, as a stranger's program does it."""
        reply = self.app.send_task("tasks.predict", [question], queue=INFERENCE).get(timeout=REPLY_SECONDS)
        answers: list[Json] = reply["answers"]  # a KeyError where it is an error, or "busy"
        return answers

    def by_list(self, question: Question) -> list[Json]:
        """By the client, on its reply list."""
        return self.client.predict(question)

    def pause(self, worker: Worker) -> None:
        """Let a worker take no more messages."""
        self.app.control.cancel_consumer(INFERENCE, destination=[worker.node], reply=True, timeout=5)

    def resume(self, worker: Worker) -> None:
        """Let it take messages again."""
        self.app.control.add_consumer(INFERENCE, destination=[worker.node], reply=True, timeout=5)

    def close(self) -> None:
        """Give the connections back."""
        self.client.close()
        self.app.close()


@contextmanager
def open_line(redis_url: str) -> Iterator[Line]:
    """A caller, closed afterwards."""
    line = Line(redis_url)
    try:
        yield line
    finally:
        line.close()


@dataclass(slots=True)
class Crowd:
    """What became of the requests of many callers."""

    replies: int = 0
    errors: int = 0
    wrong: int = 0
    """Replies to another caller's request."""
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Of each reply, in seconds."""

    @property
    def per_second(self) -> float:
        """Replies a second."""
        return self.replies / self.seconds

    def add(self, other: Crowd) -> None:
        """Count another caller's, or another run's, with these."""
        self.replies += other.replies
        self.errors += other.errors
        self.wrong += other.wrong
        self.latencies += other.latencies


def ask_at_once(
    client: PredictionClient, questions: Sequence[Question], *, callers: int, seconds: float
) -> Crowd:
    """Threads that share one client, each asking one question after the other until the time is over.

    Each signal has an id of its own, which its answer must name.
    """
    crowds = [Crowd() for _ in range(callers)]
    begin = threading.Barrier(callers + 1)
    threads = [
        threading.Thread(target=_ask_until, args=(client, questions, begin, seconds, crowd))
        for crowd in crowds
    ]
    for thread in threads:
        thread.start()
    begin.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    total = Crowd(seconds=time.perf_counter() - began)
    for crowd in crowds:
        total.add(crowd)
    return total


def _ask_until(
    client: PredictionClient,
    questions: Sequence[Question],
    begin: threading.Barrier,
    seconds: float,
    crowd: Crowd,
) -> None:
    caller = uuid4().hex
    begin.wait()
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        name = f"{caller}-{crowd.replies + crowd.errors}"
        question, ids = _named(questions[crowd.replies % len(questions)], name)
        try:
            answers = client.predict(question)
        except RetryLater:
            crowd.errors += 1
            continue
        crowd.replies += 1
        crowd.wrong += [answer["signal_id"] for answer in answers] != ids
        crowd.latencies.append(time.perf_counter() - began)


def _named(question: Question, name: str) -> tuple[Question, list[str]]:
    """The question with an id for each signal, and the ids."""
    if isinstance(question, list):
        ids = [f"{name}-{index}" for index in range(len(question))]
        return [signal | {"id": one} for signal, one in zip(question, ids, strict=True)], ids
    return question | {"id": name}, [name]
