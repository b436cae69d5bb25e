"""The demo's drift: a model of July 2018, the market of September 2019, and what the system makes of it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from ml.errors import StopForOperator
from ml.keys import ModelKey
from runtime.settings import Settings
from worker.commands.demo_steps import POLL_SECONDS, follow, show_command, step
from worker.replay import move_replay, replay_position

if TYPE_CHECKING:
    from db.registry import ModelRow

__all__ = ["KEY", "OLD", "show_drift", "show_regret", "train_old_champion"]

KEY: Final = ModelKey("ETHUSDT", "1h", "consolidation")
OLD: Final = datetime(2018, 7, 1, 0, 30, tzinfo=UTC)
"""Nine months into the sample candles: to the system nothing after it has happened yet."""
ACTION_SECONDS: Final = 90.0
FORCE: Final = ("--force", "--reason", "demo")
NAMES: Final = (KEY.symbol, KEY.regime)


def train_old_champion(console: Console, app: Any, settings: Settings) -> bool:
    """Train the key as of ``OLD``, and see to it that it serves.

    Returns:
        False where the replay is past that day already: an earlier run has shown the drift.
    """
    console.rule("2  A model of July 2018", align="left")
    position = replay_position(settings.required_redis_url)()
    if position is not None and position > OLD:
        console.print("An earlier run has shown the drift: `alphaplus drift actions`, `alphaplus audit`.")
        return False
    console.print(f"The clock replays the candles, and stands at {OLD:%Y-%m-%d %H:%M} UTC.")
    arguments = ("call", "tasks.train", "--args", ",".join(NAMES))
    show_command(console, arguments, "celery")
    sent = app.send_task("tasks.train", args=list(NAMES), kwargs={"reason": "demo"})
    follow(console, app.resources.engine, {KEY: sent.id})
    _see_that_it_serves(console, app)
    return True


def show_drift(console: Console, app: Any, settings: Settings, now: datetime) -> None:
    """Let the months pass to ``now``; check, retrain, decide."""
    console.rule(f"3  {now:%B %Y}: the same regime, fourteen months later", align="left")
    move_replay(settings.required_redis_url, now)
    step(console, "", "drift", "check", *NAMES)
    job_id = _started_job(app)
    if job_id is None:
        console.print("No retraining was started: see the severity above.")
        return
    follow(console, app.resources.engine, {KEY: job_id})
    app.send_task("tasks.run_drift_actions")
    _wait_until_closed(app)
    step(console, "", "drift", "actions")
    _see_that_it_serves(console, app)


def show_regret(console: Console, app: Any) -> None:
    """After the weeks that followed: did it pay? Then back to the old model, and the audit trail."""
    console.rule("9  Did the retraining pay? The old model answered in shadow", align="left")
    from tasks.champions import announce_champion
    from tasks.outcomes import resolve_due
    from tasks.review import review_due
    from tasks.shadow import score_due

    with console.status("scoring what the shadow would have said, resolving its outcomes"):
        score_due(app.resources)
        resolve_due(app.resources)
        review_due(app.resources, lambda key: announce_champion(app, key))
    step(console, "", "drift", "regret")
    step(console, "", "rollback", *NAMES, "--reason", "demo")
    step(console, "", "audit", "--limit", "8")
    step(console, "", "audit", "verify")


def _see_that_it_serves(console: Console, app: Any) -> None:
    """Where the gates left the newest version out, promote it by hand, and say so."""
    newest = _newest(app)
    console.print(f"{KEY} version {newest.version}: {newest.state}. {_reasons(newest)}", soft_wrap=True)
    if newest.state != "champion":
        console.print(
            "[bold]The honest gates leave it out. To have something to show, it is promoted by hand:[/bold]"
        )
        step(console, "", "promote", *NAMES, "--version", str(newest.version), *FORCE)


def _reasons(row: ModelRow) -> str:
    reasons = row.decision.get("reasons") or ["every gate passed"]
    return "; ".join(reasons)


def _newest(app: Any) -> ModelRow:
    from db import registry

    with app.resources.transaction() as session:
        [newest] = registry.models(session, key=KEY, limit=1)
        return newest


def _started_job(app: Any) -> str | None:
    """The job of the key's newest action."""
    from db import drift_actions

    with app.resources.transaction() as session:
        found = drift_actions.open_action(session, KEY)
        return None if found is None else found.job_id


def _wait_until_closed(app: Any) -> None:
    from db import drift_actions

    deadline = time.monotonic() + ACTION_SECONDS
    while time.monotonic() < deadline:
        with app.resources.transaction() as session:
            if drift_actions.open_action(session, KEY) is None:
                return
        time.sleep(POLL_SECONDS)
    raise StopForOperator(f"the drift action of {KEY} is still open after {ACTION_SECONDS:g} s")
