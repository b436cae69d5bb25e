"""Start the TimescaleDB of ``serve.mjs``. It is in no Debian or Python package, but runs in Node."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["timescaledb"]

FOLDER = Path(__file__).parent
LOCK_FILE = FOLDER / "package-lock.json"
INSTALLED = FOLDER / "node_modules" / ".installed-from.json"
"""A copy of the lock file that ``node_modules`` was installed from."""


@contextmanager
def timescaledb() -> Iterator[str]:
    """URL of an empty database with the extension, in memory; one connection at a time, any password.

    ``COPY … FROM STDIN`` ends its process (pglite-socket 0.0.19); ``COPY … TO STDOUT`` works.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            reason = f"the tests on TimescaleDB need `{program}` (Node.js 20 or later) on the PATH"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
    _install()
    server = subprocess.Popen(
        ["node", "serve.mjs"], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port, "the TimescaleDB in Node did not start"
        try:
            yield f"postgresql+psycopg2://postgres:any@127.0.0.1:{port}/postgres?sslmode=disable"
        finally:
            server.kill()


def _install() -> None:
    """``npm ci``, once a lock file; other test processes wait."""
    with LOCK_FILE.open() as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if INSTALLED.exists() and INSTALLED.read_text() == LOCK_FILE.read_text():
            return
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"npm ci failed:\n{done.stderr}")
        shutil.copyfile(LOCK_FILE, INSTALLED)
