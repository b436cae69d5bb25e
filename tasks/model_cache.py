"""Champions in memory: least recently used, bounded in bytes, told of promotions.

A promotion is broadcast to every inference worker, which then looks at the registry at its next request;
should the broadcast be lost, it looks after ``check_seconds`` anyway. Where the new champion cannot be read,
or the database is away, the last good one goes on answering.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from sqlalchemy.orm import Session

from db import registry
from ml.dataset import ROW_FEATURE_NAMES
from ml.errors import ArtifactCorrupt, StoreUnavailable
from ml.inference import Served
from ml.keys import ModelKey
from tasks.stored_model import load

if TYPE_CHECKING:
    from xgboost import Booster

__all__ = ["ModelCache"]

STORE_PAUSE_SECONDS: Final = 1.0
"""After a failed look at the database the next one waits so long: a connection that hangs costs seconds."""
NO_MODEL_BYTES: Final = 512
"""Counted for a key without a champion, so that made-up symbols cannot fill the memory either."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    served: Served | None
    reason: str
    """Why there is none, where ``served`` is None."""
    trusted_until: float
    """On the monotonic clock."""

    @property
    def found(self) -> Served | str:
        return self.reason if self.served is None else self.served


class ModelCache:
    """The champions that one process has in memory. Threads may share it; each model is loaded once.

    Args:
        transaction: opens one; called only where something has to be looked up.
        max_bytes: of models and trees together. The model just asked for stays, whatever its size.
        check_seconds: how long an entry is trusted.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Session]],
        *,
        max_bytes: int,
        check_seconds: float,
    ) -> None:
        self._transaction = transaction
        self._max_bytes = max_bytes
        self._check_seconds = check_seconds
        self._entries: OrderedDict[ModelKey, _Entry] = OrderedDict()
        self._lock = threading.RLock()
        self.loads = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Memory of the models held; trees that several share count once."""
        with self._lock:
            models = [entry.served for entry in self._entries.values() if entry.served is not None]
            trees = {one.predictor.model.booster_sha256: one.predictor.booster_bytes for one in models}
            own = sum(one.predictor.model_bytes for one in models)
            return own + sum(trees.values()) + NO_MODEL_BYTES * len(self._entries)

    def find(self, key: ModelKey) -> Served | str:
        """The key's champion; or the code of ``ml.inference.ABSTAIN_REASONS`` that says why there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or time.monotonic() >= entry.trusted_until:
                entry = self._look(key, entry)
            self._entries[key] = entry
            self._entries.move_to_end(key)
            return entry.found

    def forget(self, key: ModelKey) -> None:
        """Trust what is known of this key no longer: its champion has changed."""
        with self._lock:
            if key in self._entries:
                self._entries[key].trusted_until = 0.0

    def _look(self, key: ModelKey, before: _Entry | None) -> _Entry:
        """Ask the registry; load only what is not here yet."""
        good = None if before is None else before.served
        trusted_until = time.monotonic() + self._check_seconds
        try:
            with self._transaction() as session:
                row = registry.champion(session, key)
                if row is None:
                    return self._keep(_Entry(None, "no_model", trusted_until))
                if good is not None and good.model_id == row.id:
                    return _Entry(good, "", trusted_until)
                predictor = load(session, row, find_booster=self._find_booster)
        except StoreUnavailable as error:
            log.warning("champion_not_looked_up", model_key=str(key), error=str(error), last_good=bool(good))
            return _Entry(good, "store_unavailable", time.monotonic() + STORE_PAUSE_SECONDS)
        except ArtifactCorrupt as error:
            log.exception("artifact_corrupt", model_key=str(key), error=str(error), last_good=bool(good))
            return _Entry(good, "artifact_corrupt", trusted_until)
        if predictor.model.feature_names != ROW_FEATURE_NAMES:
            log.error("model_mismatch", model_key=str(key), version=row.version)
            return _Entry(good, "model_mismatch", trusted_until)
        self.loads += 1
        log.info("champion_loaded", model_key=str(key), version=row.version, models=len(self._entries))
        return self._keep(
            _Entry(Served(model_id=row.id, version=row.version, predictor=predictor), "", trusted_until)
        )

    def _find_booster(self, sha256: str) -> Booster | None:
        """Trees that a model in memory has already: keys of one interval share them."""
        for entry in self._entries.values():
            if entry.served is not None and entry.served.predictor.model.booster_sha256 == sha256:
                return entry.served.predictor.booster
        return None

    def _keep(self, entry: _Entry) -> _Entry:
        """Make room for one more: the least recently used go first."""
        room = NO_MODEL_BYTES
        if entry.served is not None:
            room += entry.served.predictor.model_bytes + entry.served.predictor.booster_bytes
        while self._entries and self.size_bytes + room > self._max_bytes:
            self._entries.popitem(last=False)
            self.evictions += 1
        return entry
