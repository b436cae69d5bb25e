"""The references that drift checks compare with, one row a feature."""

from __future__ import annotations

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.drift_models import ReferenceFeature
from ml.drift import FeatureReference, Reference

__all__ = ["load", "save"]


def save(session: Session, model_id: int, reference: Reference) -> None:
    """Store a model's reference, once: a second run finds it there and changes nothing."""
    rows = [
        {
            "model_id": model_id,
            "feature": feature.name,
            "position": position,
            "importance": feature.importance,
            "sample": feature.sample.astype("<f4").tobytes(),
            "bin_edges": feature.edges.tolist(),
            "bin_shares": feature.shares.tolist(),
            "rows": reference.rows,
        }
        for position, feature in enumerate(reference.features)
    ]
    # One statement: psycopg2 would send a list of parameters row by row.
    session.execute(insert(ReferenceFeature).values(rows).on_conflict_do_nothing())


def load(session: Session, model_id: int) -> Reference | None:
    """The model's reference, features in the order of its matrix; None where none is stored."""
    rows = session.scalars(
        sa.select(ReferenceFeature)
        .where(ReferenceFeature.model_id == model_id)
        .order_by(ReferenceFeature.position)
    ).all()
    if not rows:
        return None
    features = tuple(
        FeatureReference(
            row.feature,
            np.frombuffer(row.sample, "<f4").astype(np.float32),
            np.array(row.bin_edges, np.float32),
            np.array(row.bin_shares, np.float64),
            row.importance,
        )
        for row in rows
    )
    return Reference(features, rows[0].rows)
