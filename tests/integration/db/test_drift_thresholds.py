"""Limits of drift scores: the most specific row that holds, and every one that ever held."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import audit, thresholds
from db.session import transaction
from db.thresholds import ANY, DriftThreshold, Scope
from ml.alarms import SeverityLimits
from ml.errors import ConfigRejected, KeyRejected
from ml.keys import ModelKey
from tests.integration.db.rows import KEY, race

pytestmark = pytest.mark.drift

NOW = datetime(2030, 1, 1, tzinfo=UTC)
"""After the row that the migration writes."""
DAY = timedelta(days=1)
SECRET = b"sixteen characters"
DEFAULT = SeverityLimits()


def limits(high: float) -> SeverityLimits:
    return SeverityLimits(ks=0.5, psi=1.5, low=0.01, medium=0.02, high=high, critical=0.9)


def put(
    engine: Engine, scope: Scope, chosen: SeverityLimits | dict[str, float] | None, now: datetime = NOW
) -> DriftThreshold | None:
    with transaction(engine) as session:
        return thresholds.set_threshold(
            session, scope, chosen, now=now, actor="cli:ana", why="a test", hmac_key=SECRET
        )


def held(engine: Engine, now: datetime = NOW, key: ModelKey = KEY) -> SeverityLimits:
    with transaction(engine) as session:
        return thresholds.thresholds(session, key, now)


def test_without_a_row_the_missions_limits_hold(engine: Engine) -> None:
    before_the_migration = datetime(2019, 1, 1, tzinfo=UTC)
    assert held(engine, before_the_migration) == held(engine) == DEFAULT
    assert asdict(DEFAULT) == {
        "ks": 0.15, "psi": 0.25, "low": 0.1, "medium": 0.15, "high": 0.2, "critical": 0.3
    }  # fmt: skip


def test_the_most_specific_row_holds_symbol_before_interval_before_regime(engine: Engine) -> None:
    scopes = [
        Scope(),
        Scope(regime="trending"),
        Scope(interval="1h"),
        Scope(interval="1h", regime="trending"),
        Scope("BTCUSDT"),
        Scope("BTCUSDT", regime="trending"),
        Scope("BTCUSDT", "1h"),
        Scope.of(KEY),
    ]
    others = [Scope("ETHUSDT", "1h", "trending"), Scope("BTCUSDT", "1h", "volatile"), Scope(interval="4h")]
    for scope in others:
        put(engine, scope, limits(0.8))
    found = []
    for number, scope in enumerate(scopes):
        put(engine, scope, limits(0.1 + number / 100))
        found.append(held(engine))
    assert found == [limits(0.1 + number / 100) for number in range(len(scopes))]
    # And in whatever order they were set.
    for scope in scopes[:-1]:
        put(engine, scope, limits(0.7))
    assert held(engine) == found[-1]


def test_a_new_row_ends_the_one_before_and_each_holds_for_its_own_time(engine: Engine) -> None:
    first = put(engine, Scope.of(KEY), limits(0.3))
    second = put(engine, Scope.of(KEY), limits(0.4), NOW + DAY)
    ended = put(engine, Scope.of(KEY), None, NOW + 2 * DAY)

    assert first is not None
    assert second is not None
    assert ended is None
    moments = [NOW - DAY, NOW, NOW + DAY - timedelta(microseconds=1), NOW + DAY, NOW + 2 * DAY]
    assert [held(engine, moment).high for moment in moments] == [0.2, 0.3, 0.3, 0.4, 0.2]
    with transaction(engine) as session:
        rows = [row for row in thresholds.history(session) if row.symbol != ANY]
        assert [(row.high, row.valid_from, row.valid_until) for row in rows] == [
            (0.4, NOW + DAY, NOW + 2 * DAY),
            (0.3, NOW, NOW + DAY),
        ]
        assert [(row.changed_by, row.why) for row in rows] == [("cli:ana", "a test")] * 2
        assert [row.symbol for row in thresholds.history(session, current=True)] == [ANY]


def test_every_change_is_in_the_audit_log_signed_with_both_limits(engine: Engine) -> None:
    put(engine, Scope("BTCUSDT"), limits(0.3))
    put(engine, Scope("BTCUSDT"), None)
    with transaction(engine) as session:
        removed, added = audit.recent(session, 10)
        assert [(row.action, row.actor, row.subject, row.why) for row in (added, removed)] == [
            ("threshold", "cli:ana", "BTCUSDT * *", "a test")
        ] * 2
        assert added.details == {"before": None, "after": asdict(limits(0.3))}
        assert removed.details == {"before": asdict(limits(0.3)), "after": None}
        assert audit.verify(session, SECRET).signed == 2


def test_what_holds_already_is_not_set_again(engine: Engine) -> None:
    first = put(engine, Scope("BTCUSDT"), limits(0.3))
    again = put(engine, Scope("BTCUSDT"), limits(0.3), NOW + DAY)
    nothing = put(engine, Scope("ETHUSDT"), None)
    assert first is not None
    assert again is not None
    assert (again.id, again.valid_from, nothing) == (first.id, NOW, None)
    with transaction(engine) as session:
        assert len(audit.recent(session, 10)) == 1


def test_in_a_replay_limits_hold_from_the_clocks_now_though_the_migrations_row_is_of_today(
    engine: Engine,
) -> None:
    replayed = datetime(2019, 6, 1, tzinfo=UTC)
    put(engine, Scope(), limits(0.3), replayed)
    assert held(engine, replayed).high == 0.3
    assert held(engine, replayed - DAY) == DEFAULT
    put(engine, Scope(), DEFAULT, replayed + DAY)
    assert held(engine, replayed + DAY) == DEFAULT
    put(engine, Scope.of(KEY), limits(0.4), NOW)
    put(engine, Scope.of(KEY), limits(0.4), replayed + DAY)  # equal, but of a row that does not hold yet
    assert held(engine, replayed + DAY).high == 0.4


def test_of_two_who_set_limits_at_once_both_leave_a_row_and_one_holds(engine: Engine) -> None:
    race(*(lambda high=high: put(engine, Scope("BTCUSDT"), limits(high)) for high in (0.3, 0.4)))
    with transaction(engine) as session:
        rows = session.scalars(sa.select(DriftThreshold).where(DriftThreshold.symbol == "BTCUSDT")).all()
        assert sorted(row.high for row in rows) == [0.3, 0.4]
        assert sum(row.valid_until is None for row in rows) == 1


def test_changes_of_two_at_once_are_merged_whoever_read_the_clock_first(engine: Engine) -> None:
    moment = iter(range(40))
    for scope in (Scope.of(KEY), Scope("ETHUSDT"), Scope()):
        for name, value in (("high", 0.25), ("ks", 0.5)):
            put(engine, scope, {name: value}, NOW - timedelta(seconds=next(moment)))
        with transaction(engine) as session:
            assert thresholds.in_force(session, scope, NOW) == replace(DEFAULT, high=0.25, ks=0.5)
    changes = [{"low": 0.01}, {"medium": 0.16}, {"critical": 0.9}, {"psi": 2.0}]
    race(*(lambda change=change: put(engine, Scope.of(KEY), change) for change in changes))
    assert held(engine) == SeverityLimits(ks=0.5, psi=2.0, low=0.01, medium=0.16, high=0.25, critical=0.9)


def test_change_is_of_what_holds_for_the_scope_and_is_checked_with_it(engine: Engine) -> None:
    put(engine, Scope("BTCUSDT"), limits(0.3))
    row = put(engine, Scope.of(KEY), {"high": 0.4})
    assert row is not None
    assert thresholds.limits_of(row) == limits(0.4)
    with pytest.raises(ConfigRejected, match=r"critical: 0\.9 .* over high \(0\.95\)"):
        put(engine, Scope.of(KEY), {"high": 0.95})
    assert held(engine) == limits(0.4)


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("ks", 0.0, "over 0 and at most 1"),
        ("ks", 1.1, "over 0 and at most 1"),
        ("psi", 0.0, "over 0, and finite"),
        ("psi", float("inf"), "over 0, and finite"),
        ("low", 0.0, "over 0 (0), and finite"),
        ("medium", 0.1, "over low (0.1), and finite"),
        ("high", 0.15, "over medium (0.15), and finite"),
        ("critical", 0.2, "over high (0.2), and finite"),
        ("critical", float("inf"), "over high (0.2), and finite"),
        ("critical", float("nan"), "over high (0.2), and finite"),
    ],
)
def test_limits_out_of_range_or_order_are_refused_with_the_one_that_is_wrong(
    engine: Engine, field: str, value: float, limit: str
) -> None:
    with pytest.raises(ConfigRejected) as refused:
        put(engine, Scope(), replace(DEFAULT, **{field: value}))
    assert (refused.value.field, refused.value.limit) == (field, limit)


@pytest.mark.parametrize("parts", [("btc", ANY, ANY), (ANY, "2h", ANY), (ANY, ANY, "bull")])
def test_a_scope_is_of_the_vocabulary_of_keys(parts: tuple[str, str, str]) -> None:
    with pytest.raises(KeyRejected):
        Scope(*parts)
