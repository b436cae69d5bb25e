"""Keeps one run's servers: ``python tests/keeper.py FOLDER PID``, until process PID ends or SIGTERM comes.

pytest may end in ways that run no cleanup (SIGKILL), and under xdist no worker knows that it is the
last one. This process outlives them: it stops the servers, and after such an end also the processes
that tests started and the run's folder.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from pathlib import Path

import psutil

from runtime.server_record import ProcessMark
from worker.local import local_servers

FOLDER_VARIABLE = "RETRAINING_TEST_FOLDER"
POLL_SECONDS = 0.2


def main(folder: Path, run: ProcessMark) -> None:
    """Servers for as long as ``run`` lives."""
    home = None
    try:
        with local_servers(folder / "servers", durable=False) as servers:
            home = servers.home
            while run.alive:
                time.sleep(POLL_SECONDS)
            kill_started_by(folder)
    finally:
        if home is not None:
            home.delete()
        if not run.alive:
            shutil.rmtree(folder, ignore_errors=True)


def kill_started_by(folder: Path) -> None:
    """Kill what tests of this run started; their environment names the run's folder."""
    myself = psutil.Process()
    spared = {myself.pid, *(child.pid for child in myself.children(recursive=True))}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid not in spared and process.environ().get(FOLDER_VARIABLE) == str(folder):
                process.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), ProcessMark.of(int(sys.argv[2])))
