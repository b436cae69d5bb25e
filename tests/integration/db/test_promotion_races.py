"""Two changes of a champion at once, and a process killed anywhere in one: always exactly one champion."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db import audit, references, registry
from db.models import ModelRow
from db.session import transaction
from ml.errors import InputRejected
from tests.integration.db.rows import AS_OF, KEY, add_model, race, save_drift
from tests.processes import ROOT

pytestmark = pytest.mark.drift

ROUNDS = 20


def add(engine: Engine) -> int:
    with transaction(engine) as session:
        model_id = add_model(session).id
        save_drift(session, model_id)
        return model_id


def promote(engine: Engine, model_id: int) -> int:
    with transaction(engine) as session:
        row = registry.promote(session, model_id, now=AS_OF, actor="test", why="better", details={})
        return row.version


def roll_back(engine: Engine, to_version: int | None = None) -> int | None:
    """The version it went back to; None where another had gone there before."""
    try:
        with transaction(engine) as session:
            row = registry.rollback(
                session, KEY, to_version=to_version, now=AS_OF, actor="test", why="worse", details={}
            )
            return row.version
    except InputRejected as error:
        assert error.hint == "it is the champion"
        return None


def check(session: Session) -> tuple[int, list[tuple[str, int]]]:
    """The one champion's version, and the changes as the log has them; everything else must fit them."""
    audit.verify(session)
    assert audit.contradictions(session) == []
    (champion,) = registry.models(session, key=KEY, state="champion")
    assert references.load(session, champion.id) is not None
    counted = sa.text("SELECT count(*) FROM ml_reference_features WHERE model_id = :id")
    assert session.scalar(counted, {"id": champion.id}) == 2  # one reference, of two features
    rows = list(reversed(audit.recent(session, 1000, subject=str(KEY))))
    # Each row takes over from the row before: no change without a row, no row without a change.
    replaced = [None, *(row.details["version"] for row in rows)]
    assert [row.details["replaces_version"] for row in rows] == replaced[:-1]
    assert rows[-1].details["version"] == champion.version
    return champion.version, [(row.action, row.details["version"]) for row in rows]


def states(session: Session) -> dict[int, str]:
    return {row.version: row.state for row in registry.models(session, key=KEY)}


def test_two_promotions_at_once_leave_one_champion_and_a_row_for_each(engine: Engine) -> None:
    promote(engine, add(engine))
    for done in range(ROUNDS):
        one, other = add(engine), add(engine)
        versions = race(partial(promote, engine, one), partial(promote, engine, other))
        with transaction(engine) as session:
            champion, changes = check(session)
            assert champion in versions
            assert sorted(changes[1 + 2 * done :]) == [("promote", version) for version in versions]
            assert sorted(states(session).values()) == ["archived"] * (2 + 2 * done) + ["champion"]


def test_a_promotion_of_one_model_by_two_at_once_is_one_change(engine: Engine) -> None:
    for done in range(ROUNDS):
        model_id = add(engine)
        race(partial(promote, engine, model_id), partial(promote, engine, model_id))
        with transaction(engine) as session:
            assert check(session) == (done + 1, [("promote", version + 1) for version in range(done + 1)])


def test_a_promotion_racing_a_rollback_leaves_one_champion_and_a_row_for_each(engine: Engine) -> None:
    """Whichever comes first: the promotion's model is champion last, or the rollback goes back from it."""
    promote(engine, add(engine))
    for _ in range(ROUNDS):
        promote(engine, add(engine))
        with transaction(engine) as session:
            current, before = check(session)
        challenger = add(engine)
        promoted, returned = race(
            partial(promote, engine, challenger), partial(roll_back, engine)
        )  # fmt: skip
        with transaction(engine) as session:
            champion, changes = check(session)
            assert len(changes) == len(before) + 2
            if changes[-1][0] == "rollback":
                assert champion == returned == current  # back to what the promotion had replaced
            else:
                assert champion == promoted


def test_two_rollbacks_to_one_version_at_once_are_one_change(engine: Engine) -> None:
    for model_id in (add(engine), add(engine)):
        promote(engine, model_id)
    for _ in range(ROUNDS):
        found = race(partial(roll_back, engine, 1), partial(roll_back, engine, 1))
        assert sorted(found, key=str) == [1, None]
        with transaction(engine) as session:
            assert check(session)[0] == 1
            second = registry.get(session, KEY, 2)
            assert second is not None
        promote(engine, second.id)


