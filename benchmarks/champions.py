"""A database as the inference rows need it: candles that end now, champions, and copies of a champion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import numpy as np
from sqlalchemy.orm import Session

from db import artifacts, jobs, references, registry
from db import candles as stored
from db.schema import upgrade
from ml.artifact import Model, Predictor, sha256_hex, to_bytes
from ml.candles import Candles, to_datetime
from ml.config import TrainingConfig
from ml.dataset import read_market
from ml.errors import TrainingRefused
from ml.features import FEATURE_NAMES, WINDOW
from ml.inference import Limits, answer
from ml.keys import MODEL_REGIMES, ModelKey, interval_duration
from ml.noise import clean
from ml.patterns import detect, pattern_names
from ml.sightings import Window
from ml.signals import parse_signals
from runtime.clock import WallClock, data_cut
from runtime.settings import Settings
from tasks import pipeline
from tasks.base import Resources
from tasks.lease import Lease
from tasks.model_cache import ModelCache
from tasks.run import Run
from tasks.stored_model import load

__all__ = ["LIMITS", "SETTINGS", "Ground", "Json", "copy_champion", "ending_now", "inline_features", "lay"]

Json = dict[str, Any]

SIGNAL_AGE_BARS: Final = 100
SIGNAL_BARS: Final = 90
"""Signals lie so far back at most: the clock goes on while the benchmark runs."""
CUT_DAYS: Final = 5
"""Before the newest candle: every signal lies after the data cut."""
WINDOW_ROWS: Final = WINDOW + 228
"""What a worker with these settings reads of a series."""
COPIES_A_TRANSACTION: Final = 50
SOURCE: Final = "benchmark"

SETTINGS: Final[dict[str, Any]] = {"max_signal_age_bars": SIGNAL_AGE_BARS}
"""Of the workers, where they differ from the defaults: lists shall have many candle times."""
LIMITS: Final = Limits(max_model_age=timedelta(days=45), max_out_of_distribution=0.2)
TRAINING: Final[dict[str, Any]] = {
    "pool": "symbol",
    "bootstrap_samples": 100,
    # Whatever comes out becomes champion: these rows are about answering.
    "gates": {
        "min_f1": 0,
        "min_precision": 0,
        "min_recall": 0,
        "rel_improvement_f1": 0,
        "max_feature_drift_ks": 1,
        "min_auc_lower": 0,
        "min_brier_skill_lower": -1,
        "slice_alpha": 0,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the inference rows stand on."""

    symbol: str
    window: Candles
    """The newest candles, as a worker holds them; the last one closed at the last full hour."""
    database_url: str
    resources: Resources
    trees: int
    """Of the fit that the champions share."""
    champions: tuple[ModelKey, ...]
    signals: tuple[Json, ...]
    """As a detector sends them; newest first, each of another candle, each answered by a model."""

    def cache(self) -> ModelCache:
        """An empty one, as a worker begins with."""
        return ModelCache(self.resources.transaction, max_bytes=2**30, check_seconds=3600)


def ending_now(candles: Candles, now: datetime) -> Candles:
    """The same candles, moved in time by whole candles so that the last one closed just before ``now``."""
    step = interval_duration(candles.interval)
    behind = (now - to_datetime(candles.close_time[-1])) // step * step
    return replace(candles, open_time=candles.open_time + np.timedelta64(behind, "us"))


def lay(
    candles: Candles, *, symbol: str, database_url: str, held_back: int, say: Callable[[str], None]
) -> Ground:
    """Fill an empty database with candles that end now, and train the symbol's champions.

    Args:
        candles: real ones; they are moved in time.
        symbol: theirs.
        database_url: of an empty database.
        held_back: of the newest candles, so many are left for the caller to write.
        say: told what begins.
    """
    upgrade(database_url)
    moved = ending_now(candles, datetime.now(UTC))
    made = Settings.model_validate(
        {"database_url": database_url, "redis_url": "redis://127.0.0.1:1/0", **SETTINGS}
    )
    resources = Resources(lambda: made, lambda _: WallClock())
    with resources.transaction() as session:
        write_candles(session, symbol, moved.slice(0, len(moved) - held_back))
    cut = data_cut(to_datetime(moved.close_time[-1]) - timedelta(days=CUT_DAYS))
    champions = []
    for regime in MODEL_REGIMES:
        key = ModelKey(symbol, moved.interval, regime)
        say(f"inference: training {key}")
        try:
            _train(resources, key, cut)
        except TrainingRefused:  # too few signals: the fallback answers, as in production
            continue
        champions.append(key)
    with resources.transaction() as session:
        trees = _champion(session, champions[-1])[1].booster.num_boosted_rounds()
    ground = Ground(
        symbol=symbol,
        window=moved.slice(-WINDOW_ROWS),
        database_url=database_url,
        resources=resources,
        trees=trees,
        champions=tuple(champions),
        signals=(),
    )
    return replace(ground, signals=tuple(_signals(ground)))


def write_candles(session: Session, symbol: str, candles: Candles) -> None:
    """Store them, as a sync does."""
    stored.write(
        session,
        symbol=symbol,
        interval=candles.interval,
        candles=candles,
        source=SOURCE,
        now=datetime.now(UTC),
    )


