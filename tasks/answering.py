"""What one inference worker does with a request: see the market, ask the models, record, reply."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import numpy as np
import redis
import structlog

from ml.artifact import Model, library_versions
from ml.config import TrainingConfig
from ml.errors import Busy, InputRejected, KeyRejected
from ml.inference import Answer, Limits, Served, answer
from ml.keys import ALL_REGIMES, REGIMES, interval_duration
from ml.patterns import pattern_names
from ml.sightings import Sighting, Window, sighting_of_features, unseen
from ml.signals import SignalRequest, parse_signals
from runtime.queues import INFERENCE
from tasks.base import Resources
from tasks.markets import MarketCache, newest_due
from tasks.model_cache import ModelCache
from tasks.patience import ImpatientStore
from tasks.prediction_log import STREAM, PredictionLog, check_reply_key

__all__ = ["Answering", "Handled"]

OPTIONS: Final = ("signals", "reply_to", "request_id")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9-]{1,100}")
LOAD_SECONDS: Final = 0.1
"""How often a worker looks at the length of its queue and at Redis's memory."""
MEMORY_SHARE: Final = 0.95
"""Of Redis's memory; beyond it records and replies may soon be refused."""

Json = dict[str, Any]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Handled:
    """A reply; ``pushed`` says that it is on the list that the caller named."""

    reply: Json
    pushed: bool


