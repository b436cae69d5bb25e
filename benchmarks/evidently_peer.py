"""Evidently's drift report on the arrays that our analysis is timed with, in the same run.

Evidently (Apache-2.0) is no dependency: it needs pandas below 3, so it lives in a venv of its own::

    python -m venv .venv-evidently && .venv-evidently/bin/pip install -r benchmarks/evidently-requirements.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_process import Turn, peer_process

__all__ = ["NAME", "PYTHON", "reports"]

PYTHON: Final = Path(__file__).parents[1] / ".venv-evidently" / "bin" / "python"
NAME: Final = "Evidently 0.7.23"


@contextmanager
def reports(
    reference: NDArray[np.float32], current: NDArray[np.float32], method: Literal["ks", "psi"]
) -> Iterator[Turn | None]:
    """A function that makes one report of all columns and returns its seconds; None without the venv.

    Args:
        reference: (n, F).
        current: (m, F).
        method: what each column is tested by.
    """
    arrays = {"reference": reference, "current": current}
    with peer_process(PYTHON, "evidently_run.py", arrays, {"method": method}) as turn:
        yield turn