def _train(resources: Resources, key: ModelKey, cut: datetime) -> None:
    """One whole job, as tasks.train runs it."""
    job_id = str(uuid4())
    with resources.transaction() as session:
        jobs.enqueue(session, job_id=job_id, key=key, reason=SOURCE, requested_by=SOURCE, as_of=cut)
        claim = jobs.claim(session, job_id, owner=SOURCE, lease=timedelta(minutes=1))
    assert isinstance(claim, jobs.Claimed)
    with Lease(resources, job_id, claim.fencing_token) as lease:
        config = TrainingConfig.from_mapping(TRAINING)
        outcome = pipeline.train_key(Run(resources=resources, lease=lease, job=claim.job, config=config))
    assert outcome["result"] == "promoted", outcome


def _signals(ground: Ground) -> Iterator[Json]:
    """Signals of the newest candles that a model answers: long and short in turns, newest first."""
    window, cache, now = Window(ground.window), ground.cache(), datetime.now(UTC)
    found = detect(clean(ground.window).candles)
    cleaned = clean(ground.window).candles.close_time
    patterns = {
        (to_datetime(cleaned[at]), direction): list(pattern_names(mask))
        for at, direction, mask in zip(
            found.at.tolist(), found.direction.tolist(), found.patterns.tolist(), strict=True
        )
    }
    direction = 1
    for closed in map(to_datetime, cleaned[: -SIGNAL_BARS - 1 : -1]):
        signal = {
            "symbol": ground.symbol,
            "direction": direction,
            "time": closed.isoformat(),
            "patterns": patterns.get((closed, direction), ["CDLDOJI"]),
        }
        requests = parse_signals(signal, default_interval=ground.window.interval, now=now)
        sightings = window.see(requests, [closed])
        (judged,) = answer("none", requests, sightings, cache.find, now=now, limits=LIMITS)
        if judged.served is not None:
            direction = -direction
            yield signal


def inline_features(ground: Ground) -> tuple[Json, ModelKey]:
    """A signal that brings the features of the newest usable candle, and the key whose model answers."""
    signal = ground.signals[0]
    moment = datetime.fromisoformat(signal["time"])
    market = read_market(clean(ground.window.until(moment)).candles, last=1)
    values = [None if np.isnan(value) else value for value in market.features[-1].tolist()]
    (request,) = parse_signals(signal, default_interval=ground.window.interval, now=moment)
    (judged,) = answer(
        "none", [request], Window(ground.window).see([request], [moment]), ground.cache().find,
        now=moment, limits=LIMITS,
    )  # fmt: skip
    assert judged.served is not None
    features = dict(zip(FEATURE_NAMES, values, strict=True))
    return signal | {"features": features}, judged.served.predictor.model.key


def _champion(session: Session, key: ModelKey) -> tuple[registry.ModelRow, Predictor]:
    row = registry.champion(session, key)
    assert row is not None
    return row, load(session, row)


def copy_champion(ground: Ground, key: ModelKey, symbols: Sequence[str], *, own_trees: bool) -> int:
    """Make the key's champion the champion of other symbols too, by registry and audit log.

    Args:
        ground: where.
        key: whose champion.
        symbols: of the copies.
        own_trees: give each copy a booster of its own: the same trees, other bytes.

    Returns:
        Bytes of one stored booster.
    """
    with ground.resources.transaction() as session:
        row, predictor = _champion(session, key)
        booster = artifacts.get(session, row.booster_sha256)
    for first in range(0, len(symbols), COPIES_A_TRANSACTION):
        with ground.resources.transaction() as session:
            for symbol in symbols[first : first + COPIES_A_TRANSACTION]:
                model = replace(predictor.model, key=replace(key, symbol=symbol))
                if own_trees:
                    predictor.booster.set_attr(symbol=symbol)
                    booster = bytes(predictor.booster.save_raw("ubj"))
                    model = replace(model, booster_sha256=sha256_hex(booster))
                    _put(session, booster, "booster")
                _promote_copy(session, row, model)
    return len(booster)


def _put(session: Session, body: bytes, kind: Any) -> None:
    artifacts.put(session, sha256=sha256_hex(body), body=body, kind=kind, address=None, metadata={})


def _promote_copy(session: Session, row: registry.ModelRow, model: Model) -> None:
    body = to_bytes(model)
    _put(session, body, "model")
    added = registry.add(
        session,
        key=model.key,
        artifact_sha256=sha256_hex(body),
        booster_sha256=model.booster_sha256,
        job_id=None,
        as_of=row.as_of,
        data_cut=row.data_cut,
        config=row.config,
        config_digest=row.config_digest,
        metrics=row.metrics,
        decision=row.decision,
        state="candidate",
        metadata={},
    )
    reference = references.load(session, row.id)
    calibration = references.load_calibration(session, row.id)
    assert reference is not None and calibration is not None
    references.save(session, added.id, reference)
    references.save_calibration(session, added.id, calibration)
    now = datetime.now(UTC)
    registry.promote(session, added.id, now=now, actor=SOURCE, why="a copy", details={})
