"""What the ``celery`` command line gains in this project's environment.

The entry point ``celery.commands`` has this module imported by every ``celery`` command before it
parses its arguments, whatever the folder. It makes the documented call work as it is written::

    celery call tasks.train --args BTCUSDT,trending

- ``CELERY_APP`` names our application unless it is set already, so no ``-A`` is needed.
- ``--args`` takes comma-separated text beside JSON; such values are strings.
- A call of our application is checked before anything is sent: task, arity, model key.

It leans on ``celery.bin.call.call.params``, which is no public interface: Celery is pinned, and the
command stops at once if the option is gone. Keep this module light: it is imported by every worker.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import click
from celery.bin.base import JsonArray
from celery.bin.call import call

# A name as common as `tasks` may also be a file of the folder that the command is run from, and Celery
# puts that folder first on the path when it imports an application: hold on to ours before it does.
import beat_schedule  # noqa: F401
import db  # noqa: F401
import feeds  # noqa: F401
import runtime  # noqa: F401
import tasks  # noqa: F401
from ml.errors import AlphaPlusError, InputRejected
from ml.keys import check_regime, check_symbol, interval_duration

__all__ = ["CommaSeparatedOrJson", "alphaplus", "check_call"]

ARGUMENT_CHECKS: dict[str, Callable[[object], object]] = {
    "symbol": check_symbol,
    "interval": interval_duration,
    "regime": check_regime,
}


class CommaSeparatedOrJson(JsonArray):
    """``BTCUSDT,trending`` or ``["BTCUSDT", "trending"]``; what begins as JSON must be a JSON array."""

    name = "a,b,c or json array"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """Return the list; a malformed value fails the command line (exit code 2)."""
        if not isinstance(value, str) or value.lstrip().startswith(("[", "{", '"')):
            converted: list[Any] = super().convert(value, param, ctx)
            return converted
        parts = [part.strip() for part in value.split(",")]
        if not all(parts):
            self.fail(f"{value!r} has an empty part; expected a,b,c or a JSON array", param, ctx)
        return list(parts)


def _take_comma_separated_args() -> None:
    for parameter in call.params:
        if parameter.name == "args" and isinstance(parameter.type, JsonArray):
            parameter.type = CommaSeparatedOrJson()
            return
    # SystemExit: click-plugins would hide an Exception behind a command that nobody runs.
    raise SystemExit(
        "worker/celery_cli.py: `celery call` of this Celery has no --args option that takes a JSON array; "
        "install the pinned version (pyproject.toml)"
    )


def _refuse_nonsense(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send)
    def checked(*positional: Any, **options: Any) -> Any:
        app = click.get_current_context().obj.app
        if app.main != "alphaplus":
            return send(*positional, **options)
        try:
            check_call(app, options["name"], options["args"], options["kwargs"])
            from worker.celery import require_broker

            require_broker()
            return send(*positional, **options)
        except AlphaPlusError as error:
            raise click.ClickException(str(error)) from error

    return checked


def check_call(app: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse a call that no worker of ours could do.

    Raises:
        click.UsageError: unknown task, arguments that its signature does not take, an invalid model key.
    """
    app.loader.import_default_modules()
    if name not in app.tasks:
        known = ", ".join(sorted(task for task in app.tasks if task.startswith("tasks.")))
        raise click.UsageError(f"no task is called {name!r}; there are {known}")
    signature = inspect.signature(app.tasks[name].run)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise click.UsageError(f"{name}{signature}: {error}") from error
    for field, value in bound.arguments.items():
        left_to_default = value is None and signature.parameters[field].default is None
        if field in ARGUMENT_CHECKS and not left_to_default:
            try:
                ARGUMENT_CHECKS[field](value)
            except InputRejected as error:
                raise click.UsageError(str(error)) from error


@click.command("alphaplus", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def alphaplus(arguments: tuple[str, ...]) -> None:
    """AlphaPlus Retraining's own commands; the same as `alphaplus ...`."""
    from worker.cli import main

    sys.argv = ["alphaplus", *arguments]
    main()


os.environ.setdefault("CELERY_APP", "worker")
_take_comma_separated_args()
call.callback = _refuse_nonsense(call.callback)
