"""Data folders for servers, made once and copied."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import server_home
from worker.local import local_servers, stop_servers
from worker.server_programs import Access, free_port


def make_top() -> Path:
    """A folder that any user can pass through."""
    top = Path(tempfile.mkdtemp(prefix="alphaplus-own-"))
    top.chmod(0o711)
    return top


@pytest.fixture
def new_data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder that does not exist yet; what runs in it is stopped after the test."""
    top = make_top()
    monkeypatch.setattr(server_home, "ROOT_STATE", top / "var-lib")
    yield top / "data"
    stop_servers(top / "data")
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data folder whose cluster is made, stopped."""
    top = make_top()
    with local_servers(top / "data", durable=False):
        pass
    yield top / "data"
    shutil.rmtree(top)


@pytest.fixture
def data_dir(new_data_dir: Path, made: Path) -> Path:
    """A data folder as an earlier start left it; saves each test the second that initdb takes."""
    subprocess.run(["cp", "-a", str(made), str(new_data_dir)], check=True)
    for name in ("postgres", "valkey"):
        access = new_data_dir / f"{name}.json"
        kept = Access.model_validate_json(access.read_text())
        access.write_text(kept.model_copy(update={"port": free_port()}).model_dump_json())
    return new_data_dir
