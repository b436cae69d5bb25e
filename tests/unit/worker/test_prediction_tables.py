"""How answers, predictions and accuracy are shown."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from rich.console import Console, RenderableType

from db.models import Prediction
from ml.evaluation import Estimate
from ml.inference import ABSTAIN_REASONS
from ml.keys import ModelKey
from ml.live_accuracy import LiveAccuracy, ResolvedSignals, live_accuracy
from ml.patterns import PATTERN_NAMES
from tasks.detect import DetectedSignal, Detection
from worker.prediction_tables import (
    ADVICE,
    abstention_text,
    accuracy_tables,
    answer_line,
    answers_table,
    no_signal_text,
    outcome_text,
    prediction_json,
    predictions_table,
)

pytestmark = pytest.mark.inference

CLOSE = datetime(2019, 10, 1, 1, 0, tzinfo=UTC)
ID = UUID("3b3f9a52-1111-5222-8333-444455556666")


def shown(what: RenderableType) -> str:
    """As a terminal of 100 columns, without colours."""
    out = io.StringIO()
    Console(file=out, width=100, highlight=False).print(what)
    return out.getvalue()


def words(what: RenderableType) -> str:
    return " ".join(shown(what).split())


def answer(**changes: Any) -> dict[str, Any]:
    return {
        "prediction_id": str(ID),
        "signal_id": None,
        "symbol": "BTCUSDT",
        "interval": "1h",
        "time": CLOSE.isoformat(),
        "direction": 1,
        "patterns": ["CDLDOJI", "CDLHARAMI"],
        "regime": "trending",
        "decision": "accept",
        "abstain_reason": None,
        "confidence": 0.6123,
        "pattern_confidence": 0.5714,
        "expected_net_return_atr": 0.0512,
        "out_of_distribution": 0.03,
        "model": "BTCUSDT 1h trending",
        "model_version": 3,
        "model_age_seconds": 90_000.0,
        "fallback": False,
        "as_of": CLOSE.isoformat(),
    } | changes


def abstention(reason: str, **changes: Any) -> dict[str, Any]:
    return answer(
        decision="abstain", abstain_reason=reason, confidence=None, expected_net_return_atr=None, **changes
    )


def prediction(**changes: Any) -> Prediction:
    values = {
        "id": ID,
        "signal_time": CLOSE,
        "as_of": CLOSE + timedelta(minutes=1),
        "symbol": "BTCUSDT",
        "interval": "1h",
        "regime": "consolidation",
        "model_id": 7,
        "served_regime": "consolidation",
        "direction": -1,
        "patterns": ["CDLDOJI"],
        "pattern_confidence": 0.5714,
        "confidence": 0.6123,
        "decision": "accept",
        "expected_net_return_atr": 0.0512,
        "features": b"\0\0\0\0",
        "horizon_end": CLOSE + timedelta(hours=12),
        "details": {"threshold": 0.5},
    }
    return Prediction(**values | changes)


def test_answer_stands_beside_the_patterns_own_confidence() -> None:
    row = words(answers_table([answer()]))
    assert "long DOJI, HARAMI accept 0.612 0.571 +0.05 trending v3 25 h" in row
    assert "abstains" not in row


def test_fallback_says_for_which_regime_it_stands_in() -> None:
    row = answer(model="BTCUSDT 1h all", model_version=2, fallback=True)
    assert "all v2 for trending" in words(answers_table([row]))


def test_abstention_gives_its_reason_in_words_what_to_do_and_no_made_up_number() -> None:
    none = abstention("no_model", model=None, model_version=None, model_age_seconds=None)
    row = words(answers_table([none]))
    assert "abstain - 0.571 - none" in row
    assert "long: abstains, neither the key nor its fallback has a champion" in row
    assert "`alphaplus train BTCUSDT all`" in row


def test_every_abstain_reason_says_what_to_do() -> None:
    assert ADVICE.keys() == ABSTAIN_REASONS.keys()
    for reason in ABSTAIN_REASONS:
        text = abstention_text(abstention(reason))
        assert text.startswith(f"{ABSTAIN_REASONS[reason]}: ")
        assert not set(text) & set("{}")
    # Of a later version's worker.
    assert abstention_text(abstention("moon_phase")) == "moon_phase"


def test_advice_names_the_key_that_is_to_be_trained() -> None:
    assert "`alphaplus train BTCUSDT trending`" in abstention_text(abstention("fallback_unfit"))
    assert "`alphaplus train BTCUSDT all`" in abstention_text(abstention("model_too_old", regime=None))


def test_line_of_an_answer_has_its_decision_confidence_and_model() -> None:
    assert answer_line(answer()).plain == (
        "2019-10-01 01:00  BTCUSDT 1h long   accept   0.612 (patterns alone 0.571)  +0.05 ATR  trending v3"
        "  DOJI, HARAMI"
    )
    line = answer_line(abstention("too_few_candles", patterns=[], direction=-1)).plain
    assert line.startswith("2019-10-01 01:00  BTCUSDT 1h short  abstain  fewer than")
    assert line.endswith("reads further back")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"reason": "no_pattern", "close_time": CLOSE}, "closed 2019-10-01 01:00 UTC and has no pattern."),
        ({"reason": "noisy_candle", "noise": "flat", "close_time": CLOSE}, "is noise: open, high, low and"),
        ({"reason": "stale_signal", "close_time": CLOSE}, "too long ago to act on: `alphaplus candles sync`"),
        ({"reason": "no_candle"}, "no candle is known yet: `alphaplus candles sync`"),
    ],
)
def test_candle_without_a_signal_is_named_with_the_reason(found: dict[str, Any], told: str) -> None:
    text = no_signal_text(Detection(symbol="BTCUSDT", interval="1h", **found))
    assert text.startswith("BTCUSDT 1h: ")
    assert told in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "open to 10-01 13:00"),
        ({"label": 1.0, "net_return_atr": 0.7312, "resolved_at": CLOSE}, "hit +0.73"),
        ({"label": 0.0, "net_return_atr": -2.108, "resolved_at": CLOSE}, "miss -2.11"),
        ({"label": 1.0, "resolved_at": CLOSE}, "hit"),
        ({"resolved_at": CLOSE, "details": {"unresolved": "gap"}}, "unknown: gap"),
        ({"resolved_at": CLOSE, "details": {}}, "unknown: no outcome in the candles"),
    ],
)
def test_outcome_is_a_hit_a_miss_open_or_unknown(changes: dict[str, Any], text: str) -> None:
    assert outcome_text(prediction(**changes)) == text


def test_predictions_are_listed_with_what_replay_takes_and_the_fallback_marked() -> None:
    rows = [prediction(), prediction(served_regime="all", label=0.0, resolved_at=CLOSE, net_return_atr=-2.0)]
    table = predictions_table(rows, now=CLOSE + timedelta(days=91))
    first, second = (" ".join(line.split()) for line in shown(table).splitlines()[3:5])
    start = "3b3f9a52 10-01 01:00 BTCUSDT 1h short"
    assert first == f"{start} consolidation accept 0.612 0.571 open to 10-01 13:00"
    assert second == f"{start} consolidation* accept 0.612 0.571 miss -2.00"
    assert "* answered by the symbol's model of all regimes." in shown(table)
    assert "*" not in shown(predictions_table(rows[:1], now=CLOSE))


def test_predictions_that_are_not_all_of_this_year_are_listed_with_theirs() -> None:
    new_year = datetime(2019, 12, 31, 23, 0, tzinfo=UTC)
    rows = [prediction(signal_time=new_year), prediction(signal_time=new_year.replace(year=2018))]
    assert "2018-12-31 23:00" in shown(predictions_table(rows, now=new_year))
    assert "2019-12-31 23:00" in shown(predictions_table(rows, now=new_year))
    assert "2019" not in shown(predictions_table(rows[:1], now=new_year))
    assert "2019-12-31 23:00" in shown(predictions_table(rows[:1], now=new_year + 2 * timedelta(hours=1)))


def test_prediction_as_plain_values_is_json_without_features() -> None:
    plain = prediction_json(prediction(label=1.0, label_end=CLOSE))
    assert plain["id"] == str(ID)
    assert plain["signal_time"] == "2019-10-01T01:00:00+00:00"
    assert plain["details"] == {"threshold": 0.5}
    assert "features" not in plain


def judged(count: int, *, days: int) -> LiveAccuracy:
    """Of ``count`` signals evenly over ``days``, every other one a hit, the model right about most."""
    rng = np.random.default_rng(1)
    label = (np.arange(count) % 2).astype(np.float64)
    confidence = np.clip(0.5 + 0.2 * (label - 0.5) + rng.normal(0, 0.1, count), 0.01, 0.99)
    start = np.datetime64("2019-10-01T00:00", "us")
    signals = ResolvedSignals(
        signal_time=start + (np.arange(count) * days / count * 86_400_000_000).astype("timedelta64[us]"),
        label=label,
        net_return_atr=np.where(label > 0, 0.8, -2.2),
        confidence=confidence,
        threshold=np.full(count, 0.5),
        pattern_confidence=np.full(count, 0.55),
        accepted=confidence > 0.55,
        answered_by=(7,) * count,
        abstain_reason=(None,) * count,
        unresolved=(None,) * count,
    )
    return live_accuracy(signals, block=timedelta(hours=48), samples=200, seed=3)


def test_accuracy_shows_bounds_where_there_are_enough_signals_and_says_where_not() -> None:
    many, few = judged(400, days=60), judged(12, days=2)
    assert many.precision.low is not None
    assert few.precision.low is None
    keys = [ModelKey("BTCUSDT", "1h", "consolidation"), ModelKey("ETHUSDT", "1h", "all")]

    plain, gains, added = (shown(one) for one in accuracy_tables(list(zip(keys, (many, few), strict=True))))

    low, high = many.precision.low, many.precision.high
    assert f"{many.precision.value:.3f} [{low:.3f}, {high:.3f}]" in plain
    assert f"{few.precision.value:.3f} [" not in plain
    assert f"{many.brier.value:.3f}" in plain
    removed = many.false_signals_removed
    assert f"{removed.value:.3f} [{removed.low:.3f}, {removed.high:.3f}]" in gains
    assert "No bounds where there are too few signals, or too few days of them: ETHUSDT 1h unknown." in added
    assert "No bounds" not in shown(accuracy_tables([(keys[0], many)])[2])
    assert all("Market" in one and "ETHUSDT 1h unknown" in one for one in (plain, gains, added))
    assert not any("ETHUSDT 1h all" in one or "Model key" in one for one in (plain, gains, added))
    for one in (many.accuracy_gained_over_pattern, many.false_removed_over_pattern):
        assert one.low is not None
        assert f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" in added
    assert f"{few.false_removed_over_pattern.value:.3f} [" not in added


def test_key_that_only_abstained_has_dashes_and_is_not_called_too_few() -> None:
    nothing = Estimate(None, None, None)
    one = judged(12, days=2)
    empty = replace(one, answered=0, base_rate=None, precision=nothing, brier=nothing)
    plain, _, added = accuracy_tables([(ModelKey("BTCUSDT", "1h", "all"), empty)])
    assert "BTCUSDT 1h unknown 12 0 - - -" in words(plain)
    assert "No bounds" not in shown(added)


def test_widest_tables_fit_100_columns() -> None:
    names = list(PATTERN_NAMES[:9])
    wide = answer(
        patterns=names, model="BTCUSDT 1h all", model_version=1234, fallback=True, regime="consolidation"
    )
    low = Estimate(-0.825, -0.888, -0.759)
    lost = replace(
        judged(400, days=60),
        resolved=123_456,
        answered=123_456,
        compared=123_456,
        accuracy_gained=low,
        accuracy_gained_over_pattern=low,
        false_removed_over_pattern=low,
    )
    tables: list[RenderableType] = [
        *accuracy_tables([(ModelKey("1000SHIBUSDT", "15m", "consolidation"), lost)]),
        answers_table([wide, abstention("too_few_candles", direction=-1)]),
        *(
            predictions_table(
                [
                    prediction(symbol="1000SHIBUSDT", interval="15m", served_regime="all"),
                    prediction(resolved_at=CLOSE, decision="abstain", details={"unresolved": "other_market"}),
                ],
                now=now,
            )
            for now in (CLOSE, CLOSE + timedelta(days=400))
        ),
        *accuracy_tables([(ModelKey("1000SHIBUSDT", "15m", "consolidation"), judged(400, days=60))]),
    ]
    for one in tables:
        lines = shown(one).splitlines()
        assert max(map(len, lines)) <= 100
        assert "…" not in "".join(lines)
    text = words(tables[3])
    assert all(name.removeprefix("CDL")[:6] in text for name in names)


def test_detector_names_its_signals_for_their_candle_and_side() -> None:
    signal = DetectedSignal(direction=-1, patterns=("CDLDOJI",))
    found = Detection(symbol="BTCUSDT", interval="1h", close_time=CLOSE, signals=(signal,))
    [message] = found.messages()
    assert (message["id"], message["direction"]) == ("BTCUSDT/1h/2019-10-01T01:00Z/short", -1)
    assert found.request_id == replace(found, signals=()).request_id
    assert found.request_id != replace(found, close_time=CLOSE + timedelta(hours=1)).request_id
