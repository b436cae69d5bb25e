"""Each query that the system makes, on tables of a million rows (``made_up_rows``): time and plan."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from benchmarks.made_up_rows import FIRST_OPEN, HOUR, MILLION, Size, fill
from benchmarks.measurement import Measurement
from db import artifacts, audit, candles, evaluations, jobs, outcomes, predictions, references, registry
from db.drift_models import DriftNull
from db.models import ModelRow
from db.schema import upgrade
from db.session import create_engine
from ml.candles import Candles
from ml.drift import FeatureReference, Reference
from ml.keys import ModelKey

__all__ = ["MILLION", "Plan", "Size", "fill", "measure", "plans", "queries"]

LIMIT_MS = 10.0
RUNS = 15
BULK = {"save and load a reference", "labels of a symbol, 90 days"}
"""A write of 655 kB, and 7,600 rows that a training reads once: no index makes them shorter."""
KEY = ModelKey("S1", "1h", "trending")
HORIZON = 12 * HOUR
SEASON = timedelta(days=90)

Query = Callable[[Session], object]


def measure(database_url: str) -> list[Measurement]:
    """Fill the database and time each call in a transaction that is rolled back: its slowest statement.

    Raises:
        ValueError: the database holds candles already: this is for an empty one.
    """
    upgrade(database_url)
    engine = create_engine(database_url, application_name="benchmark")
    fill(engine, MILLION)
    measurements = []
    for name, query in queries(MILLION).items():
        timings = [_time(engine, query) for _ in range(RUNS + 1)][1:]  # the first one connects and plans
        slowest, whole = (median(column) for column in zip(*timings, strict=True))
        plan = "; ".join(map(str, plans(engine, query)))
        note = f"whole call {whole:.2f} ms; {plan}"
        limit = None if name in BULK else LIMIT_MS
        measurements.append(Measurement(f"query: {name}", slowest, "ms", limit, RUNS, note))
    engine.dispose()
    return measurements


def _time(engine: Engine, query: Query) -> tuple[float, float]:
    """Milliseconds of the slowest statement, its rows' transfer included, and of the whole call."""
    started, statements = 0.0, []

    def before(*_: object) -> None:
        nonlocal started
        started = time.perf_counter()

    def after(*_: object) -> None:
        statements.append(time.perf_counter() - started)

    with _rolled_back(engine) as session, _listening(engine, before, after):
        begun = time.perf_counter()
        query(session)
        whole = time.perf_counter() - begun
    # COPY goes past SQLAlchemy: there the call is the statement.
    return 1000 * max(statements, default=whole), 1000 * whole


@contextmanager
def _listening(engine: Engine, before: Callable[..., None], after: Callable[..., None]) -> Iterator[None]:
    listeners = (("before_cursor_execute", before), ("after_cursor_execute", after))
    for name, listener in listeners:
        sa.event.listen(engine, name, listener)
    yield
    for name, listener in listeners:
        sa.event.remove(engine, name, listener)


@dataclass(frozen=True, slots=True)
class Plan:
    """One node of a plan that reads or writes a table."""

    node: str
    relation: str
    index: str

    def __str__(self) -> str:
        return f"{self.node} {self.index or self.relation}"


def plans(engine: Engine, query: Query) -> list[Plan]:
    """What the server does for ``query``, without repeats, in the order of its statements."""
    statements: list[tuple[str, Any]] = []

    def capture(_c: object, _k: object, statement: str, parameters: Any, _x: object, many: bool) -> None:
        statements.append((statement, parameters[0] if many else parameters))

    with _rolled_back(engine) as session:
        with _listening(engine, capture, _ignore):
            query(session)
        found: dict[Plan, None] = {}
        for statement, parameters in statements:
            if statement.lstrip().split()[0] in ("SELECT", "INSERT", "UPDATE", "WITH"):
                plan = session.connection().exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
                found |= dict.fromkeys(_nodes(plan.scalar_one()[0]["Plan"]))
    return list(found)


def _ignore(*_: object) -> None: ...


