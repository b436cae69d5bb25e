"""A registered model, read from the database and checked against the audit log."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db import artifacts, audit, registry
from ml import artifact
from ml.artifact import Predictor
from ml.errors import ArtifactCorrupt

__all__ = ["load"]


def load(session: Session, row: registry.ModelRow) -> Predictor:
    """Make a model answer: its bytes match their sha256, and the audit log names that sha256 for this model.

    Raises:
        ArtifactCorrupt: bytes are missing or changed, or the registry names bytes that nobody decided on.
    """
    subject, sha256 = str(row.key), row.artifact_sha256
    if not audit.names_artifact(session, subject=subject, model_id=row.id, sha256=sha256):
        raise ArtifactCorrupt(
            f"{subject}, version {row.version}: the audit log names no artifact {sha256} for it; "
            "the registry was changed by hand: restore ml_models from a backup, or train again"
        )
    return artifact.load(artifacts.get(session, sha256), sha256, artifacts.get(session, row.booster_sha256))
