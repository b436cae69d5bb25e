from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import audit, registry
from db.models import ModelRow
from db.session import transaction
from ml.keys import ModelKey
from tests.integration.db.rows import AS_OF, KEY, add_model, race
from tests.processes import ROOT

pytestmark = pytest.mark.database

OTHER = ModelKey("BTCUSDT", "1h", "sideways")


def add(engine: Engine, key: ModelKey = KEY, body: bytes | None = None) -> int:
    with transaction(engine) as session:
        return add_model(session, key, body=body).id


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


PROMOTE_AND_DIE = """
import os, signal, sys
import sqlalchemy as sa
from db import references, registry
from db.session import create_engine, transaction
from tests.integration.db.rows import AS_OF, reference

def promote(url, model_id, die_before):
    engine = create_engine(url, application_name="dies")
    seen = 0

    def count(*_):
        nonlocal seen
        seen += 1
        if seen == die_before:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(engine, "before_cursor_execute", count)
    with transaction(engine) as session:
        registry.promote(session, model_id, now=AS_OF, actor="dies", why="test", details={})
        references.save(session, model_id, reference())
        count()  # the moment between the last statement and the commit

for line in sys.stdin:  # a child for each number given, made by forking: imports take longer than it lives
    child = os.fork()
    if child == 0:
        promote(sys.argv[1], int(sys.argv[2]), int(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_promotion_killed_before_any_of_its_statements_leaves_the_champion_before(
    engine: Engine, database_url: str
) -> None:
    champion, challenger = add(engine), add(engine)
    promote(engine, champion)
    command = [sys.executable, "-c", PROMOTE_AND_DIE, database_url, str(challenger)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as children:
        asked, answered = children.stdin, children.stdout
        assert asked
        assert answered

        def exit_code(die_before: int) -> int:
            asked.write(f"{die_before}\n")
            return int(answered.readline())

        killed = 0
        while (code := exit_code(killed + 1)) == -signal.SIGKILL:
            killed += 1
            assert states(engine) == {1: "champion", 2: "candidate"}
            with transaction(engine) as session:
                assert audit.verify(session).rows == 1
                assert session.scalar(sa.text("SELECT count(*) FROM ml_reference_features")) == 0
        asked.close()
    assert code == 0
    # Locks, reads, archive, promote, audit row, reference, and the moment before the commit.
    assert killed >= 9
    assert states(engine) == {1: "archived", 2: "champion"}
    with transaction(engine) as session:
        assert audit.verify(session).rows == 2
