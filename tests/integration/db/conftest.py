from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.timescale.server import timescaledb


@pytest.fixture(scope="session")
def timescale_server() -> Iterator[str]:
    """URL of the process's own TimescaleDB; tests share its one database."""
    with timescaledb() as url:
        yield url
