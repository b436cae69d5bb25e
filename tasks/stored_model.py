"""A registered model, read from the database and checked against the audit log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from db import artifacts, audit, registry
from ml import artifact
from ml.artifact import Predictor
from ml.errors import ArtifactCorrupt

if TYPE_CHECKING:
    from xgboost import Booster

__all__ = ["load"]


def load(
    session: Session,
    row: registry.ModelRow,
    find_booster: Callable[[str], Booster | None] = lambda _: None,
) -> Predictor:
    """Make a model answer: its bytes match their sha256, and the audit log names that sha256 for this model.

    Args:
        session: the caller's.
        row: which model.
        find_booster: gives the trees of a sha256 that another predictor already has in memory (its
            ``booster``), or None; many keys share one fit.

    Raises:
        ArtifactCorrupt: bytes are missing or changed, or the registry names bytes that nobody decided on.
    """
    subject, sha256 = str(row.key), row.artifact_sha256
    if not audit.names_artifact(session, subject=subject, model_id=row.id, sha256=sha256):
        raise ArtifactCorrupt(
            f"{subject}, version {row.version}: the audit log names no artifact {sha256} for it; "
            "the registry was changed by hand: restore ml_models from a backup, or train again"
        )
    body = artifacts.get(session, sha256)
    # The judged bytes say which trees, not the registry's column.
    model = artifact.read_model(body, sha256)
    trees = find_booster(model.booster_sha256) or artifacts.get(session, model.booster_sha256)
    return artifact.attach(model, trees, json_bytes=len(body))
