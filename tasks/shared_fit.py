"""The pooled fit: made once per data cut and options, kept under its content address, reused by every key.

Of several jobs that need the same fit at once, one makes it under a PostgreSQL advisory lock and the
others wait; if its worker dies, its connection closes, the lock falls, and the next in line makes it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from db import artifacts
from ml.config import TrainingConfig
from ml.dataset import FEATURE_SET
from ml.errors import StoreUnavailable
from ml.keys import ModelKey
from ml.training import FittedBooster, library_versions
from tasks.base import Resources
from tasks.run import Run

__all__ = ["Slot", "find_fit", "fit_address", "pool_symbols", "save_fit", "single_flight"]

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a fit is or will be kept."""

    address: str
    symbols: tuple[str, ...]
    """Whose candles it learns from, sorted."""


def pool_symbols(key: ModelKey, config: TrainingConfig, known: Mapping[str, str]) -> tuple[str, ...]:
    """The symbols whose rows the key's fit learns from; ``known`` holds those with candles at the cut."""
    return tuple(sorted(known)) if config.pool == "all" else (key.symbol,)


def fit_address(key: ModelKey, config: TrainingConfig, known: Mapping[str, str]) -> Slot:
    """The content address of a fit: every option, feature and candle that could change a tree.

    Args:
        known: symbol -> fingerprint of its candles as known at the data cut.
    """
    symbols = pool_symbols(key, config, known)
    content = {
        "interval": key.interval,
        "options": config.fit_digest(),
        "features": FEATURE_SET,
        "libraries": library_versions(),
        "candles": {symbol: known[symbol] for symbol in symbols},
        # A fit on the key's own rows is nobody else's.
        "regime": key.regime if config.pool == "key" else None,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return Slot(address=hashlib.sha256(canonical.encode()).hexdigest(), symbols=symbols)


def find_fit(resources: Resources, address: str) -> FittedBooster | None:
    """The fit kept under ``address``, or None. Raises ArtifactCorrupt."""
    with resources.transaction() as session:
        found = artifacts.find_fit(session, address)
        if found is None:
            return None
        sha256, metadata = found
        return FittedBooster.from_json(metadata, artifacts.get(session, sha256))


def save_fit(resources: Resources, address: str, fitted: FittedBooster) -> None:
    """Keep the fit under its address; a second one under the same address changes nothing."""
    with resources.transaction() as session:
        artifacts.put(
            session,
            sha256=fitted.sha256,
            body=fitted.ubjson,
            kind="booster",
            address=address,
            metadata=fitted.to_json(),
        )


@contextmanager
def single_flight(run: Run, address: str) -> Iterator[FittedBooster | None]:
    """Yield the fit if it is there or another job makes it meanwhile; else None, with the right to make it.

    Raises:
        LeaseLost: this job passed to another worker while it waited.
        StoreUnavailable: the database went away.
    """
    found = find_fit(run.resources, address)
    if found is not None:
        yield found
        return
    connection = _locked_connection(run, address)
    try:
        found = find_fit(run.resources, address)
        if found is None:
            yield None
    finally:
        # Not back to the pool: closing ends the lock, even on a connection that is broken half-way.
        connection.invalidate()
        connection.close()
    if found is not None:
        yield found


def _locked_connection(run: Run, address: str) -> Connection:
    """A connection of its own that holds the lock. Polls, so that a lost lease ends the waiting."""
    lock_id = int.from_bytes(bytes.fromhex(address)[:8], "big", signed=True)
    try:
        connection = run.resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        while not connection.scalar(text("SELECT pg_try_advisory_lock(:id)"), {"id": lock_id}):
            run.lease.check()
            time.sleep(POLL_SECONDS)
    except OperationalError as error:
        raise StoreUnavailable(f"cannot lock the shared fit: {error.orig}") from error
    return connection
