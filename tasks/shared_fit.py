"""The pooled fit: made once per data cut and options, kept under its content address, reused by every key.

Of several jobs that need the same fit at once, one makes it and the others wait. The right to make it is
part of the job's lease: if the worker dies or stalls it ends with the lease, and the next in line makes it.

Where the options ask for an ensemble there are two fits, each under an address of its own: the single one,
which is what it would be without the ensemble, and the average that is made from it. A job finds or makes the
single one first, and holds the right to make one of them at a time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from db import artifacts, jobs
from ml.artifact import library_versions, sha256_hex
from ml.config import TrainingConfig, canonical_json
from ml.dataset import FEATURE_SET
from ml.ensemble import fit_ensemble
from ml.keys import ModelKey
from ml.live_weights import ServedConfidence
from ml.rows import SignalRows
from ml.training import FittedBooster, fit_booster
from tasks.base import Resources
from tasks.run import Run

__all__ = ["Slot", "find_fits", "fit_address", "fit_slots", "make_fits", "pool_symbols"]

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


def fit_slots(
    key: ModelKey, config: TrainingConfig, known: Mapping[str, str], served: ServedConfidence | None = None
) -> tuple[Slot, ...]:
    """The single fit's slot, and the ensemble's after it where there is one. Arguments as ``fit_address``.

    The ensemble's address covers the single fit's, so all that could change a tree, and its own options.
    """
    single = fit_address(key, config, known, served)
    if config.ensemble.members == 1:
        return (single,)
    content = {"single": single.address, "ensemble": config.ensemble.model_dump(mode="json")}
    return single, Slot(address=sha256_hex(canonical_json(content)), symbols=single.symbols)


def find_fits(run: Run, slots: tuple[Slot, ...]) -> tuple[FittedBooster, ...]:
    """The fits of ``slots`` in order, up to the first that is not there: this job has the right to make it.

    Raises:
        LeaseLost: this job passed to another worker while it waited.
    """
    found: list[FittedBooster] = []
    for slot in slots:
        fitted = _find_or_begin(run, slot.address)
        if fitted is None:
            break
        found.append(fitted)
    return tuple(found)


def make_fits(
    run: Run,
    slots: tuple[Slot, ...],
    found: tuple[FittedBooster, ...],
    pooled: SignalRows,
    served: ServedConfidence | None,
) -> tuple[FittedBooster, ...]:
    """The fits of ``slots``: those ``found``, and the others, made now and kept for the next job.

    Args:
        run: whose progress is told, in shares of the members that are to be grown.
        slots: from ``fit_slots``.
        found: from ``find_fits``; this job has the right to make the first that is missing.
        pooled: the rows to learn from.
        served: as for the addresses.

    Raises:
        TrainingRefused: the rows cannot carry the single fit.
        LeaseLost: this job passed to another worker.
    """
    single = found[0] if found else _make_single(run, slots[0], pooled, served)
    if len(slots) == 1:
        return (single,)
    # Another job may have begun the ensemble as soon as the single fit was there for it to find.
    ensemble = None if found else _find_or_begin(run, slots[1].address)
    if ensemble is None:
        ensemble = _make_ensemble(run, slots[1], single, pooled, served, grown=0 if found else 1)
    return single, ensemble


def _make_single(run: Run, slot: Slot, pooled: SignalRows, served: ServedConfidence | None) -> FittedBooster:
    members = run.config.ensemble.members
    fitted = fit_booster(
        pooled,
        run.config,
        interval=run.key.interval,
        served=served,
        on_round=lambda done, most: run.lease.progress(done / most / members),
    )
    _save_fit(run, slot.address, fitted)
    return fitted


def _make_ensemble(
    run: Run,
    slot: Slot,
    single: FittedBooster,
    pooled: SignalRows,
    served: ServedConfidence | None,
    *,
    grown: int,
) -> FittedBooster:
    """``grown``: members that this job has grown before."""
    extra = run.config.ensemble.members - 1
    fitted = fit_ensemble(
        single,
        pooled,
        run.config,
        served=served,
        on_round=lambda done, most: run.lease.progress((grown + extra * done / most) / (grown + extra)),
    )
    _save_fit(run, slot.address, fitted)
    return fitted


def _find_fit(resources: Resources, address: str) -> FittedBooster | None:
    """The fit kept under ``address``, or None. Raises ArtifactCorrupt."""
    with resources.transaction() as session:
        found = artifacts.find_fit(session, address)
        if found is None:
            return None
        sha256, metadata = found
        return FittedBooster.from_json(metadata, artifacts.get(session, sha256))


def _save_fit(run: Run, address: str, fitted: FittedBooster) -> None:
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


def _find_or_begin(run: Run, address: str) -> FittedBooster | None:
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
