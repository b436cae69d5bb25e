"""mypy --strict over the whole project."""

from __future__ import annotations

import pytest

from tests.processes import run_command, script

pytestmark = pytest.mark.servers


@pytest.mark.timeout(600)
def test_mypy_strict_finds_nothing(base_env: dict[str, str], pytestconfig: pytest.Config) -> None:
    # Kept between runs: 25 s of CPU without it, 2 s with it.
    cache = pytestconfig.cache.mkdir("mypy")
    done = run_command([script("mypy"), "--cache-dir", str(cache)], base_env, timeout_seconds=590)
    assert done.exit_code == 0, done.stdout + done.stderr
