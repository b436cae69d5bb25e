"""Logs: ours and other libraries' in one form."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from runtime.logging import configure_logging

pytestmark = pytest.mark.servers


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_an_event_is_a_json_line_with_its_fields_and_context() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    with structlog.contextvars.bound_contextvars(job_id="j1"):
        structlog.get_logger("tasks.train").info("fit_finished", rows=3)
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "fit_finished",
        "rows": 3,
        "job_id": "j1",
        "level": "info",
        "logger": "tasks.train",
    }


def test_another_librarys_record_has_the_same_form() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    with structlog.contextvars.bound_contextvars(job_id="j1"):
        logging.getLogger("celery.worker").warning("lost %s", "broker", extra={"attempt": 2})
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "lost broker", "attempt": 2, "job_id": "j1", "level": "warning", "logger": "celery.worker",
    }  # fmt: skip


def test_an_exception_is_one_line_with_its_traceback() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    try:
        int("seven")
    except ValueError:
        structlog.get_logger("a").exception("failed")
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert line["event"] == "failed"
    assert line["exception"].endswith("ValueError: invalid literal for int() with base 10: 'seven'")


def test_below_the_level_nothing_is_written() -> None:
    stream = io.StringIO()
    configure_logging("json", "WARNING", stream)
    structlog.get_logger("a").info("quiet")
    logging.getLogger("b").info("quiet")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("terminal", "is_json"), [(False, True), (True, False)])
def test_auto_writes_for_people_on_a_terminal_and_json_elsewhere(terminal: bool, is_json: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    configure_logging("auto", stream=stream)
    structlog.get_logger("a").info("started", rows=3)
    assert stream.getvalue().startswith("{") == is_json
    assert "started" in stream.getvalue()


def test_configuring_again_writes_each_event_once() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=io.StringIO())
    configure_logging("json", stream=stream)
    structlog.get_logger("a").info("once")
    assert len(stream.getvalue().splitlines()) == 1