class Answering:
    """Answers requests in one process: its Redis connection, models and candles are made on first use.

    Args:
        resources: of this process.
    """

    def __init__(self, resources: Resources) -> None:
        settings = resources.settings
        self._resources = resources
        self._redis = redis.Redis.from_url(
            settings.required_redis_url,
            socket_timeout=10,
            socket_connect_timeout=5,
            socket_keepalive=True,
            health_check_interval=10,
        )
        self._log = PredictionLog(self._redis)
        store = ImpatientStore(
            settings.required_database_url, most_pause_seconds=settings.champion_check_seconds
        )
        self.models = ModelCache(
            store.transaction,
            max_bytes=settings.model_cache_mib * 2**20,
            check_seconds=settings.champion_check_seconds,
        )
        self.markets = MarketCache(
            store.transaction,
            check_seconds=settings.champion_check_seconds,
            max_signal_age_bars=settings.max_signal_age_bars,
        )
        self._limits = Limits(
            max_model_age=timedelta(days=settings.max_model_age_days),
            max_out_of_distribution=settings.max_out_of_distribution,
        )
        self._horizon_bars = TrainingConfig.from_mapping(settings.training).labels.horizon_bars
        self._load_due = 0.0
        self._overload: Json | None = None

    def handle(self, task_id: str, args: Sequence[object], options: Mapping[str, object]) -> Handled:
        """Answer, record and reply. A rejected or shed request is neither computed nor recorded."""
        started = time.perf_counter()
        request_id, reply_key = task_id, None
        try:
            reply_key = _reply_key(options)
            request_id = _request_id(task_id, options)
            overload = self._busy()
            if overload is not None:
                return self._shed(reply_key, request_id, overload)
            answers = self._answers(request_id, _signals(args, options))
        except InputRejected as error:
            return self._refuse(reply_key, request_id, error)
        except (MemoryError, RecursionError) as error:
            # Celery would end the worker, and the request would end the next one.
            kind = type(error).__name__
            return self._refuse(reply_key, request_id, InputRejected("request", kind, "a smaller one"))
        reply = {"id": request_id, "answers": [_answer_json(one) for one in answers]}
        latency_ms = 1000 * (time.perf_counter() - started)
        records = [self._record_json(one, latency_ms) for one in answers]
        settings = self._resources.settings
        text = "" if reply_key is None else json.dumps(reply)
        try:
            recorded = self._log.record(
                # A number that JSON has no word for would be refused by PostgreSQL after it was answered.
                json.dumps(records, allow_nan=False),
                reply_key,
                text,
                settings.reply_seconds,
                settings.record_limit,
            )
        except Busy:
            return self._shed(reply_key, request_id, {"reason": "memory", "value": None, "limit": None})
        if not recorded:
            waiting = self._redis.xlen(STREAM)
            full = {"reason": "records", "value": waiting, "limit": settings.record_limit}
            return self._shed(reply_key, request_id, full)
        return Handled(reply, pushed=reply_key is not None)

    def _refuse(self, reply_key: str | None, request_id: str, error: InputRejected) -> Handled:
        if reply_key is None:  # it may be that nobody waits for the task's result
            log.warning("request_refused", request_id=request_id, **error.as_json())
        return self._reply(reply_key, {"id": request_id, "error": error.as_json()})

    def _shed(self, reply_key: str | None, request_id: str, overload: Json) -> Handled:
        if reply_key is None:
            log.warning("request_shed", request_id=request_id, **overload)
        return self._reply(reply_key, {"id": request_id, "busy": overload})

    def fail(self, task_id: str, options: Mapping[str, object]) -> None:
        """Tell the caller at once that the worker has failed: the log says at what."""
        try:
            reply_key, request_id = _reply_key(options), _request_id(task_id, options)
        except InputRejected:
            return
        error = {
            "type": "WorkerFailed",
            "field": "request",
            "value": request_id,
            "limit": "see the inference worker's log",
        }
        try:
            self._reply(reply_key, {"id": request_id, "error": error})
        except redis.exceptions.RedisError:
            return  # the caller's timeout speaks

    def _answers(self, request_id: str, signals: object) -> list[Answer]:
        now = self._resources.clock.now()
        interval = self._resources.settings.default_interval
        requests = parse_signals(signals, default_interval=interval, now=now)
        sightings = self._see(requests, now, listed=isinstance(signals, list))
        return answer(request_id, requests, sightings, self.models.find, now=now, limits=self._limits)

    def _see(self, requests: Sequence[SignalRequest], now: datetime, *, listed: bool) -> list[Sighting]:
        """Each request's market; those that share a stored series share its window."""
        sightings: list[Sighting | None] = [None] * len(requests)
        stored: dict[tuple[str, str], list[int]] = {}
        for index, request in enumerate(requests):
            if request.features is not None:
                oldest = self._oldest(request.interval, now)
                sightings[index] = _unless_stale(request, sighting_of_features(request), oldest)
            elif request.candles is not None:
                sightings[index] = self._see_inline(request, now)
            else:
                stored.setdefault((request.symbol, request.interval), []).append(index)
        for series, group in stored.items():
            found = self._see_stored(series, [requests[index] for index in group], now)
            if found is None:
                self._refuse_symbol(series, f"signals[{group[0]}].symbol" if listed else "symbol")
            for index, sighting in zip(group, found or (), strict=True):
                sightings[index] = sighting
        return [sighting for sighting in sightings if sighting is not None]

    def _see_stored(
        self, series: tuple[str, str], requests: Sequence[SignalRequest], now: datetime
    ) -> list[Sighting] | None:
        """None where nothing is stored of the series."""
        due, oldest = newest_due(series[1], now), self._oldest(series[1], now)
        times = [request.time or due for request in requests]
        fresh = [moment for moment in times if moment >= oldest]
        if not fresh:
            return [unseen(one, moment, "stale_signal") for one, moment in zip(requests, times, strict=True)]
        window = self.markets.window(*series, fresh, now=now)
        if window == "unknown_series":
            return None
        if isinstance(window, str):
            return [unseen(one, moment, window) for one, moment in zip(requests, times, strict=True)]
        newest = window.newest_close()
        if newest is not None:
            times = [request.time or newest for request in requests]
        seen = window.see(requests, times)
        return [_unless_stale(*pair, oldest) for pair in zip(requests, seen, strict=True)]

    def _see_inline(self, request: SignalRequest, now: datetime) -> Sighting:
        assert request.candles is not None
        candles = request.candles if request.time is None else request.candles.until(request.time)
        window = Window(candles)
        moment = request.time or window.newest_close() or now
        [sighting] = window.see([request], [moment])
        return _unless_stale(request, sighting, self._oldest(request.interval, now))

    def _oldest(self, interval: str, now: datetime) -> datetime:
        """Close of the oldest candle whose signals are answered."""
        return now - self._resources.settings.max_signal_age_bars * interval_duration(interval)

    def _refuse_symbol(self, series: tuple[str, str], field: str) -> None:
        symbol, interval = series
        stored = ", ".join(self.markets.known_symbols(interval)[:10]) or "none yet"
        raise KeyRejected(
            field, symbol, f"a symbol with stored {interval} candles ({stored}), or candles inline"
        )

    def _busy(self) -> Json | None:
        """Why this request is shed, if it is; looked at every ``LOAD_SECONDS``."""
        if time.monotonic() >= self._load_due:
            limit = self._resources.settings.predict_queue_limit
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.llen(INFERENCE)
                pipe.info("memory")
                waiting, memory = pipe.execute()
            most = MEMORY_SHARE * memory.get("maxmemory", 0)
            self._overload = None
            if waiting > limit:
                self._overload = {"reason": "queue", "value": waiting, "limit": limit}
            elif 0 < most < memory["used_memory"]:
                self._overload = {"reason": "memory", "value": memory["used_memory"], "limit": int(most)}
            # While requests are shed each looks again: no more of them shall go than must.
            self._load_due = time.monotonic() + (0.0 if self._overload else LOAD_SECONDS)
        return self._overload

    def _reply(self, reply_key: str | None, reply: Json) -> Handled:
        if reply_key is not None:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.lpush(reply_key, json.dumps(reply))
                pipe.expire(reply_key, self._resources.settings.reply_seconds)
                pipe.execute()
        return Handled(reply, pushed=reply_key is not None)

    def _record_json(self, one: Answer, latency_ms: float) -> Json:
        """A row of ``ml_performance_tracking``."""
        request, sighting, served = one.request, one.sighting, one.served
        model = None if served is None else served.predictor.model
        bars = self._horizon_bars if model is None else model.labels.horizon_bars
        horizon_end = sighting.time + bars * interval_duration(request.interval)
        return {
            "id": str(one.prediction_id),
            "signal_time": _iso(sighting.time),
            "signal_id": request.signal_id,
            "as_of": _iso(one.as_of),
            "symbol": request.symbol,
            "interval": request.interval,
            "regime": _regime(sighting) or ALL_REGIMES,
            "model_id": None if served is None else served.model_id,
            "served_regime": None if model is None else model.key.regime,
            "role": "champion",
            "direction": request.direction,
            "patterns": list(pattern_names(sighting.patterns)),
            "pattern_confidence": one.pattern_confidence,
            "confidence": one.confidence,
            "decision": one.decision,
            "abstain_reason": one.abstain_reason,
            "expected_net_return_atr": one.expected_net_return_atr,
            "out_of_distribution": one.out_of_distribution,
            "model_age_seconds": _age(one, served),
            "latency_ms": latency_ms,
            "features": None if sighting.features is None else _base64(sighting.features),
            "entry_price": sighting.entry_price,
            "atr": sighting.atr,
            "horizon_end": _iso(horizon_end),
            "metadata": _metadata(request, model),
        }


