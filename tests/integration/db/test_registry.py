from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Literal

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import audit, references, registry
from db.models import ModelRow
from db.session import transaction
from ml.errors import InputRejected, KeyRejected
from ml.keys import ModelKey
from tests.integration.db.rows import AS_OF, KEY, add_model, race, reference, save_drift

pytestmark = pytest.mark.database

OTHER = ModelKey("BTCUSDT", "1h", "sideways")


def add(engine: Engine, key: ModelKey = KEY, body: bytes | None = None) -> int:
    with transaction(engine) as session:
        model_id = add_model(session, key, body=body).id
        save_drift(session, model_id)
        return model_id


def promote(engine: Engine, model_id: int) -> None:
    with transaction(engine) as session:
        registry.promote(session, model_id, now=AS_OF, actor="test", why="better", details={"f1": 0.61})


def states(engine: Engine) -> dict[int, str]:
    with transaction(engine) as session:
        return {row.version: row.state for row in registry.models(session, key=KEY)}


def test_versions_count_up_within_each_key(engine: Engine) -> None:
    for key in (KEY, KEY, OTHER, KEY):
        add(engine, key)
    with transaction(engine) as session:
        assert [row.version for row in registry.models(session, key=KEY)] == [3, 2, 1]
        assert [row.version for row in registry.models(session, key=OTHER)] == [1]
        assert len(registry.models(session)) == 4
        assert len(registry.models(session, limit=2)) == 2
        assert registry.models(session, state="champion") == []


def test_versions_stay_distinct_when_eight_models_are_added_at_once(engine: Engine) -> None:
    race(*(partial(add, engine) for _ in range(8)))
    with transaction(engine) as session:
        assert sorted(row.version for row in registry.models(session, key=KEY)) == list(range(1, 9))


def test_second_run_finds_the_model_of_the_first_by_its_artifact(engine: Engine) -> None:
    model_id = add(engine, body=b"model")
    with transaction(engine) as session:
        sha256 = session.get_one(ModelRow, model_id).artifact_sha256
        found = registry.find_by_artifact(session, KEY, sha256)
        assert found is not None
        assert found.id == model_id
        assert registry.find_by_artifact(session, OTHER, sha256) is None
    with pytest.raises(sa.exc.IntegrityError, match="uq_ml_models_artifact"):
        add(engine, body=b"model")


def test_promotion_archives_the_champion_before(engine: Engine) -> None:
    first, second = add(engine), add(engine)
    promote(engine, first)
    promote(engine, second)
    assert states(engine) == {1: "archived", 2: "champion"}
    with transaction(engine) as session:
        champion = registry.champion(session, KEY)
        assert champion is not None
        assert (champion.id, champion.replaces_id, champion.promoted_at) == (second, first, AS_OF)
        assert session.get_one(ModelRow, first).archived_at == AS_OF


def test_each_promotion_leaves_one_audit_row_with_the_artifact(engine: Engine) -> None:
    first, second = add(engine), add(engine)
    for model_id in (first, second, second):
        promote(engine, model_id)  # the third changes nothing
    with transaction(engine) as session:
        rows = audit.recent(session, 10, subject=str(KEY))
        sha256 = session.get_one(ModelRow, second).artifact_sha256
    assert [(row.action, row.actor, row.why, row.details["version"]) for row in rows] == [
        ("promote", "test", "better", 2),
        ("promote", "test", "better", 1),
    ]
    assert rows[0].details["artifact_sha256"] == sha256
    assert (rows[0].details["replaces_version"], rows[0].details["f1"]) == (1, 0.61)


def test_archived_model_can_be_promoted_again(engine: Engine) -> None:
    first, second = add(engine), add(engine)
    for model_id in (first, second, first):
        promote(engine, model_id)
    assert states(engine) == {1: "champion", 2: "archived"}
    with transaction(engine) as session:
        assert session.get_one(ModelRow, first).archived_at is None


