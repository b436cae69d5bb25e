"""`alphaplus replay`: real answers made again from their records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import candles, registry
from db.models import Prediction
from db.session import transaction
from ml.dataset import ROW_FEATURE_NAMES
from ml.features import FEATURE_NAMES
from tasks.remake import remake
from tests.newest_signals import HOUR, Json, every_signal, get, given
from tests.predicting import ohlcv_rows
from tests.processes import CommandResult
from tests.trained import CUT

pytestmark = pytest.mark.inference

Cli = Callable[..., CommandResult]


def test_replay_makes_every_answer_again_to_the_last_bit(
    run_main: Cli, ask: Callable[..., list[Json]], trained_engine: Engine
) -> None:
    hours = every_signal(trained_engine, 24 * 3)
    answers = [one for moment, signals in hours for one in ask(signals, moment)]
    served = [one for one in answers if one["model"] is not None]
    for one in served:
        with transaction(trained_engine) as session:
            row = get(trained_engine, one["prediction_id"])
            remade = remake(session, row, max_signal_age_bars=1.0)
        assert remade.identical
        assert [value.name for value in remade.compared if value.again is not None]
        assert remade.candles is not None
        assert remade.candles.state == "equal"
    assert len(served) > 60

    one = given(served)
    result = run_main("replay", one["prediction_id"], "--json", "--features")
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert told["identical"]
    assert (told["model"], told["model_version"]) == (one["model"], one["model_version"])
    assert told["values"]["confidence"] == {
        "recorded": one["confidence"],
        "again": one["confidence"],
        "same": True,
    }
    assert told["features_from_candles"]["state"] == "equal"
    assert tuple(told["features"]) == ROW_FEATURE_NAMES
    with transaction(trained_engine) as session:
        row = get(trained_engine, one["prediction_id"])
        model = registry.by_id(session, [row.model_id or 0])[row.model_id or 0]
    assert (told["artifact_sha256"], told["booster_sha256"]) == (model.artifact_sha256, model.booster_sha256)
    assert told["libraries_now"] == told["libraries_then"]

    text = run_main("replay", one["prediction_id"][:8], "--features").stdout
    assert "Identical, to the last bit." in text
    assert f"{one['model']}, version {one['model_version']}, now champion" in text
    assert str(one["confidence"]) in text
    assert "they give the same features, bit for bit" in text
    assert all(name in text for name in ROW_FEATURE_NAMES)
    assert "stage_done" not in text


def test_replay_finds_a_changed_record_and_changed_bytes(
    run_main: Cli, ask: Callable[..., list[Json]], trained_engine: Engine
) -> None:
    [(moment, signals), *_] = every_signal(trained_engine, 24)
    one = given(ask(signals, moment) + ask(signals, moment))
    changed = math.nextafter(one["confidence"], 1.0)
    with transaction(trained_engine) as session:
        session.execute(
            sa.update(Prediction).where(Prediction.id == one["prediction_id"]).values(confidence=changed)
        )
    result = run_main("replay", one["prediction_id"], "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert not told["identical"]
    assert [name for name, value in told["values"].items() if not value["same"]] == ["confidence"]
    assert "Not identical" in run_main("replay", one["prediction_id"]).stdout

    with transaction(trained_engine) as session:
        session.execute(sa.text("UPDATE ml_model_artifacts SET body = 'x', size = 1 WHERE kind = 'booster'"))
    broken = run_main("replay", one["prediction_id"])
    assert broken.exit_code == 3
    assert "sha256" in broken.stderr


def test_replay_reads_the_candles_as_they_were_known_and_says_where_the_caller_brought_others(
    run_main: Cli, ask: Callable[..., list[Json]], trained_engine: Engine
) -> None:
    [(moment, signals), *_] = every_signal(trained_engine, 24)
    stored = ask(signals, moment)[0]
    row = get(trained_engine, stored["prediction_id"])
    with transaction(trained_engine) as session:  # the exchange corrects the last candle, a day later
        known = candles.read(
            session, "BTCUSDT", "1h", known_at=moment, start=row.signal_time - HOUR, end=row.signal_time
        )
        corrected = type(known)(
            "1h", known.open_time, known.open, known.high * 1.01, known.low, known.close, known.volume
        )
        written = candles.write(
            session, symbol="BTCUSDT", interval="1h", candles=corrected, source="test",
            now=moment + timedelta(days=1),
        )  # fmt: skip
    assert written.revised == 1
    told = json.loads(run_main("replay", stored["prediction_id"], "--json").stdout)
    assert (told["features_from_candles"]["state"], told["source"]) == ("equal", "stored")

    message = {name: value for name, value in signals[0].items() if name != "id"}
    rows = ohlcv_rows(until=row.signal_time)
    for one in rows[-24:]:
        one[5] *= 3
    own = ask([message | {"candles": rows}], moment)[0]
    result = run_main("replay", own["prediction_id"], "--json")
    other = json.loads(result.stdout)
    assert (result.exit_code, other["identical"]) == (0, True)
    assert other["features_from_candles"]["state"] == "different"
    assert other["features_from_candles"]["largest"].startswith("volume_")
    assert other["features_from_candles"]["difference"] > 0.1
    assert other["source"] == "inline"
    text = run_main("replay", own["prediction_id"]).stdout
    assert "the caller brought its own candles; those stored, as known at " in text
    assert "give others: volume_" in text
    assert "they give other features" not in text


def test_replay_of_an_abstention_says_that_no_model_was_used(
    run_main: Cli, ask: Callable[..., list[Json]], trained_engine: Engine
) -> None:
    [unseen] = ask([{"symbol": "BTCUSDT", "direction": 1, "time": (CUT - 9 * HOUR).isoformat()}])
    [other] = ask([{"symbol": "ETHUSDT", "direction": 1, "patterns": ["CDLDOJI"]}])
    assert (unseen["abstain_reason"], other["abstain_reason"]) == ("stale_signal", "no_model")
    for one in (unseen, other):
        text = run_main("replay", one["prediction_id"])
        assert (text.exit_code, text.stderr) == (0, "")
        assert "none was used: there are no numbers to make again" in text.stdout
    told = json.loads(run_main("replay", other["prediction_id"], "--json").stdout)
    assert (told["model"], told["values"], told["features_from_candles"]["state"]) == (None, {}, "equal")
    assert told["identical"] is None

    features: dict[str, float | None] = dict.fromkeys(FEATURE_NAMES, 9.0)
    far = {"symbol": "BTCUSDT", "direction": 1, "patterns": ["CDLDOJI"], "time": CUT.isoformat()}
    [withheld] = ask([far | {"features": features | {"atr_rank_500": 0.5, "width_rank_500": 0.9}}])
    assert withheld["abstain_reason"] == "out_of_distribution"
    told = json.loads(run_main("replay", withheld["prediction_id"], "--json").stdout)
    assert told["identical"]
    assert told["values"]["confidence"] == {"recorded": None, "again": None, "same": True}
    assert told["values"]["out_of_distribution"]["again"] == withheld["out_of_distribution"]
    assert told["source"] == "features"
    shown = run_main("replay", withheld["prediction_id"]).stdout
    assert "the caller brought its own features; those stored, as known at " in shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("75d76fc9-7d0e-479b-a5e3-25121c082618", "the id of a stored prediction"),
        ("deadbeef", "the id of a stored prediction"),
        ("dead", "its first 8 characters or more"),
        ("../../etc/passwd", "its first 8 characters or more"),
        ("0" * 40, "its first 8 characters or more"),
    ],
)
def test_replay_of_an_unknown_id_is_bad_input(run_main: Cli, text: str, told: str) -> None:
    result = run_main("replay", text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in " ".join(result.stderr.split())
