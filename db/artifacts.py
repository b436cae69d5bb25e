"""Model bytes under their own sha256, and the address that leads from a fit's inputs to its bytes."""

from __future__ import annotations

import hashlib
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.base import Json
from db.locks import lock
from db.models import Artifact
from ml.errors import ArtifactCorrupt

__all__ = ["find_fit", "get", "put"]


def put(
    session: Session,
    *,
    sha256: str,
    body: bytes,
    kind: Literal["booster", "model"],
    address: str | None,
    metadata: Json,
) -> None:
    """Store ``body`` unless it is there. An address leads to what was last put under it.

    Raises:
        ArtifactCorrupt: ``sha256`` is not that of ``body``; nothing was written.
    """
    _verify(sha256, body)
    if address is not None:
        # Two workers may have made the same fit. Where their bytes differ (another library
        # version), the later one wins; the lock keeps the unique index from failing either.
        lock(session, "artifact address", address)
        session.execute(
            sa.update(Artifact)
            .where(Artifact.address == address, Artifact.sha256 != sha256)
            .values(address=None)
        )
    new = insert(Artifact).values(
        sha256=sha256, kind=kind, address=address, body=body, size=len(body), details=metadata
    )
    if address is None:
        # A body that was damaged is mended by the one whose sha256 was just checked.
        session.execute(
            new.on_conflict_do_update(
                index_elements=[Artifact.sha256], set_={"body": body}, where=Artifact.body != body
            )
        )
    else:
        session.execute(
            new.on_conflict_do_update(
                index_elements=[Artifact.sha256], set_={"address": address, "body": body}
            )
        )


def get(session: Session, sha256: str) -> bytes:
    """The bytes, checked.

    Raises:
        ArtifactCorrupt: they are missing, or do not match ``sha256``.
    """
    body = session.scalar(sa.select(Artifact.body).where(Artifact.sha256 == sha256))
    if body is None:
        raise ArtifactCorrupt(f"artifact {sha256} is not in ml_model_artifacts")
    _verify(sha256, body)
    return body


def find_fit(session: Session, address: str) -> tuple[str, Json] | None:
    """sha256 and metadata of the fit made from these inputs, or None."""
    found = session.execute(
        sa.select(Artifact.sha256, Artifact.details).where(Artifact.address == address)
    ).one_or_none()
    return None if found is None else (found.sha256, found.details)


def _verify(sha256: str, body: bytes) -> None:
    found = hashlib.sha256(body).hexdigest()
    if found != sha256:
        raise ArtifactCorrupt(
            f"artifact {sha256} holds {len(body)} bytes whose sha256 is {found}; "
            "restore ml_model_artifacts from a backup, or train again"
        )
