"""The command line's frame: commands found when asked for, errors as exit codes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import click
import pytest

from ml.errors import (
    AlphaPlusError,
    ArtifactCorrupt,
    ConfigRejected,
    LeaseLost,
    SchemaOutdated,
    ServersMissing,
    StoreUnavailable,
    TrainingRefused,
)
from tests.processes import ROOT, run_command, script
from worker.cli import COMMANDS, cli, main

pytestmark = pytest.mark.servers


def run_main(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["alphaplus", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_is_there_and_has_help(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, click.Command)
    assert command.get_short_help_str()


def test_help_lists_every_command_and_imports_no_heavy_library(base_env: dict[str, str]) -> None:
    program = (
        "import sys; from click.testing import CliRunner; from worker.cli import cli\n"
        "print(CliRunner().invoke(cli, ['--help']).output)\n"
        "heavy = {'celery', 'sqlalchemy', 'numpy', 'pandas', 'xgboost', 'redis', 'rich'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = run_command([sys.executable, "-c", program], base_env)
    listed = [
        line.split()[0]
        for line in done.stdout.partition("Commands:")[2].splitlines()
        if line.startswith("  ")
    ]
    assert listed == list(COMMANDS)
    assert done.stdout.endswith("heavy: []\n")


def test_the_version_is_the_packages(base_env: dict[str, str]) -> None:
    done = run_command([script("alphaplus"), "--version"], base_env)
    assert (done.exit_code, done.stdout) == (0, f"alphaplus, version {version('alphaplus-retraining')}\n")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (TrainingRefused("too_few_rows", "3 rows, at least 500 are needed"), 1),
        (LeaseLost("job j1"), 1),
        (ConfigRejected("ALPHAPLUS_CLOCK", "sundial", "wall or replay"), 2),
        (ServersMissing("none runs"), 3),
        (SchemaOutdated("at 1, needs 2"), 3),
        (ArtifactCorrupt("bytes differ"), 3),
        (StoreUnavailable("connection refused"), 4),
    ],
)
def test_an_error_is_one_paragraph_on_stderr_and_an_exit_code(
    error: AlphaPlusError, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "get_command", lambda *_: fails)
    assert run_main(monkeypatch, "fails") == exit_code
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"error: {error}\n")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fails() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "get_command", lambda *_: fails)
    monkeypatch.setattr(sys, "argv", ["alphaplus", "fails"])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize("args", [["nonsense"], ["servers", "nonsense"], ["servers", "status", "--nonsense"]])
def test_a_wrong_call_is_exit_code_2_and_says_what_is_wrong(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, *args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "nonsense" in shown.err


def test_interrupted_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fails() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "get_command", lambda *_: fails)
    assert run_main(monkeypatch, "fails") == 130


def test_a_reader_that_has_enough_is_no_error(base_env: dict[str, str]) -> None:
    command = f"'{script('alphaplus')}' --help | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, env=base_env, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"U", b"")


def test_migrate_without_a_server_says_how_to_start_one(base_env: dict[str, str]) -> None:
    done = run_command([script("alphaplus"), "migrate"], base_env)
    assert done.exit_code == 3
    assert done.stdout == ""
    assert "`alphaplus up`" in done.stderr


def test_a_misspelt_setting_is_bad_input(base_env: dict[str, str]) -> None:
    done = run_command([script("alphaplus"), "servers", "status"], base_env | {"ALPHAPLUS_SYMBOL": "BTCUSDT"})
    assert done.exit_code == 2
    assert "did you mean ALPHAPLUS_SYMBOLS?" in " ".join(done.stderr.split())
