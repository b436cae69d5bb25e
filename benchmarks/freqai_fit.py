"""Times FreqAI's own XGBoostClassifier. Run by the interpreter of .venv-freqai; knows nothing of the project.

Usage: python freqai_fit.py MATRIX.npz PARAMETERS.json ANSWERS

One fit for each line of standard input, and after each its seconds, a line of the file ANSWERS: standard
output is FreqAI's. MATRIX.npz has ``train`` (n, F) and ``validation`` (m, F) float32, and ``train_labels``
(n,) and ``validation_labels`` (m,), 0 or 1. What FreqAI writes goes to a folder that is removed afterwards.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from freqtrade.freqai.data_kitchen import FreqaiDataKitchen  # type: ignore[import-not-found]
from freqtrade.freqai.prediction_models.XGBoostClassifier import (  # type: ignore[import-not-found]
    XGBoostClassifier,
)

PAIR = "BTC/USDT"


def freqai_config(folder: Path, parameters: dict[str, Any], validation_share: float) -> dict[str, Any]:
    """The least that FreqAI's classes accept, under the names of its configuration file."""
    return {
        "timeframe": "1h",
        "user_data_dir": folder,
        "exchange": {"pair_whitelist": [PAIR]},
        "freqai": {
            "enabled": True,
            "identifier": "benchmark",
            "save_backtest_models": False,
            "activate_tensorboard": False,
            "feature_parameters": {"include_corr_pairlist": [], "include_timeframes": ["1h"]},
            "data_split_parameters": {"test_size": validation_share, "shuffle": False},
            "model_training_parameters": parameters,
        },
    }


def make_fit(matrix: dict[str, Any], parameters: dict[str, Any], folder: Path) -> Callable[[], Any]:
    """FreqAI's own fit, ready to be called; returns its fitted model."""
    share = len(matrix["validation"]) / (len(matrix["train"]) + len(matrix["validation"]))
    config = freqai_config(folder, parameters, share)
    model = XGBoostClassifier(config)
    kitchen = FreqaiDataKitchen(config, live=True, pair=PAIR)
    columns = [f"%-{index}" for index in range(matrix["train"].shape[1])]
    data = {
        "train_features": pd.DataFrame(matrix["train"], columns=columns),
        "train_labels": pd.DataFrame({"&-label": matrix["train_labels"].astype(np.int64)}),
        "train_weights": np.ones(len(matrix["train"])),
        "test_features": pd.DataFrame(matrix["validation"], columns=columns),
        "test_labels": pd.DataFrame({"&-label": matrix["validation_labels"].astype(np.int64)}),
    }
    return lambda: model.fit(data, kitchen)


def main(matrix_path: str, parameters_path: str, answers_path: str) -> None:
    """Fit whenever a line comes."""
    parameters = json.loads(Path(parameters_path).read_text())
    with (
        np.load(matrix_path) as archive,
        tempfile.TemporaryDirectory() as folder,
        Path(answers_path).open("w") as answers,
    ):
        fit = make_fit(dict(archive), parameters, Path(folder))
        for _ in sys.stdin:
            started = time.perf_counter()
            fitted = fit()
            seconds = time.perf_counter() - started
            assert fitted.get_booster().num_boosted_rounds() == parameters["n_estimators"]
            print(seconds, file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
