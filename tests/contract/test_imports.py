"""Code depends one way; the schedule is data."""

from __future__ import annotations

import ast

import pytest

from tests.processes import ROOT, run_command, script

pytestmark = pytest.mark.servers

SCHEDULE = ROOT / "beat_schedule.py"
SCHEDULE_MAY_IMPORT = {"__future__", "celery.schedules", "datetime", "typing", "runtime.queues"}
DATA = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)


def test_import_linter_contracts_are_kept(base_env: dict[str, str]) -> None:
    done = run_command([script("lint-imports"), "--no-cache"], base_env)
    assert done.exit_code == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_the_schedule_imports_only_what_data_need() -> None:
    imported = {
        name
        for node in ast.walk(ast.parse(SCHEDULE.read_text(encoding="utf-8")))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert imported <= SCHEDULE_MAY_IMPORT


def test_the_schedule_holds_assignments_and_nothing_that_runs() -> None:
    module = ast.parse(SCHEDULE.read_text(encoding="utf-8"))
    docstring, *statements = module.body
    assert isinstance(docstring, ast.Expr)
    others = [node for node in statements if not isinstance(node, DATA)]
    # A bare string below a constant documents it.
    assert [node for node in others if not (isinstance(node, ast.Expr) and _is_text(node.value))] == []
    called = {ast.unparse(node.func) for node in ast.walk(module) if isinstance(node, ast.Call)}
    assert called <= {"crontab", "schedule", "timedelta"}


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
