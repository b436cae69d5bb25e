"""Champions and freezes that the audit log does not know are found."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from sqlalchemy.engine import Engine

from db import audit, keys, registry
from db.session import transaction
from ml.keys import ModelKey
from tests.integration.db.rows import add_model, save_drift
from tests.integration.db.tampering import tampered

pytestmark = pytest.mark.database

NOW = datetime(2019, 10, 17, 3, 4, 5, 678901, tzinfo=UTC)
KEY_NAME = "BTCUSDT 1h trending"


def verify(engine: Engine) -> audit.Verified:
    with transaction(engine) as session:
        return audit.verify(session)


def test_champion_that_the_log_does_not_know_is_found(engine: Engine) -> None:
    with transaction(engine) as session:
        first, second = (add_model(session) for _ in range(2))
        for row in (first, second):
            save_drift(session, row.id)
            registry.promote(session, row.id, now=NOW, actor="test", why="better", details={})
        assert audit.contradictions(session) == []
    with tampered(engine, "DELETE FROM ml_audit_log WHERE id = 2") as session:
        assert audit.verify(session).rows == 1  # the end was cut off: the chain holds
        assert audit.contradictions(session) == [
            f"{KEY_NAME}: the registry has version 2 as champion, the audit log says version 1 (row 1)"
        ]
    with tampered(engine, "UPDATE ml_models SET state = 'archived'") as session:
        assert audit.contradictions(session) == [
            f"{KEY_NAME}: the registry has no champion, the audit log says version 2 (row 2)"
        ]
    with tampered(engine, "TRUNCATE ml_audit_log") as session:
        assert audit.contradictions(session) == [
            f"{KEY_NAME}: the registry has version 2 as champion, the audit log knows of none"
        ]


def test_champion_whose_bytes_were_changed_in_the_registry_is_found(
    engine: Engine, subtests: pytest.Subtests
) -> None:
    with transaction(engine) as session:
        rows = [add_model(session) for _ in range(2)]
        save_drift(session, rows[0].id)
        registry.promote(session, rows[0].id, now=NOW, actor="test", why="better", details={})
        names = [{"artifact": row.artifact_sha256, "booster": row.booster_sha256} for row in rows]
    for part, sha256 in names[1].items():
        with (
            subtests.test(part),
            tampered(
                engine,
                "DELETE FROM ml_models WHERE state = 'candidate'",
                f"UPDATE ml_models SET {part}_sha256 = '{sha256}' WHERE state = 'champion'",
            ) as session,
        ):
            assert audit.verify(session).rows == 1
            assert audit.contradictions(session) == [
                f"{KEY_NAME}: version 1 has the {part}_sha256 {sha256} in the registry, the audit log says "
                f"{names[0][part]} (row 1)"
            ]


def test_key_frozen_or_thawed_by_hand_is_found(engine: Engine) -> None:
    of = ModelKey("BTCUSDT", "1h", "trending")

    def say(change: Callable[..., bool]) -> None:
        with transaction(engine) as session:
            assert change(session, of, now=NOW, actor="cli:ana", why="a test")
            assert audit.contradictions(session) == []

    def told(statement: str) -> str:
        with tampered(engine, statement) as session:
            (sentence,) = audit.contradictions(session)
            return sentence

    by_hand = "UPDATE ml_keys SET frozen_at = {}, frozen_by = 'x', frozen_why = 'y'"
    off = "UPDATE ml_keys SET frozen_at = NULL, frozen_by = NULL, frozen_why = NULL"
    said, moment = "the audit log says it was", "2019-10-17 03:04:05 UTC"
    say(keys.freeze)
    assert told(off) == f"{KEY_NAME}: the key is not frozen, {said} frozen at {moment} (row 1)"
    assert told(by_hand.format("'2019-01-01Z'")) == (
        f"{KEY_NAME}: the key is frozen since 2019-01-01 00:00:00 UTC, {said} frozen at {moment} (row 1)"
    )
    assert told("TRUNCATE ml_audit_log").endswith(
        f"is frozen since {moment}, the audit log knows of no freeze"
    )
    say(keys.thaw)
    since = by_hand.format("'2019-10-17 03:04:05.678901Z'")
    assert told(since) == f"{KEY_NAME}: the key is frozen since {moment}, {said} thawed at {moment} (row 2)"
