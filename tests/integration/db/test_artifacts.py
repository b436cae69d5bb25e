from __future__ import annotations

import hashlib
from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import artifacts
from db.models import Artifact
from db.session import transaction
from ml.errors import ArtifactCorrupt
from tests.integration.db.rows import race

pytestmark = pytest.mark.database

BODY = bytes(range(256)) * 40
SHA256 = hashlib.sha256(BODY).hexdigest()


def put(engine: Engine, body: bytes = BODY, address: str | None = None, **metadata: object) -> str:
    sha256 = hashlib.sha256(body).hexdigest()
    with transaction(engine) as session:
        artifacts.put(
            session, sha256=sha256, body=body, kind="booster", address=address, metadata=dict(metadata)
        )
    return sha256


def test_bytes_come_back_as_they_were(engine: Engine) -> None:
    put(engine)
    put(engine)
    with transaction(engine) as session:
        assert artifacts.get(session, SHA256) == BODY


def test_fit_is_found_under_its_address_with_its_metadata(engine: Engine) -> None:
    put(engine, address="fit-1", trees=37)
    with transaction(engine) as session:
        assert artifacts.find_fit(session, "fit-1") == (SHA256, {"trees": 37})
        assert artifacts.find_fit(session, "fit-2") is None


def test_address_leads_to_what_was_put_last(engine: Engine) -> None:
    put(engine, address="fit-1")
    other = put(engine, b"other bytes", address="fit-1")
    with transaction(engine) as session:
        assert artifacts.find_fit(session, "fit-1") == (other, {})
        assert artifacts.get(session, SHA256) == BODY


def test_same_bytes_of_other_inputs_are_found_under_the_new_address(engine: Engine) -> None:
    put(engine, address="fit-1")
    put(engine, address="fit-2")
    with transaction(engine) as session:
        assert artifacts.find_fit(session, "fit-2") == (SHA256, {})


def test_wrong_sha256_is_refused_and_nothing_written(engine: Engine) -> None:
    with transaction(engine) as session, pytest.raises(ArtifactCorrupt, match="sha256"):
        artifacts.put(session, sha256="0" * 64, body=BODY, kind="model", address=None, metadata={})
    with transaction(engine) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Artifact)) == 0


def test_bytes_changed_by_hand_are_not_handed_out(engine: Engine) -> None:
    put(engine)
    with transaction(engine) as session:
        session.execute(sa.text("UPDATE ml_model_artifacts SET body = set_byte(body, 17, 99)"))
    with transaction(engine) as session, pytest.raises(ArtifactCorrupt, match=SHA256):
        artifacts.get(session, SHA256)


def test_missing_artifact_is_named(engine: Engine) -> None:
    with transaction(engine) as session, pytest.raises(ArtifactCorrupt, match="not in ml_model_artifacts"):
        artifacts.get(session, SHA256)


def test_two_workers_putting_different_bytes_under_one_address_both_succeed(engine: Engine) -> None:
    race(*(partial(put, engine, b"fit %d" % (number % 2), address="fit-1") for number in range(4)))
    with transaction(engine) as session:
        assert artifacts.find_fit(session, "fit-1") is not None
        assert session.scalar(sa.select(sa.func.count()).select_from(Artifact)) == 2
