"""Times Evidently's own drift report. Run by the interpreter of .venv-evidently; it knows no project.

Usage: python evidently_run.py SAMPLES.npz OPTIONS.json ANSWERS

One report for each line of standard input, and after each its seconds, a line of the file ANSWERS.
SAMPLES.npz has ``reference`` (n, F) and ``current`` (m, F); OPTIONS.json names the ``method``: ``ks`` or
``psi``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from evidently import Report  # type: ignore[import-not-found]
from evidently.presets import DataDriftPreset  # type: ignore[import-not-found]


def main(samples_path: str, options_path: str, answers_path: str) -> None:
    """Report whenever a line comes."""
    method = json.loads(Path(options_path).read_text())["method"]
    with np.load(samples_path) as archive:
        names = [f"feature_{index}" for index in range(archive["reference"].shape[1])]
        reference, current = (pd.DataFrame(archive[name], columns=names) for name in ("reference", "current"))
    with Path(answers_path).open("w") as answers:
        for _ in sys.stdin:
            started = time.perf_counter()
            found = Report([DataDriftPreset(num_method=method)]).run(current, reference).dict()
            seconds = time.perf_counter() - started
            # The count of drifted columns, then a value a column.
            assert len(found["metrics"]) == 1 + len(names)
            print(seconds, file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
