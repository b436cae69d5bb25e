"""The command line, ``alphaplus``: finds the commands, and turns errors into exit codes.

====  ===========================================================
code  meaning
====  ===========================================================
0     done
1     failed: the data carry no model, another worker took the job
2     bad input: an argument, an option, a setting
3     an operator is needed: no servers, an old schema, corrupt data
4     a server did not answer: the same command may work later
130   interrupted by Ctrl-C
====  ===========================================================
"""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from typing import Any, NoReturn

import click

from ml.errors import AlphaPlusError, InputRejected, RetryLater, StopForOperator

__all__ = ["cli", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("process", "Servers, beat and workers in this terminal; Ctrl-C stops all."),
    "demo": ("demo", "From nothing to trained models, on real candles."),
    "train": ("training", "Train one model through the queue."),
    "jobs": ("training", "Training jobs, newest first."),
    "models": ("training", "Every key's models and champion."),
    "model": ("training", "One model: metrics, gates, reasons."),
    "predict": ("predictions", "Ask the inference workers about a symbol's newest candle."),
    "predictions": ("predictions", "Answers given, and what became of them."),
    "replay": ("predictions", "Make a past prediction again, to the last bit."),
    "accuracy": ("predictions", "How the answers turned out, beside the patterns alone."),
    "drift": ("drift", "How far the market has moved, what was done, and what paid."),
    "promote": ("promotion", "Make one version a key's champion, by hand."),
    "rollback": ("promotion", "Give a key back the champion before, at once."),
    "audit": ("audit", "Who changed what and why; verify that nobody rewrote it."),
    "key": ("keys", "Add a key while everything runs; freeze and thaw one."),
    "detect": ("detect", "Find the newest candles' patterns and ask about them."),
    "candles": ("candles", "Import, sync and inspect candles."),
    "schedule": ("schedule", "What runs when; changed while it runs."),
    "worker": ("process", "A worker of one or more queues."),
    "beat": ("process", "The scheduler."),
    "flower": ("process", "Flower: workers and tasks in the browser, with a password."),
    "servers": ("servers", "The system's own PostgreSQL and Valkey."),
    "migrate": ("servers", "Bring the database to this version's schema."),
}
"""Command -> (module under worker.commands that has it by that name, help). Modules are imported when
their command runs: `alphaplus --help` takes 0.1 s, SQLAlchemy and Celery alone take 0.5 s."""

MESSAGE_WIDTH = 100


class LazyGroup(click.Group):
    """A group whose commands are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """In the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"worker.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="alphaplus-retraining", prog_name="alphaplus")
def cli() -> None:
    """Keeps a trading platform's pattern-detection models fresh, honest and answering.

    Settings are environment variables, ALPHAPLUS_…; see docs/settings.md. With none set, the system
    starts its own servers under ~/.local/share/alphaplus.
    """
    from runtime.logging import configure_logging

    # Logs go to stderr: standard output is for what was asked.
    configure_logging("auto", "WARNING")


def main() -> NoReturn:
    """Entry point of ``alphaplus``."""
    try:
        result = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`head`) has enough; Python would complain again when it flushes at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except AlphaPlusError as error:
        _fail(str(error), _exit_code(error))
    except _broker_errors() as error:
        _fail(f"the broker does not answer: {error}", 4)
    sys.exit(result if isinstance(result, int) else 0)


def _exit_code(error: AlphaPlusError) -> int:
    if isinstance(error, InputRejected):
        return 2
    if isinstance(error, StopForOperator):
        return 3
    return 4 if isinstance(error, RetryLater) else 1


def _broker_errors() -> tuple[type[BaseException], ...]:
    """What Celery and redis-py raise when the broker is away, if they were imported at all."""
    found: list[Any] = []
    for module, name in (("kombu.exceptions", "OperationalError"), ("redis.exceptions", "ConnectionError")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _fail(message: str, exit_code: int) -> NoReturn:
    lines = [textwrap.fill(line, MESSAGE_WIDTH, break_long_words=False) for line in message.splitlines()]
    click.echo(click.style("error: ", fg="red", bold=True) + "\n".join(lines), err=True)
    sys.exit(exit_code)
