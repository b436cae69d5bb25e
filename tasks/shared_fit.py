"""The pooled fit: made once per data cut and options, kept under its content address, reused by every key.

Of several jobs that need the same fit at once, one makes it and the others wait. The right to make it is
part of the job's lease: if the worker dies or stalls it ends with the lease, and the next in line makes it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from db import artifacts, jobs
from ml.artifact import library_versions
from ml.config import TrainingConfig
from ml.dataset import FEATURE_SET
from ml.keys import ModelKey
from ml.live_weights import ServedConfidence
from ml.training import FittedBooster
from tasks.base import Resources
from tasks.run import Run

__all__ = ["Slot", "find_or_begin", "fit_address", "pool_symbols", "save_fit"]

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a fit is or will be kept."""

    address: str
    symbols: tuple[str, ...]
    """Whose candles it learns from, sorted."""


def pool_symbols(key: ModelKey, config: TrainingConfig, known: Iterable[str]) -> tuple[str, ...]:
    """Whose candles the fit of ``key`` learns from, sorted, of all symbols that have some."""
    return tuple(sorted(known)) if config.pool == "all" else (key.symbol,)


def fit_address(
    key: ModelKey, config: TrainingConfig, known: Mapping[str, str], served: ServedConfidence | None = None
) -> Slot:
    """The content address of a fit: every option, feature, candle and live outcome that could change a tree.

    Args:
        key: whose fit it is.
        config: its options.
        known: symbol -> fingerprint of its candles as known at the data cut.
        served: what champions answered live, where it weighs (``config.live``); None has the address of a
            fit that knows nothing of it.
    """
    symbols = pool_symbols(key, config, known)
    content: dict[str, Any] = {
        "interval": key.interval,
        "options": config.fit_digest(),
        "features": FEATURE_SET,
        "libraries": library_versions(),
        "candles": {symbol: known[symbol] for symbol in symbols},
        # A fit on the key's own rows is nobody else's.
        "regime": key.regime if config.pool == "key" else None,
    }
    if served is not None:
        content["live"] = served.digest()
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return Slot(address=hashlib.sha256(canonical.encode()).hexdigest(), symbols=symbols)


def _find_fit(resources: Resources, address: str) -> FittedBooster | None:
    """The fit kept under ``address``, or None. Raises ArtifactCorrupt."""
    with resources.transaction() as session:
        found = artifacts.find_fit(session, address)
        if found is None:
            return None
        sha256, metadata = found
        return FittedBooster.from_json(metadata, artifacts.get(session, sha256))


def save_fit(run: Run, address: str, fitted: FittedBooster) -> None:
    """Keep the fit under its address. Raises LeaseLost."""
    with run.resources.transaction() as session:
        run.lease.require(session)
        artifacts.put(
            session,
            sha256=fitted.sha256,
            body=fitted.ubjson,
            kind="booster",
            address=address,
            metadata=fitted.to_json(),
        )


def find_or_begin(run: Run, address: str) -> FittedBooster | None:
    """The fit if it is there or another job makes it meanwhile; None gives this job the right to make it.

    Raises:
        LeaseLost: this job passed to another worker while it waited.
    """
    while True:
        found = _find_fit(run.resources, address)
        if found is not None:
            return found
        with run.resources.transaction() as session:
            begun = jobs.begin_fit(session, run.lease.job_id, run.lease.token, address)
        if begun:
            # Looked at again: another run may have saved it and ended since the first look.
            return _find_fit(run.resources, address)
        run.lease.check()
        time.sleep(POLL_SECONDS)
