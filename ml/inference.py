"""From checked signals and what the market says to answers: features, odds, decision, or a reason to abstain.

Pure: candles, models and ``now`` are given. An answer never makes a number up: where the model cannot
speak, it abstains with a code of ``ABSTAIN_REASONS`` and hands the pattern's own confidence back.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from ml.artifact import Predictor
from ml.confidence import confidence_from
from ml.features import WINDOW
from ml.keys import REGIMES, ModelKey
from ml.sightings import Sighting
from ml.signals import SignalRequest

__all__ = [
    "ABSTAIN_REASONS",
    "Answer",
    "Judgement",
    "Limits",
    "Served",
    "answer",
    "judge",
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
    max_out_of_distribution: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """A champion that answers."""

    model_id: int
    version: int
    predictor: Predictor


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


def judge(predictor: Predictor, features: Rows, margin: Floats | None = None) -> Judgement:
    """What a model says of features (n, F); the same bits for a row alone as in a batch.

    Args:
        predictor: the model.
        features: of n signals.
        margin: (n,), what ``predictor.margin`` says of them, where that is known.
    """
    model = predictor.model
    confidence = model.calibration.confidence(predictor.margin(features) if margin is None else margin)
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
    parts = zip(requests, sightings, chosen, judged, strict=True)
    return [_answer((request_id, index), *part, now, limits) for index, part in enumerate(parts)]


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
    margin = _margins(sightings, chosen)
    for group in _groups(chosen, id):
        served = chosen[group[0]]
        assert isinstance(served, Served)
        found = judge(served.predictor, _table(sightings, group), margin[group])
        columns = (
            found.confidence.tolist(),
            found.expected_net_return_atr.tolist(),
            found.out_of_distribution.tolist(),
            found.accept.tolist(),
        )
        for index, values in zip(group, zip(*columns, strict=True), strict=True):
            verdicts[index] = _Verdict(*values)
    return verdicts


def _margins(sightings: Sequence[Sighting], chosen: Sequence[Served | str]) -> Floats:
    """(n,) log-odds; NaN where no model speaks. Trees that models share are walked once for all of them."""
    margin = np.full(len(sightings), np.nan)
    for group in _groups(chosen, lambda served: id(served.predictor.booster)):
        served = chosen[group[0]]
        assert isinstance(served, Served)
        margin[group] = served.predictor.margin(_table(sightings, group))
    return margin


def _groups(chosen: Sequence[Served | str], identity: Callable[[Served], int]) -> Iterable[list[int]]:
    """Indices of the signals that models answer, those of one identity together."""
    groups: dict[int, list[int]] = {}
    for index, model in enumerate(chosen):
        if isinstance(model, Served):
            groups.setdefault(identity(model), []).append(index)
    return groups.values()


def _table(sightings: Sequence[Sighting], group: Sequence[int]) -> Rows:
    """Features (n, F) of the signals of a group."""
    rows = [sightings[index].features for index in group]
    return np.stack([row for row in rows if row is not None])


def _answer(
    place: tuple[str, int],
    request: SignalRequest,
    sighting: Sighting,
    model: Served | str,
    verdict: _Verdict | None,
    now: datetime,
    limits: Limits,
) -> Answer:
    if isinstance(model, str) or verdict is None:
        return Answer(
            prediction_id=_prediction_id(place, request, sighting, None, str(model)),
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
        prediction_id=_prediction_id(place, request, sighting, model.model_id, reason),
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


def _prediction_id(
    place: tuple[str, int],
    request: SignalRequest,
    sighting: Sighting,
    model_id: int | None,
    reason: str | None,
) -> UUID:
    """The same for the same answer to the same request, so that one delivered twice is recorded once.

    Where a request asked again is answered differently (another champion, a corrected candle, a database that
    came back) its answer has another id, and a record of its own.
    """
    seen = b"" if sighting.features is None else sighting.features.tobytes()
    content = (
        *place, request.symbol, request.interval, sighting.time.isoformat(), request.direction,
        sighting.patterns, request.confidence, request.signal_id, zlib.crc32(seen), model_id, reason,
    )  # fmt: skip
    return uuid5(_PREDICTION_IDS, repr(content))