def test_champions_of_other_keys_are_left_alone(engine: Engine) -> None:
    one, other = add(engine, KEY), add(engine, OTHER)
    promote(engine, one)
    promote(engine, other)
    with transaction(engine) as session:
        assert {row.id for row in registry.models(session, state="champion")} == {one, other}


def test_eight_promotions_at_once_leave_one_champion_and_one_row_for_each(engine: Engine) -> None:
    ids = [add(engine) for _ in range(8)]
    race(*(partial(promote, engine, model_id) for model_id in ids))
    assert sorted(states(engine).values()) == ["archived"] * 7 + ["champion"]
    with transaction(engine) as session:
        assert audit.verify(session).rows == 8


def test_key_without_a_version_gives_its_champion_or_its_newest(engine: Engine) -> None:
    with transaction(engine) as session:
        assert registry.get(session, KEY) is None
    first, second = add(engine), add(engine)
    with transaction(engine) as session:
        assert [m and m.id for m in (registry.get(session, KEY), registry.get(session, KEY, 1))] == [
            second,
            first,
        ]
        assert registry.get(session, KEY, 3) is None
    promote(engine, first)
    with transaction(engine) as session:
        found = registry.get(session, KEY)
        assert found is not None
        assert found.id == first


def test_unknown_model_cannot_be_promoted(engine: Engine) -> None:
    with pytest.raises(LookupError, match="no model 17"):
        promote(engine, 17)


def test_index_allows_no_second_champion_even_by_hand(engine: Engine) -> None:
    first, second = add(engine), add(engine)
    promote(engine, first)
    with pytest.raises(sa.exc.IntegrityError, match="uq_ml_models_champion"), engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE ml_models SET state = 'champion', promoted_at = now() WHERE id = :id"),
            {"id": second},
        )


def roll_back(engine: Engine, to_version: int | None = None, why: str = "worse") -> int:
    with transaction(engine) as session:
        row = registry.rollback(
            session, KEY, to_version=to_version, now=AS_OF, actor="test", why=why, details={"e_value": 21.5}
        )
        return row.version


def move(engine: Engine, model_id: int, state: Literal["shadow", "rejected"]) -> None:
    with transaction(engine) as session:
        registry.move(session, model_id, state, now=AS_OF, actor="test", why="because", details={})


def actions(engine: Engine) -> list[tuple[str, int, str]]:
    with transaction(engine) as session:
        rows = audit.recent(session, 100, subject=str(KEY))
    return [(row.action, row.details["version"], row.details["state_before"]) for row in reversed(rows)]


def test_promotion_without_a_reference_is_refused_and_changes_nothing(engine: Engine) -> None:
    champion = add(engine)
    promote(engine, champion)
    with transaction(engine) as session:
        bare = add_model(session).id
    with pytest.raises(InputRejected, match=r"version: 2 .* drift reference"):
        promote(engine, bare)
    assert states(engine) == {1: "champion", 2: "candidate"}
    assert len(actions(engine)) == 1


def test_model_without_a_calibration_is_promoted_only_by_force_or_rollback_and_the_log_says_so(
    engine: Engine,
) -> None:
    promote(engine, add(engine))
    with transaction(engine) as session:
        bare = add_model(session).id
        references.save(session, bare, reference())
    with pytest.raises(InputRejected, match=r"version: 2 .* calibrated .*train the key again"):
        promote(engine, bare)
    assert states(engine) == {1: "champion", 2: "candidate"}
    by = {"now": AS_OF, "actor": "test", "why": "it must answer", "details": {}}
    with transaction(engine) as session:
        registry.promote(session, bare, action="force", **by)  # type: ignore[arg-type]
    promote(engine, add(engine))
    assert roll_back(engine) == 2
    with transaction(engine) as session:
        found = {(row.action, row.details["version"]): row.details for row in audit.recent(session, 10)}
    unchecked = {change for change, details in found.items() if details.get("drift_unchecked")}
    assert unchecked == {("force", 2), ("rollback", 2)}
    assert len(found) == 4


