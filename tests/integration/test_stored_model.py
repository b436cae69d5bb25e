"""Models from the database: what is shared between them, and what is checked all the same."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import registry
from db.models import Artifact
from db.session import transaction
from ml.errors import ArtifactCorrupt
from ml.keys import ModelKey
from tasks.stored_model import load

pytestmark = pytest.mark.inference

TRENDING = ModelKey("BTCUSDT", "1h", "trending")


def test_models_of_one_fit_share_its_trees_and_read_their_bytes_once(trained_engine: Engine) -> None:
    asked: list[str] = []
    with transaction(trained_engine) as session:
        trending, everything = (registry.champion(session, key) for key in (TRENDING, TRENDING.fallback))
        assert trending is not None
        assert everything is not None
        assert trending.booster_sha256 == everything.booster_sha256
        one = load(session, trending)
        # Who needs the bytes of the trees from here on fails.
        gone = sa.func.set_byte(Artifact.body, 0, 0)
        session.execute(sa.update(Artifact).where(Artifact.kind == "booster").values(body=gone))

        def find(sha256: str) -> object:
            asked.append(sha256)
            return one.booster

        other = load(session, everything, find_booster=find)  # type: ignore[arg-type]
        with pytest.raises(ArtifactCorrupt, match=everything.booster_sha256):
            load(session, everything, find_booster=lambda _: None)

    assert asked == [everything.booster_sha256]
    assert other.booster is one.booster
    assert other.model.key == TRENDING.fallback
    row = np.zeros((1, len(one.model.feature_names)), np.float32)
    assert one.margin(row) == other.margin(row)
    assert one.size_bytes == one.booster_bytes + one.model_bytes
    assert one.booster_bytes == other.booster_bytes > 0
