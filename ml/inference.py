"""From checked signals and what the market says to answers: features, odds, decision, or a reason to abstain.

Pure: candles, models and ``now`` are given. An answer never makes a number up: where the model cannot
speak, it abstains with a code of ``ABSTAIN_REASONS`` and hands the pattern's own confidence back.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from ml.artifact import Predictor
from ml.candles import Candles, to_datetime, to_datetime64
from ml.confidence import confidence_from
from ml.dataset import Market, read_market, row_features
from ml.features import FEATURE_NAMES, WINDOW
from ml.keys import REGIMES, ModelKey
from ml.noise import clean
from ml.patterns import PATTERN_WINDOW, detect
from ml.regimes import classify_measures
from ml.signals import SignalRequest

__all__ = [
    "ABSTAIN_REASONS",
    "Answer",
    "Judgement",
    "Limits",
    "Served",
    "Sighting",
    "Window",
    "answer",
    "judge",
    "sighting_of_features",
    "unseen",
]

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]

ABSTAIN_REASONS: Final = {
    "stale_signal": "the signal is older than ALPHAPLUS_MAX_SIGNAL_AGE_BARS candles",
    "no_candle": "the signal's candle is not stored yet",
    "too_few_candles": f"fewer than {WINDOW} candles lead up to the signal",
    "noisy_candle": "the signal's candle is noise: a bad tick, or nothing was traded",
    "no_regime": "too many candles before the signal are noise to tell its regime",
    "no_pattern": "the candle has no pattern in this direction",
    "no_model": "neither the key nor its fallback has a champion",
    "store_unavailable": "the database is away and nothing of the kind is in memory",
    "artifact_corrupt": "the champion's bytes do not match their sha256",
    "model_mismatch": "the champion was trained on other features than this version makes",
    "fallback_unfit": "the fallback is worse than the patterns alone in this regime",
    "model_too_old": "the champion is older than ALPHAPLUS_MAX_MODEL_AGE_DAYS",
    "out_of_distribution": "the market looks like nothing the model was trained on",
}
"""Code -> why. Of several that hold, the first one found is given."""

_PREDICTION_IDS: Final = UUID("6f1c2a0e-3f0b-5d55-9f6f-0d0f2a6b7c11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a model may not exceed to be heard."""

    max_model_age: timedelta
    max_signal_age_bars: float
    max_out_of_distribution: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """A champion that answers."""

    model_id: int
    version: int
    predictor: Predictor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sighting:
    """What the market looked like at a signal; ``missing`` says why it could not be seen."""

    time: datetime
    patterns: int = 0
    regime: int = -1
    features: Rows | None = None
    """(F,), as ``ROW_FEATURE_NAMES``."""
    entry_price: float | None = None
    atr: float | None = None
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """What one model says of n signals. Every array has shape (n,)."""

    confidence: Floats
    expected_net_return_atr: Floats
    out_of_distribution: Floats
    accept: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What the caller is told, and what is kept to make it again."""

    prediction_id: UUID
    request: SignalRequest
    sighting: Sighting
    as_of: datetime
    decision: str
    abstain_reason: str | None
    pattern_confidence: float | None
    confidence: float | None = None
    expected_net_return_atr: float | None = None
    out_of_distribution: float | None = None
    served: Served | None = None


FindModel = Callable[[ModelKey], Served | str]
"""A key's champion, or the code of the reason why there is none."""


