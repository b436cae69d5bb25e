"""A peer in a venv of its own: a script that does one turn when it is asked, and says how long it took."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Arrays", "Turn", "peer_process"]

POLL_SECONDS = 0.02

Arrays = dict[str, Any]
Turn = Callable[[], float]
"""Seconds of one turn, as the peer measured them."""


@contextmanager
def peer_process(python: Path, script: str, arrays: Arrays, options: dict[str, Any]) -> Iterator[Turn | None]:
    """A script of this folder under the peer's interpreter; None where that venv is not there.

    The script is called with three paths: the arrays (.npz), the options (JSON), and the file that it adds a
    line of seconds to for each line of its standard input.

    Raises:
        RuntimeError: by the turn, where the script has ended; with the end of what it wrote.
    """
    if not python.exists():
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        data, parameters, answers, log = (
            Path(folder, name) for name in ("d.npz", "p.json", "answers", "log")
        )
        np.savez(data, **arrays)
        parameters.write_text(json.dumps(options))
        answers.touch()
        command = [python, Path(__file__).with_name(script), data, parameters, answers]
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
            ) as process,
        ):
            yield lambda: _ask(process, answers, log)
            process.communicate()


def _ask(process: subprocess.Popen[bytes], answers: Path, log: Path) -> float:
    assert process.stdin is not None
    known = len(answers.read_text().splitlines())
    process.stdin.write(b"go\n")
    process.stdin.flush()
    while len(lines := answers.read_text().splitlines()) == known:
        if process.poll() is not None:
            raise RuntimeError(f"the peer's process ended:\n{log.read_text()[-2000:]}")
        time.sleep(POLL_SECONDS)
    return float(lines[-1])
