"""What drift checks compare with: a model's reference, one row a feature, and what no drift looks like."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.drift_models import DriftNull, ReferenceFeature
from ml.drift import CONFIDENCE, FeatureReference, Reference
from ml.drift_calibration import DriftCalibration

__all__ = ["calibrated", "load", "load_calibration", "save", "save_calibration", "stored"]


def save(session: Session, model_id: int, reference: Reference) -> None:
    """Store a model's reference, once: a second run finds it there and changes nothing."""
    kept = [*reference.features, *([reference.confidence] if reference.confidence else [])]
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
        for position, feature in enumerate(kept)
    ]
    # One statement: psycopg2 would send a list of parameters row by row.
    session.execute(insert(ReferenceFeature).values(rows).on_conflict_do_nothing())


def stored(session: Session, model_id: int) -> bool:
    """Whether the model has a reference."""
    query = sa.select(ReferenceFeature.model_id).where(ReferenceFeature.model_id == model_id).limit(1)
    return session.scalar(query) is not None


def load(session: Session, model_id: int) -> Reference | None:
    """The model's reference, features in the order of its matrix; None where none is stored."""
    rows = session.scalars(
        sa.select(ReferenceFeature)
        .where(ReferenceFeature.model_id == model_id)
        .order_by(ReferenceFeature.position)
    ).all()
    if not rows:
        return None
    features = tuple(_feature(row) for row in rows if row.feature != CONFIDENCE)
    confidence = next((_feature(row) for row in rows if row.feature == CONFIDENCE), None)
    return Reference(features, rows[0].rows, confidence)


def save_calibration(session: Session, model_id: int, calibration: DriftCalibration) -> None:
    """Store what the model's drift statistics come to without drift, once."""
    values = {"model_id": model_id, "body": calibration.to_json()}
    session.execute(insert(DriftNull).values(values).on_conflict_do_nothing())


def load_calibration(session: Session, model_id: int) -> DriftCalibration | None:
    """The model's; None where it was trained by a version that made none."""
    found = session.get(DriftNull, model_id)
    return None if found is None else DriftCalibration.from_json(found.body)


def calibrated(session: Session, model_ids: Iterable[int]) -> set[int]:
    """Those of the models whose drift can be checked."""
    query = sa.select(DriftNull.model_id).where(DriftNull.model_id.in_(list(model_ids)))
    return set(session.scalars(query))


def _feature(row: ReferenceFeature) -> FeatureReference:
    return FeatureReference(
        row.feature,
        np.frombuffer(row.sample, "<f4").astype(np.float32),
        np.array(row.bin_edges, np.float32),
        np.array(row.bin_shares, np.float64),
        row.importance,
    )