def test_rollback_returns_to_the_champion_before_with_one_audit_row(engine: Engine) -> None:
    for model_id in (add(engine), add(engine)):
        promote(engine, model_id)
    assert roll_back(engine) == 1
    assert states(engine) == {1: "champion", 2: "archived"}
    with transaction(engine) as session:
        row = audit.recent(session, 1)[0]
        champion = registry.champion(session, KEY)
    assert champion is not None
    assert (row.action, row.actor, row.why, row.subject) == ("rollback", "test", "worse", str(KEY))
    assert row.details == {
        "e_value": 21.5,
        "state_before": "archived",
        "replaces_version": 2,
        "replaces_id": champion.replaces_id,
        "model_id": champion.id,
        "version": 1,
        "artifact_sha256": champion.artifact_sha256,
        "booster_sha256": champion.booster_sha256,
    }


def test_second_rollback_goes_further_back_and_never_to_what_was_rolled_back_from(engine: Engine) -> None:
    for model_id in [add(engine) for _ in range(3)]:
        promote(engine, model_id)
    assert roll_back(engine) == 2
    assert roll_back(engine) == 1
    with pytest.raises(
        InputRejected,
        match=r"a key that had a champion before version 1 .*rolled back from before: 2, 3; name",
    ):
        roll_back(engine)
    assert states(engine) == {1: "champion", 2: "archived", 3: "archived"}
    assert roll_back(engine, to_version=3) == 3  # by name it may
    promote(engine, add(engine))
    assert roll_back(engine) == 3  # and once it was champion again, without


def test_rollback_without_a_target_prefers_what_the_champion_replaced(engine: Engine) -> None:
    ids = [add(engine) for _ in range(4)]
    for model_id in ids[:3]:
        promote(engine, model_id)
    roll_back(engine, to_version=1)
    promote(engine, ids[3])  # in the place of version 1; version 2 was archived before that
    assert roll_back(engine) == 1


def test_rollback_takes_the_newest_archived_where_the_one_replaced_is_gone(engine: Engine) -> None:
    for model_id in [add(engine) for _ in range(3)]:
        promote(engine, model_id)
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE ml_models SET replaces_id = NULL, archived_at = :at"), {"at": AS_OF}
        )
    assert roll_back(engine) == 2


def test_rollback_that_cannot_be_says_why(engine: Engine, subtests: pytest.Subtests) -> None:
    with pytest.raises(KeyRejected, match=r"key: 'BTCUSDT 1h trending' .* a key with a champion"):
        roll_back(engine)
    first, champion, rejected, _candidate = (add(engine) for _ in range(4))
    promote(engine, first)
    with pytest.raises(InputRejected, match=r"a key that had a champion before version 1$"):
        roll_back(engine)
    promote(engine, champion)
    move(engine, rejected, "rejected")
    for version, told in (
        (2, "it is the champion"),
        (3, "its state is rejected; `alphaplus promote --force` takes any"),
        (4, "its state is candidate"),
        (5, r"an archived version: 1 \(BTCUSDT 1h trending has no version 5\)"),
    ):
        with (
            subtests.test(version=version),
            pytest.raises(InputRejected, match=f"version: {version} .*{told}"),
        ):
            roll_back(engine, to_version=version)
    assert states(engine) == {1: "archived", 2: "champion", 3: "rejected", 4: "candidate"}
    assert [action for action, _, _ in actions(engine)] == ["promote", "promote", "reject"]