class Window:
    """Candles of one series as a worker holds them: cleaned once, features made on demand and kept.

    Args:
        raw: by contract valid; the newest last.
    """

    def __init__(self, raw: Candles) -> None:
        self.raw = raw
        self._close_time = raw.close_time
        self._cleaned = clean(raw).candles
        self._cleaned_close = self._cleaned.close_time
        self._market: Market | None = None
        self._found: dict[int, dict[int, int]] = {}

    def covers(self, time: datetime) -> bool:
        """Whether ``time`` is not before the first candle's close nor after the last one's."""
        moment = to_datetime64(time)
        return bool(len(self.raw) and self._close_time[0] <= moment <= self._close_time[-1])

    def see(self, requests: Sequence[SignalRequest], times: Sequence[datetime]) -> list[Sighting]:
        """What the market looked like at each request's signal, from candles up to it."""
        rows = [self._row(time) for time in times]
        masks = [
            self._patterns(row, request) if isinstance(row, int) else 0
            for row, request in zip(rows, requests, strict=True)
        ]
        seen = [index for index, row in enumerate(rows) if isinstance(row, int) and masks[index]]
        first = min((row for row in rows if isinstance(row, int)), default=0)
        market = self._newest(first) if seen else None
        table = self._features(market, seen, rows, requests, masks)
        sightings = []
        for index, (row, time, mask) in enumerate(zip(rows, times, masks, strict=True)):
            if isinstance(row, str) or market is None or not mask:
                reason = row if isinstance(row, str) else "no_pattern"
                sightings.append(unseen(requests[index], time, reason))
                continue
            at = row - len(self._cleaned) + len(market.candles)
            regime = int(market.regime[at])
            sightings.append(
                Sighting(
                    time=time,
                    patterns=mask,
                    regime=regime,
                    features=table[index] if regime >= 0 else None,
                    entry_price=float(market.candles.close[at]),
                    atr=_number(market.atr[at]),
                    missing=None if regime >= 0 else "no_regime",
                )
            )
        return sightings

    def newest_close(self) -> datetime | None:
        """Close of the newest candle, or None."""
        return to_datetime(self._close_time[-1]) if len(self.raw) else None

    def _row(self, time: datetime) -> int | str:
        """Row of the cleaned candle that closed at ``time``, or why there is none."""
        moment = to_datetime64(time)
        raw = int(np.searchsorted(self._close_time, moment))
        if raw == len(self._close_time) or self._close_time[raw] != moment:
            return "no_candle"
        if raw < WINDOW - 1:
            return "too_few_candles"
        row = int(np.searchsorted(self._cleaned_close, moment))
        if row == len(self._cleaned_close) or self._cleaned_close[row] != moment:
            return "noisy_candle"
        return row

    def _patterns(self, row: int, request: SignalRequest) -> int:
        """The request's patterns, or those of its candle in its direction; 0 where it has none."""
        if request.patterns is not None:
            return request.patterns
        if row not in self._found:
            tail = self._cleaned.slice(max(0, row + 1 - PATTERN_WINDOW), row + 1)
            found = detect(tail)
            last = found.at == len(tail) - 1
            self._found[row] = dict(
                zip(found.direction[last].tolist(), found.patterns[last].tolist(), strict=True)
            )
        return self._found[row].get(request.direction, 0)

    def _newest(self, first: int) -> Market:
        """Features of the rows from ``first`` on; made again only where an older row is asked for."""
        last = len(self._cleaned) - first
        if self._market is None or len(self._market.candles) < last:
            self._market = read_market(self._cleaned, last=last)
        return self._market

    def _features(
        self,
        market: Market | None,
        seen: Sequence[int],
        rows: Sequence[int | str],
        requests: Sequence[SignalRequest],
        masks: Sequence[int],
    ) -> dict[int, Rows]:
        """Index of a request -> its row of features."""
        if market is None:
            return {}
        offset = len(self._cleaned) - len(market.candles)
        table = row_features(
            market,
            np.array([rows[index] for index in seen], dtype=np.int64) - offset,
            np.array([requests[index].direction for index in seen], dtype=np.int8),
            np.array([masks[index] for index in seen], dtype=np.uint64),
        )
        return dict(zip(seen, table, strict=True))


def unseen(request: SignalRequest, time: datetime, reason: str) -> Sighting:
    """A signal of which nothing can be seen, for a reason of ``ABSTAIN_REASONS``."""
    return Sighting(time=time, patterns=request.patterns or 0, missing=reason)


def sighting_of_features(request: SignalRequest) -> Sighting:
    """A signal whose caller brings the market's features: the regime is told from them."""
    assert request.features is not None
    assert request.time is not None
    features = request.features[None, :]
    column = {name: features[:, index] for index, name in enumerate(FEATURE_NAMES)}
    regime = classify_measures(column["adx_14"], column["atr_rank_500"], column["width_rank_500"])
    if regime[0] < 0:
        return unseen(request, request.time, "no_regime")
    # Prices are not known here; row_features reads none.
    nothing = Candles.empty(request.interval)
    market = Market(candles=nothing, features=features, regime=regime, atr=np.empty(0))
    row = row_features(
        market,
        np.zeros(1, np.int64),
        np.array([request.direction], np.int8),
        np.array([request.patterns], np.uint64),
    )
    return Sighting(time=request.time, patterns=request.patterns or 0, regime=int(regime[0]), features=row[0])


def judge(predictor: Predictor, features: Rows) -> Judgement:
    """What a model says of features (n, F); the same bits for a row alone as in a batch."""
    model = predictor.model
    confidence = predictor.confidence(features)
    expected = model.return_bins.expected(confidence)
    return Judgement(
        confidence=confidence,
        expected_net_return_atr=expected,
        out_of_distribution=model.ranges.score(features),
        accept=(confidence >= model.threshold.value) & (expected > 0),
    )


