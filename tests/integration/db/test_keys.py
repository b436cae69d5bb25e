from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy.engine import Engine

from db import audit, keys
from db.session import transaction
from ml.errors import KeyRejected
from ml.keys import MODEL_REGIMES, ModelKey
from tests.integration.db.rows import AS_OF, KEY, race

pytestmark = pytest.mark.database

LATER = AS_OF + timedelta(days=1)


def add(engine: Engine, symbol: str = "SOLUSDT", interval: str = "1h") -> list[str]:
    with transaction(engine) as session:
        return [str(key) for key in keys.add(session, symbol, interval, now=AS_OF, actor="cli:ada")]


def freeze(engine: Engine, key: ModelKey = KEY, why: str = "flapping") -> bool:
    with transaction(engine) as session:
        return keys.freeze(session, key, now=AS_OF, actor="tasks.review_champions", why=why)


def thaw(engine: Engine, key: ModelKey = KEY, why: str = "looked at") -> bool:
    with transaction(engine) as session:
        return keys.thaw(session, key, now=LATER, actor="cli:ada", why=why)


def trail(engine: Engine) -> list[tuple[str, str, str, str]]:
    with transaction(engine) as session:
        audit.verify(session)
        rows = reversed(audit.recent(session, 100))
        return [(row.action, row.subject, row.actor, row.why) for row in rows]


def test_added_series_has_five_keys_and_one_audit_row(engine: Engine) -> None:
    assert add(engine) == [f"SOLUSDT 1h {regime}" for regime in MODEL_REGIMES]
    assert add(engine, interval="4h") == [f"SOLUSDT 4h {regime}" for regime in MODEL_REGIMES]
    with transaction(engine) as session:
        assert keys.added(session) == [("SOLUSDT", "1h"), ("SOLUSDT", "4h")]
        assert {(row.added_at, row.added_by) for row in keys.rows(session)} == {(AS_OF, "cli:ada")}
    assert [(action, subject) for action, subject, _, _ in trail(engine)] == [
        ("key_add", "SOLUSDT 1h"),
        ("key_add", "SOLUSDT 4h"),
    ]


def test_adding_twice_changes_nothing(engine: Engine) -> None:
    add(engine)
    with transaction(engine) as session:
        again = keys.add(session, "SOLUSDT", "1h", now=LATER, actor="cli:bob")
        assert again == []
        assert {(row.added_at, row.added_by) for row in keys.rows(session)} == {(AS_OF, "cli:ada")}
    assert len(trail(engine)) == 1


def test_added_eight_times_at_once_it_is_added_once(engine: Engine) -> None:
    found = race(*(partial(add, engine) for _ in range(8)))
    assert sorted(map(len, found)) == [0] * 7 + [5]
    assert len(trail(engine)) == 1


@pytest.mark.parametrize(("symbol", "interval"), [("sol", "1h"), ("SOLUSDT", "2h")])
def test_nonsense_is_refused(engine: Engine, symbol: str, interval: str) -> None:
    with pytest.raises(KeyRejected):
        add(engine, symbol, interval)
    with transaction(engine) as session:
        assert keys.rows(session) == []


def test_key_is_frozen_until_it_is_thawed_and_the_first_reason_stays(engine: Engine) -> None:
    assert freeze(engine)
    assert not freeze(engine, why="again")
    with transaction(engine) as session:
        row = keys.frozen(session, KEY)
        assert row is not None
        assert (row.frozen_at, row.frozen_by, row.frozen_why) == (
            AS_OF,
            "tasks.review_champions",
            "flapping",
        )
        assert keys.frozen(session, KEY.fallback) is None
        assert keys.added(session) == []
    assert thaw(engine)
    assert not thaw(engine)
    with transaction(engine) as session:
        assert keys.frozen(session, KEY) is None
        details = audit.recent(session, 1)[0].details
    assert details == {
        "frozen_at": "2019-10-17T00:00:00+00:00",
        "frozen_by": "tasks.review_champions",
        "frozen_why": "flapping",
    }
    assert freeze(engine, why="once more")
    assert trail(engine) == [
        ("freeze", str(KEY), "tasks.review_champions", "flapping"),
        ("thaw", str(KEY), "cli:ada", "looked at"),
        ("freeze", str(KEY), "tasks.review_champions", "once more"),
    ]


def test_key_that_was_frozen_first_stays_so_when_its_series_is_added(engine: Engine) -> None:
    freeze(engine, ModelKey("SOLUSDT", "1h", "trending"))
    assert len(add(engine)) == 5
    thaw(engine, ModelKey("SOLUSDT", "1h", "all"))
    with transaction(engine) as session:
        assert [row.regime for row in keys.rows(session) if row.frozen_at] == ["trending"]
        assert len([row for row in keys.rows(session) if row.added_at]) == 5


def test_frozen_eight_times_at_once_it_is_frozen_once(engine: Engine) -> None:
    assert sorted(race(*(partial(freeze, engine) for _ in range(8)))) == [False] * 7 + [True]
    assert len(trail(engine)) == 1