def test_states_move_as_they_may_each_with_one_audit_row(engine: Engine) -> None:
    shadow, doubtful, champion = (add(engine) for _ in range(3))
    for _ in range(2):  # the second run changes nothing
        move(engine, shadow, "shadow")
        move(engine, doubtful, "rejected")
    promote(engine, champion)
    with transaction(engine) as session:
        assert session.get_one(ModelRow, shadow).shadow_at == AS_OF
    for model_id, state, was in (
        (champion, "rejected", "champion"),
        (champion, "shadow", "champion"),
        (doubtful, "shadow", "rejected"),
    ):
        with pytest.raises(InputRejected, match=f"state: '{was}' .* candidate"):
            move(engine, model_id, state)  # type: ignore[arg-type]
    promote(engine, shadow)
    with pytest.raises(InputRejected, match="state: 'archived'"):
        move(engine, champion, "rejected")
    assert states(engine) == {1: "champion", 2: "rejected", 3: "archived"}
    assert actions(engine) == [
        ("shadow", 1, "candidate"),
        ("reject", 2, "candidate"),
        ("promote", 3, "candidate"),
        ("promote", 1, "shadow"),
    ]
    with pytest.raises(LookupError, match="no model 17"):
        move(engine, 17, "shadow")


def test_models_in_shadow_are_candidates_and_what_each_champion_replaced_for_its_span(engine: Engine) -> None:
    one, two, three, shadow = (add(engine) for _ in range(4))
    alone = add(engine, OTHER)
    for model_id in (one, two, three):
        promote(engine, model_id)
    move(engine, shadow, "shadow")
    move(engine, alone, "shadow")

    def pairs(after: timedelta) -> list[tuple[int, int | None]]:
        with transaction(engine) as session:
            found = registry.in_shadow(session, now=AS_OF + after, shadow_days=14)
            return [(row.id, None if current is None else current.id) for row, current in found]

    candidates = [(shadow, three), (alone, None)]
    assert pairs(timedelta(0)) == [(one, two), (two, three), *candidates]  # the first one's reign is over
    assert pairs(timedelta(days=3)) == [(two, three), *candidates]
    assert pairs(timedelta(days=14, microseconds=-1)) == [(two, three), *candidates]
    assert pairs(timedelta(days=17, microseconds=-1)) == [(two, three), *candidates]
    assert pairs(timedelta(days=17)) == candidates
    with transaction(engine) as session:
        registry.rollback(session, KEY, now=AS_OF, actor="test", why="", details={})
    # Each for what the other answered: the third one's reign is over, the second one's has begun again.
    candidates[0] = (shadow, two)
    assert pairs(timedelta(days=1)) == [(two, three), (three, two), *candidates]
    assert pairs(timedelta(days=3)) == [(three, two), *candidates]
    assert pairs(timedelta(days=14)) == candidates
    with transaction(engine) as session:
        registry.promote(session, three, now=AS_OF, actor="test", why="", details={})
    with transaction(engine) as session:
        assert [row.id for row in registry.champions(session)] == [three]


def test_trials_are_the_data_cuts_of_models_judged_after_a_moment(engine: Engine) -> None:
    def judged(as_of: datetime, at: datetime) -> int:
        model_id = add(engine)
        with engine.begin() as connection:
            update = sa.text("UPDATE ml_models SET as_of = :as_of WHERE id = :id")
            connection.execute(update, {"as_of": as_of, "id": model_id})
            connection.execute(
                sa.text(
                    "INSERT INTO ml_eval_history "
                    "(symbol, interval, regime, model_id, kind, as_of, rows, metrics) "
                    "VALUES ('BTCUSDT', '1h', 'trending', :id, 'challenger', :at, 1, '{}')"
                ),
                {"id": model_id, "at": at},
            )
        return model_id

    day = timedelta(days=1)
    # Judged hours after their data cut, as a job is; the server's own clock is years later.
    judged(AS_OF + day, AS_OF + day + timedelta(hours=3))
    judged(AS_OF, AS_OF + timedelta(hours=3))
    judged(AS_OF, AS_OF + timedelta(hours=5))
    with transaction(engine) as session:
        assert registry.trials(session, KEY, since=None) == [AS_OF, AS_OF, AS_OF + day]
        assert registry.trials(session, KEY, since=AS_OF + timedelta(hours=3)) == [AS_OF, AS_OF + day]
        assert registry.trials(session, KEY, since=AS_OF + day + timedelta(hours=3)) == []
        assert registry.trials(session, OTHER, since=None) == []
