"""What ships in beat_schedule.py: the mission's crons, known tasks and queues, data only."""

from __future__ import annotations

import ast
import importlib

import pytest

import beat_schedule
from beat_schedule import BEAT_SCHEDULE
from ml.keys import ModelKey
from runtime.queues import QUEUES, ROUTES
from tests.processes import ROOT
from worker.celery import TASK_MODULES
from worker.schedule import cron_text, entry_name

pytestmark = pytest.mark.scheduler

TRAININGS = {
    ("BTCUSDT", "trending"): "0 3 * * *",
    ("BTCUSDT", "sideways"): "0 4 * * *",
    ("BTCUSDT", "volatile"): "0 5 * * *",
    ("BTCUSDT", "consolidation"): "0 6 * * *",
    ("ETHUSDT", "trending"): "0 7 * * *",
    ("ETHUSDT", "sideways"): "0 8 * * *",
    ("BTCUSDT", "all"): "0 1 * * 0",
    ("ETHUSDT", "all"): "0 2 * * 0",
}


def test_trainings_are_the_missions_six_and_a_weekly_one_of_each_symbol() -> None:
    trainings = {
        tuple(entry["args"]): cron_text(entry["schedule"])
        for entry in BEAT_SCHEDULE.values()
        if entry["task"] == "tasks.train"
    }
    assert trainings == TRAININGS


def test_training_entries_carry_the_name_that_the_command_line_gives_their_key() -> None:
    for name, entry in BEAT_SCHEDULE.items():
        if entry["task"] == "tasks.train":
            symbol, regime = entry["args"]
            assert name == entry_name(ModelKey(symbol, "1h", regime).symbol, regime)
            assert entry["kwargs"] == {"reason": "schedule"}


def test_every_entry_goes_to_its_queue_and_only_a_training_never_expires() -> None:
    for name, entry in BEAT_SCHEDULE.items():
        assert entry["options"]["queue"] == ROUTES[entry["task"]]["queue"], name
        assert entry["options"]["queue"] in QUEUES, name
        # A job's row waits for its worker; a stale sweep or sync is worth nothing.
        assert ("expires" in entry["options"]) is (entry["task"] != "tasks.train"), name


def test_candles_are_looked_for_every_minute_and_a_late_message_is_the_next_ones() -> None:
    # At 15 minutes, or one, an hourly look would leave most candles to no detector.
    entry = BEAT_SCHEDULE["sync-candles"]
    assert (cron_text(entry["schedule"]), entry["options"]["expires"]) == ("* * * * *", 60)


def test_every_entrys_task_exists() -> None:
    from celery import Celery

    # In a process of its own the application would need servers; the tasks themselves need none.
    for module in TASK_MODULES:
        importlib.import_module(module)
    app = Celery("alphaplus", set_as_current=False)
    app.finalize()
    assert {entry["task"] for entry in BEAT_SCHEDULE.values()} <= set(app.tasks)


def test_module_is_data_only() -> None:
    tree = ast.parse((ROOT / "beat_schedule.py").read_text())
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign, ast.AnnAssign}
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "typing", "celery.schedules", "runtime.queues"}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called == {"crontab", "schedule"}
    assert set(beat_schedule.__all__) <= vars(beat_schedule).keys()
