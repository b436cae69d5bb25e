"""Times FreqAI's own live inference of one candle. Run by the interpreter of .venv-freqai, as freqai_fit.py.

Usage: python freqai_live.py CANDLES.npz PARAMETERS.json ANSWERS

CANDLES.npz has ``date`` (n,) datetime64 and ``open, high, low, close, volume`` (n,); PARAMETERS.json has the
model's under ``model`` and the candles of one live window under ``window``. A model is trained on all of
them but the last window; then, for each line of standard input, the newest candle is answered and the seconds
are a line of the file ANSWERS.

The strategy is FreqAI's own example with two classes as its target, and without its 41st feature, the raw
price. Timed is what ``IFreqaiModel.start_live`` does between a new candle and its prediction: indicators of
the window, features filtered and scaled, ``predict`` of the last row. Its files, its record of predictions
and the merging of them into the strategy's frame are left out.
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
from freqai_fit import PAIR, freqai_config  # type: ignore[import-not-found]
from freqtrade.freqai.data_kitchen import FreqaiDataKitchen  # type: ignore[import-not-found]
from freqtrade.freqai.prediction_models.XGBoostClassifier import (  # type: ignore[import-not-found]
    XGBoostClassifier,
)
from freqtrade.templates.FreqaiExampleStrategy import (  # type: ignore[import-not-found]
    FreqaiExampleStrategy,
)

PERIODS = [10, 20, 30, 50]
FEATURES = 40
HORIZON_BARS = 12
TEST_SHARE = 0.2


class Strategy(FreqaiExampleStrategy):  # type: ignore[misc]
    """The example with two classes to tell apart."""

    timeframe = "1h"

    def feature_engineering_expand_basic(
        self, dataframe: pd.DataFrame, metadata: dict[str, Any], **kwargs: Any
    ) -> pd.DataFrame:
        """The example's, without the raw price."""
        basic: pd.DataFrame = super().feature_engineering_expand_basic(dataframe, metadata, **kwargs)
        return basic.drop(columns="%-raw_price")

    def set_freqai_targets(
        self,
        dataframe: pd.DataFrame,
        metadata: dict[str, Any],  # noqa: ARG002 - FreqAI's signature
        **kwargs: Any,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Whether the close is higher some candles later; set live, too, as FreqAI does."""
        rises = dataframe["close"].shift(-HORIZON_BARS) > dataframe["close"]
        dataframe["&s-up_or_down"] = np.where(rises, "up", "down")
        return dataframe


def make_answer(candles: pd.DataFrame, options: dict[str, Any], folder: Path) -> Callable[[], pd.DataFrame]:
    """Train FreqAI's classifier; return what answers for the newest candle."""
    config = freqai_config(folder, options["model"], TEST_SHARE)
    config["freqai"]["feature_parameters"] |= {
        "indicator_periods_candles": PERIODS,
        "include_shifted_candles": 0,
        "label_period_candles": HORIZON_BARS,
        "shuffle_after_split": False,
    }
    model, strategy = XGBoostClassifier(config), Strategy(config)
    kitchen = FreqaiDataKitchen(config, live=True, pair=PAIR)
    window = candles.tail(options["window"]).reset_index(drop=True)
    frame = kitchen.use_strategy_to_populate_indicators(
        strategy, prediction_dataframe=candles.iloc[: -len(window)].reset_index(drop=True), pair=PAIR
    )
    kitchen.find_features(frame)
    kitchen.find_labels(frame)
    assert len(kitchen.training_features_list) == FEATURES, kitchen.training_features_list
    model.model = model.train(frame, PAIR, kitchen)

    def answer() -> pd.DataFrame:
        live = kitchen.use_strategy_to_populate_indicators(strategy, prediction_dataframe=window, pair=PAIR)
        kitchen.find_labels(live)
        predictions: pd.DataFrame
        predictions, _ = model.predict(live.iloc[-1:], kitchen, first=False)
        return predictions

    return answer


def main(candles_path: str, options_path: str, answers_path: str) -> None:
    """Answer whenever a line comes."""
    options = json.loads(Path(options_path).read_text())
    with (
        np.load(candles_path) as archive,
        tempfile.TemporaryDirectory() as folder,
        Path(answers_path).open("w") as answers,
    ):
        frame = pd.DataFrame({name: archive[name] for name in archive.files})
        frame["date"] = frame["date"].dt.tz_localize("UTC")
        answer = make_answer(frame, options, Path(folder))
        for _ in sys.stdin:
            started = time.perf_counter()
            predictions = answer()
            seconds = time.perf_counter() - started
            assert len(predictions) == 1
            print(seconds, file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