CHANGE_AND_DIE = """
import os, signal, sys
import sqlalchemy as sa
from db import registry
from db.session import create_engine, transaction
from tests.integration.db.rows import AS_OF, KEY

def change(url, kind, model_id, die_at):
    engine = create_engine(url, application_name="dies", pooled=False)
    seen = 0

    def count(*_):
        nonlocal seen
        seen += 1
        if seen == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def commit(connection):  # before and after it
        count()
        connection.connection.commit()
        count()

    sa.event.listen(engine, "before_cursor_execute", count)
    sa.event.listen(engine, "commit", commit)
    by = {"now": AS_OF, "actor": "dies", "why": "test", "details": {}}
    with transaction(engine) as session:
        if kind == "promote":
            registry.promote(session, model_id, **by)
        else:
            registry.rollback(session, KEY, **by)

for line in sys.stdin:  # a child for each, made by forking: imports take longer than it lives
    kind, model_id, die_at = line.split()
    child = os.fork()
    if child == 0:
        change(sys.argv[1], kind, int(model_id), int(die_at))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Change = Callable[[str, int, int], int]


@contextmanager
def mortal_changes(database_url: str) -> Iterator[Change]:
    """``change(kind, model_id, n)``: in a process that kills itself before its n-th statement; exit code."""
    command = [sys.executable, "-c", CHANGE_AND_DIE, database_url]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as children:
        asked, answered = children.stdin, children.stdout
        assert asked
        assert answered

        def change(kind: str, model_id: int, die_at: int) -> int:
            asked.write(f"{kind} {model_id} {die_at}\n")
            return int(answered.readline())

        yield change
        asked.close()


@pytest.mark.parametrize("kind", ["promote", "rollback"])
def test_change_killed_between_any_two_statements_is_whole_or_not_at_all(
    engine: Engine, database_url: str, kind: str
) -> None:
    """Killed before the n-th statement for every n, before COMMIT, and after it; then called again."""
    first, champion = add(engine), add(engine)
    promote(engine, first)
    promote(engine, champion)
    model_id = add(engine)
    before = [("promote", 1), ("promote", 2)]
    changed = [*before, ("promote", 3) if kind == "promote" else ("rollback", 1)]
    unchanged_states = {1: "archived", 2: "champion", 3: "candidate"}
    whole: list[bool] = []
    with mortal_changes(database_url) as change:
        while (code := change(kind, model_id, len(whole) + 1)) == -signal.SIGKILL:
            with transaction(engine) as session:
                _, changes = check(session)
                whole.append(changes != before)
                assert changes == (changed if whole[-1] else before)
                if not whole[-1]:
                    assert states(session) == unchanged_states
            if whole[-1]:
                break
        # Killed after its COMMIT: who calls again, not knowing, changes nothing more or is told so.
        assert code == -signal.SIGKILL
        assert whole == [False] * (len(whole) - 1) + [True]
        # Locks, reads, reference, archive, promote, audit row, and the moment before the COMMIT.
        assert len(whole) >= 11
        if kind == "promote":
            assert change(kind, model_id, 0) == 0
            with transaction(engine) as session:
                assert check(session) == (3, changed)
        else:
            assert roll_back(engine, 1) is None
            with transaction(engine) as session:
                assert check(session) == (1, changed)


@pytest.mark.parametrize("kind", ["promote", "rollback"])
def test_change_succeeds_after_one_that_was_killed(engine: Engine, database_url: str, kind: str) -> None:
    for model_id in (add(engine), add(engine)):
        promote(engine, model_id)
    challenger = add(engine)
    with mortal_changes(database_url) as change:
        for statement in (5, 9):
            assert change(kind, challenger, statement) == -signal.SIGKILL
        assert change(kind, challenger, 0) == 0
    with transaction(engine) as session:
        version, changes = check(session)
        assert version == (3 if kind == "promote" else 1)
        assert len(changes) == 3
        assert session.scalar(sa.select(sa.func.count()).where(ModelRow.state == "champion")) == 1