def _unless_stale(request: SignalRequest, sighting: Sighting, oldest: datetime) -> Sighting:
    if sighting.time < oldest:
        return unseen(request, sighting.time, "stale_signal")
    return sighting


def _reply_key(options: Mapping[str, object]) -> str | None:
    """Where the reply goes; None: it is the task's result. Raises InputRejected."""
    given = options.get("reply_to")
    if given is None:
        return None
    return check_reply_key(given if isinstance(given, str) else type(given).__name__)


def _request_id(task_id: str, options: Mapping[str, object]) -> str:
    """The caller's own, under which it may ask again: a worker that met an expired task takes no other of
    the same task id."""
    given = options.get("request_id")
    if given is None:
        return task_id
    if not isinstance(given, str) or not _REQUEST_ID.fullmatch(given):
        shown = given[:40] if isinstance(given, str) else type(given).__name__
        raise InputRejected("request_id", shown, "1 to 100 of A-Z, a-z, 0-9 and -")
    return given


def _signals(args: Sequence[object], options: Mapping[str, object]) -> object:
    """The one argument of the task, by place or by name."""
    for name in options:
        if name not in OPTIONS:
            raise InputRejected(str(name)[:40], "an unknown option", ", ".join(OPTIONS))
    given = [*args, *([options["signals"]] if "signals" in options else [])]
    if len(given) != 1:
        raise InputRejected("signals", f"{len(given)} arguments", "one: a signal or a list of signals")
    return given[0]


def _answer_json(one: Answer) -> Json:
    request, sighting, served = one.request, one.sighting, one.served
    key = None if served is None else served.predictor.model.key
    return {
        "prediction_id": str(one.prediction_id),
        "signal_id": request.signal_id,
        "symbol": request.symbol,
        "interval": request.interval,
        "time": _iso(sighting.time),
        "direction": request.direction,
        "patterns": list(pattern_names(sighting.patterns)),
        "regime": _regime(sighting),
        "decision": one.decision,
        "abstain_reason": one.abstain_reason,
        "confidence": one.confidence,
        "pattern_confidence": one.pattern_confidence,
        "expected_net_return_atr": one.expected_net_return_atr,
        "out_of_distribution": one.out_of_distribution,
        "model": None if key is None else str(key),
        "model_version": None if served is None else served.version,
        "model_age_seconds": _age(one, served),
        "fallback": key is not None and key.regime == ALL_REGIMES,
        "as_of": _iso(one.as_of),
    }


def _metadata(request: SignalRequest, model: Model | None) -> Json:
    """What else it takes to make the answer again."""
    source = "stored" if request.candles is None else "inline"
    kept: Json = {"source": "features" if request.features is not None else source}
    if model is not None:
        kept["threshold"] = model.threshold.value
        if model.libraries != library_versions():
            kept["libraries"] = library_versions()  # those it was trained with are in its artifact
    return kept


@lru_cache(maxsize=1024)
def _iso(moment: datetime) -> str:
    """As ISO 8601. Kept, for a request's signals share most of their times."""
    return moment.isoformat()


def _regime(sighting: Sighting) -> str | None:
    return None if sighting.regime < 0 else REGIMES[sighting.regime]


def _age(one: Answer, served: Served | None) -> float | None:
    return None if served is None else (one.as_of - served.predictor.model.as_of).total_seconds()


def _base64(features: Any) -> str:
    return base64.b64encode(np.asarray(features, "<f4").tobytes()).decode("ascii")