def answer(
    request_id: str,
    requests: Sequence[SignalRequest],
    sightings: Sequence[Sighting],
    find_model: FindModel,
    *,
    now: datetime,
    limits: Limits,
) -> list[Answer]:
    """An answer to each signal, in order; signals of one model are judged in one go."""
    models: dict[ModelKey, Served | str] = {}
    chosen: list[Served | str] = []
    for request, sighting in zip(requests, sightings, strict=True):
        if sighting.missing is not None:
            chosen.append(sighting.missing)
            continue
        key = ModelKey(request.symbol, request.interval, REGIMES[sighting.regime])
        if key not in models:
            models[key] = _choose(key, find_model)
        chosen.append(models[key])
    judged = _judge_all(sightings, chosen)
    return [
        _answer(
            _prediction_id(request_id, index, request, sighting),
            request,
            sighting,
            model,
            verdict,
            now,
            limits,
        )
        for index, (request, sighting, model, verdict) in enumerate(
            zip(requests, sightings, chosen, judged, strict=True)
        )
    ]


def _choose(key: ModelKey, find_model: FindModel) -> Served | str:
    """The key's champion, or the symbol's `all` where the key has none."""
    own = find_model(key)
    if own != "no_model":
        return own
    fallback = find_model(key.fallback)
    if isinstance(fallback, Served) and key.regime in fallback.predictor.model.unfit_regimes:
        return "fallback_unfit"
    return fallback


@dataclass(frozen=True, slots=True)
class _Verdict:
    confidence: float
    expected_net_return_atr: float
    out_of_distribution: float
    accept: bool


def _judge_all(sightings: Sequence[Sighting], chosen: Sequence[Served | str]) -> list[_Verdict | None]:
    verdicts: list[_Verdict | None] = [None] * len(sightings)
    groups: dict[int, list[int]] = {}
    for index, model in enumerate(chosen):
        if isinstance(model, Served):
            groups.setdefault(id(model), []).append(index)
    for group in groups.values():
        served = chosen[group[0]]
        assert isinstance(served, Served)
        rows = [sightings[index].features for index in group]
        found = judge(served.predictor, np.stack([row for row in rows if row is not None]))
        columns = (
            found.confidence.tolist(),
            found.expected_net_return_atr.tolist(),
            found.out_of_distribution.tolist(),
            found.accept.tolist(),
        )
        for index, values in zip(group, zip(*columns, strict=True), strict=True):
            verdicts[index] = _Verdict(*values)
    return verdicts


def _answer(
    prediction_id: UUID,
    request: SignalRequest,
    sighting: Sighting,
    model: Served | str,
    verdict: _Verdict | None,
    now: datetime,
    limits: Limits,
) -> Answer:
    if isinstance(model, str) or verdict is None:
        return Answer(
            prediction_id=prediction_id,
            request=request,
            sighting=sighting,
            as_of=now,
            decision="abstain",
            abstain_reason=str(model),
            pattern_confidence=request.confidence,
        )
    known = model.predictor.model
    reason = None
    if now - known.as_of > limits.max_model_age:
        reason = "model_too_old"
    elif verdict.out_of_distribution > limits.max_out_of_distribution:
        reason = "out_of_distribution"
    own = request.confidence
    if own is None:
        own = confidence_from(known.pattern_hit_rates, sighting.patterns, request.direction)
    return Answer(
        prediction_id=prediction_id,
        request=request,
        sighting=sighting,
        as_of=now,
        decision="abstain" if reason else "accept" if verdict.accept else "reject",
        abstain_reason=reason,
        pattern_confidence=own,
        confidence=None if reason else verdict.confidence,
        expected_net_return_atr=None if reason else verdict.expected_net_return_atr,
        out_of_distribution=verdict.out_of_distribution,
        served=model,
    )


def _prediction_id(request_id: str, index: int, request: SignalRequest, sighting: Sighting) -> UUID:
    """The same for the same request, so that one delivered twice is recorded once."""
    market = b"" if request.candles is None else request.candles.close.tobytes()
    market += b"" if request.features is None else request.features.tobytes()
    content = (
        request_id, index, request.symbol, request.interval, sighting.time.isoformat(), request.direction,
        request.patterns, request.confidence, request.signal_id, zlib.crc32(market),
    )  # fmt: skip
    return uuid5(_PREDICTION_IDS, repr(content))


def _number(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
