"""A champion made bad on purpose, four weeks of real candles, real workers: it is taken back by itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy.engine import Engine

from tests.integration.shadow_weeks import END, HOUR, INVERTED, START, Weeks
from tests.newest_signals import every_signal
from tests.predicting import SIGNAL, Caller, wait_until
from tests.processes import CommandResult, RunningProcess

pytestmark = pytest.mark.drift


@pytest.mark.timeout(300)
def test_a_bad_champion_is_found_and_the_workers_answer_with_the_one_before(
    worker: RunningProcess,
    trained_env: dict[str, str],
    worker_process: Callable[..., RunningProcess],
    caller: Caller,
    trained_engine: Engine,
    trained_database_url: str,
    ask: Callable[..., list[dict[str, Any]]],
    resolve: Callable[[datetime], None],
    cli: Callable[..., CommandResult],
) -> None:
    """The inference worker looks at champions once an hour: what it learns sooner, it was told."""
    weeks = Weeks(trained_database_url)
    first = weeks.champion()
    bad = weeks.variant(INVERTED)
    weeks.promote(bad.id, START)
    for moment, found in every_signal(trained_engine, 28 * 24 - 2):
        ask(found, moment)
    given = [row for row in weeks.predictions() if row.model_id == bad.id and row.as_of >= START]
    assert len(given) > 200
    assert caller.answer(SIGNAL)["model_version"] == bad.version

    late = trained_env | {"ALPHAPLUS_REPLAY_START": (END - HOUR).isoformat()}
    drift = worker_process("drift", "--concurrency=1", env=late)
    caller.app.send_task("tasks.score_shadows", queue="drift")
    wait_until(lambda: len(weeks.predictions("shadow")) >= len(given), "the answers in shadow", 60)
    resolve(END)
    caller.app.send_task("tasks.review_champions", queue="drift")

    wait_until(lambda: caller.answer(SIGNAL)["model_version"] == first.version, "the old one's answer", 60)
    assert weeks.champion().id == first.id
    entry = weeks.audit()[-1]
    assert (entry.action, entry.actor) == ("rollback", "tasks.review_champions")
    assert "version 2 is worse than version 1" in entry.why
    assert "champion_rolled_back" in drift.log.read_text()
    listed = cli("predictions", "--limit", "1000", "--json")
    assert listed.exit_code == 0, listed.stderr
    assert "shadow" not in listed.stdout