def _nodes(node: dict[str, Any]) -> Iterator[Plan]:
    for child in node.get("Plans", ()):
        yield from _nodes(child)
    if "Relation Name" in node or "Index Name" in node:
        yield Plan(node["Node Type"], node.get("Relation Name", ""), node.get("Index Name", ""))


@contextmanager
def _rolled_back(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session
        session.rollback()


def queries(size: Size) -> dict[str, Query]:
    """Each query by name; ids are those that ``fill`` makes."""
    end = FIRST_OPEN + size.candles_each * HOUR
    middle = size.models // 2
    sha256 = hashlib.sha256(f"model {middle}".encode() * 2_000).hexdigest()
    window = {"known_at": end, "start": end - 1024 * HOUR}
    return {
        "newest candle of a series": lambda s: candles.latest_open_time(s, "S1", "1h"),
        "every series": candles.series,
        "fingerprints of an interval": lambda s: candles.fingerprint(s, "1h", known_at=size.cut),
        "window of 1,024 candles": lambda s: candles.read(s, "S1", "1h", **window),
        "its plan, as SELECT": lambda s: s.execute(_window_select(), _window_parameters(end)).all(),
        "write 24 candles": lambda s: _write_candles(s, end, 24),
        "enqueue a job": lambda s: _enqueue(s, str(uuid4())),
        "get a job": lambda s: jobs.get(s, "job 5"),
        "newest 50 jobs": lambda s: jobs.recent(s, 50),
        "newest 50 jobs of a key": lambda s: jobs.recent(s, 50, key=KEY),
        "newest 50 failed jobs": lambda s: jobs.recent(s, 50, state="failed"),
        "claim, renew, report and finish a job": _run_a_job,
        "sweep": lambda s: jobs.sweep(s, queued_grace=timedelta(days=1)),
        "champion of a key": lambda s: registry.champion(s, KEY),
        "model by artifact": lambda s: registry.find_by_artifact(s, KEY, sha256),
        "newest 100 models": registry.models,
        "versions of a key": lambda s: registry.models(s, key=KEY),
        "champions": lambda s: registry.models(s, state="champion"),
        "promote a model": _promote,
        "find a shared fit": lambda s: artifacts.find_fit(s, f"fit {middle}"),
        "load an artifact": lambda s: artifacts.get(s, sha256),
        "save and load a reference": _reference,
        "newest 20 evaluations of a key": lambda s: evaluations.recent(s, KEY, 20),
        "newest 50 audit rows of a key": lambda s: audit.recent(s, 50, subject=str(KEY)),
        "artifact in the audit log": lambda s: audit.names_artifact(
            s, subject=str(KEY), model_id=1, sha256=sha256
        ),
        **_of_predictions(size, end),
    }


def _of_predictions(size: Size, end: datetime) -> dict[str, Query]:
    last = FIRST_OPEN + size.predictions * timedelta(minutes=1)
    return {
        "newest 50 predictions": lambda s: predictions.recent(s, limit=50),
        "newest 50 predictions of a key": lambda s: predictions.recent(
            s, symbol=KEY.symbol, interval=KEY.interval, regime=KEY.regime, limit=50
        ),
        "newest 50 accepted predictions": lambda s: predictions.recent(s, decision="accept", limit=50),
        "1,000 predictions whose candles are in": lambda s: outcomes.due(s, end, 1_000),
        "a prediction by its id": lambda s: predictions.get(s, UUID(int=7)),
        "a prediction by 8 digits": lambda s: predictions.beginning(s, f"{7:032x}"[:8], 2),
        "write 64 predictions": lambda s: predictions.write(s, [_answer(n) for n in range(64)]),
        "resolve 64 predictions": lambda s: predictions.resolve(s, [_resolved(size, n) for n in range(64)]),
        "labels of a symbol, 90 days": lambda s: predictions.resolved(
            s, symbol=KEY.symbol, interval=KEY.interval, since=last - SEASON, until=last
        ),
        "every key with a prediction": outcomes.keys,
        "outcomes of a key, 90 days": lambda s: outcomes.read(s, KEY, since=last - SEASON, until=last),
    }


def _answer(number: int) -> dict[str, Any]:
    """A record as a worker makes it."""
    closed = FIRST_OPEN + number * HOUR
    return dict.fromkeys(predictions.COLUMNS) | {
        "id": str(uuid4()),
        "signal_time": closed.isoformat(),
        "as_of": closed.isoformat(),
        "symbol": KEY.symbol,
        "interval": KEY.interval,
        "regime": KEY.regime,
        "role": "champion",
        "direction": 1,
        "patterns": ["CDLDOJI"],
        "confidence": 0.6,
        "decision": "reject",
        "features": base64.b64encode(bytes(220)).decode(),
        "entry_price": 100.0,
        "atr": 1.0,
        "horizon_end": (closed + HORIZON).isoformat(),
        "metadata": {"threshold": 0.55},
    }


def _resolved(size: Size, number: int) -> predictions.Outcome:
    """The outcome of one of the newest predictions, which are open."""
    row = size.predictions - number
    signal_time = FIRST_OPEN + row * timedelta(minutes=1)
    return predictions.Outcome(
        id=UUID(int=row),
        signal_time=signal_time,
        label=1,
        label_end=signal_time + HOUR,
        net_return_atr=0.7,
        resolved_at=signal_time + HORIZON,
    )


def _window_select() -> sa.TextClause:
    select = candles._READ.partition("COPY (")[2].rpartition(") TO STDOUT")[0]
    for name in ("symbol", "interval", "known_at", "start", "end"):
        select = select.replace(f"%({name})s", f":{name}")
    return sa.text(select)


def _window_parameters(end: datetime) -> dict[str, object]:
    return {"symbol": "S1", "interval": "1h", "known_at": end, "start": end - 1024 * HOUR, "end": end}


def _write_candles(session: Session, end: datetime, count: int) -> None:
    start = np.datetime64(end.replace(tzinfo=None), "us")
    open_time = start + np.arange(count) * np.timedelta64(1, "h")
    price = np.full(count, 100.0)
    new = Candles("1h", open_time, price, price, price, price, price)
    candles.write(session, symbol="S1", interval="1h", candles=new, source="bench", now=end)


def _enqueue(session: Session, job_id: str) -> None:
    jobs.enqueue(session, job_id=job_id, key=KEY, reason="bench", requested_by="bench", as_of=FIRST_OPEN)


def _run_a_job(session: Session) -> None:
    _enqueue(session, "bench")
    claimed = jobs.claim(session, "bench", owner="bench", lease=timedelta(seconds=30))
    assert isinstance(claimed, jobs.Claimed)
    jobs.heartbeat(session, "bench", claimed.fencing_token, timedelta(seconds=30))
    jobs.report(session, "bench", claimed.fencing_token, stage="fit", fraction=0.5)
    jobs.finish(session, "bench", claimed.fencing_token, state="succeeded", outcome={})


def _promote(session: Session) -> None:
    candidate = session.scalar(sa.select(sa.func.max(ModelRow.id)).where(ModelRow.symbol == KEY.symbol))
    assert candidate is not None
    references.save(session, candidate, _small_reference())
    session.execute(insert(DriftNull).values(model_id=candidate, body={}).on_conflict_do_nothing())
    registry.promote(session, candidate, now=FIRST_OPEN, actor="bench", why="bench", details={})


def _small_reference() -> Reference:
    """Of one feature: a model without any, or without a calibration, cannot be promoted."""
    sample, edges = np.zeros(1, dtype=np.float32), np.zeros(0, dtype=np.float32)
    return Reference((FeatureReference("f0", sample, edges, np.ones(1), 1.0),), 1)


def _reference(session: Session) -> None:
    sample = np.linspace(0, 1, 4096, dtype=np.float32)
    edges, shares = np.linspace(0.1, 0.9, 9, dtype=np.float32), np.full(10, 0.1)
    features = tuple(FeatureReference(f"f{n}", sample, edges, shares, 0.025) for n in range(40))
    references.save(session, 1, Reference(features, 10_000))
    references.load(session, 1)
