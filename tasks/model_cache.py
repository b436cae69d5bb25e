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

MAX_ABSENT: Final = 4096
"""Keys without a champion that are remembered: made-up symbols push only each other out."""
RETRY_SECONDS: Final = 0.2
"""How long an entry is trusted that could not be looked up; the store itself knows when to be asked again."""

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
        self._models: OrderedDict[ModelKey, _Entry] = OrderedDict()
        self._absent: OrderedDict[ModelKey, _Entry] = OrderedDict()
        self._lock = threading.RLock()
        self.loads = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._models)

    @property
    def size_bytes(self) -> int:
        """Memory of the models held, an estimate; trees that several share count once."""
        with self._lock:
            predictors = [served.predictor for served in self._held()]
            trees = {one.model.booster_sha256: one.booster_bytes for one in predictors}
            return sum(one.model_bytes for one in predictors) + sum(trees.values())

    def find(self, key: ModelKey) -> Served | str:
        """The key's champion; or the code of ``ml.inference.ABSTAIN_REASONS`` that says why there is none."""
        with self._lock:
            entry = self._models.get(key) or self._absent.get(key)
            if entry is None or time.monotonic() >= entry.trusted_until:
                entry = self._look(key, entry)
                self._remember(key, entry)
            elif entry.served is not None:
                self._models.move_to_end(key)
            return entry.found

    def forget(self, key: ModelKey) -> None:
        """Trust what is known of this key no longer: its champion has changed."""
        with self._lock:
            entry = self._models.get(key) or self._absent.get(key)
            if entry is not None:
                entry.trusted_until = 0.0

    def _look(self, key: ModelKey, before: _Entry | None) -> _Entry:
        """Ask the registry; load only what is not here yet."""
        good = None if before is None else before.served
        trusted_until = time.monotonic() + self._check_seconds
        try:
            with self._transaction() as session:
                row = registry.champion(session, key)
                if row is None:
                    return _Entry(None, "no_model", trusted_until)
                if good is not None and good.model_id == row.id:
                    return _Entry(good, "", trusted_until)
                predictor = load(session, row, find_booster=self._find_booster)
        except StoreUnavailable as error:
            log.warning("champion_not_looked_up", model_key=str(key), error=str(error), last_good=bool(good))
            # A key that had no champion is answered by its fallback meanwhile, as before.
            had_none = before is not None and before.reason == "no_model"
            reason = "no_model" if had_none else "store_unavailable"
            return _Entry(good, reason, time.monotonic() + RETRY_SECONDS)
        except ArtifactCorrupt as error:
            log.exception("artifact_corrupt", model_key=str(key), error=str(error), last_good=bool(good))
            return _Entry(good, "artifact_corrupt", trusted_until)
        if predictor.model.feature_names != ROW_FEATURE_NAMES:
            log.error("model_mismatch", model_key=str(key), version=row.version, last_good=bool(good))
            return _Entry(good, "model_mismatch", trusted_until)
        self.loads += 1
        log.info("champion_loaded", model_key=str(key), version=row.version, models=len(self._models))
        return _Entry(Served(model_id=row.id, version=row.version, predictor=predictor), "", trusted_until)

    def _remember(self, key: ModelKey, entry: _Entry) -> None:
        """Keep the entry as the most recently used of its kind, and let the others make room."""
        self._models.pop(key, None)
        self._absent.pop(key, None)
        if entry.served is None:
            self._absent[key] = entry
            if len(self._absent) > MAX_ABSENT:
                self._absent.popitem(last=False)
            return
        self._models[key] = entry
        while len(self._models) > 1 and self.size_bytes > self._max_bytes:
            self._models.popitem(last=False)
            self.evictions += 1

    def _held(self) -> list[Served]:
        return [entry.served for entry in self._models.values() if entry.served is not None]

    def _find_booster(self, sha256: str) -> Booster | None:
        """Trees that a model in memory has already: keys of one interval share them."""
        for served in self._held():
            if served.predictor.model.booster_sha256 == sha256:
                return served.predictor.booster
        return None
