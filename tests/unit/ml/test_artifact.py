"""Artifacts: what was written is what answers, or nothing does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from ml.artifact import (
    FORMAT,
    booster_margin,
    from_bytes,
    load,
    load_booster,
    read_model,
    sha256_hex,
    to_bytes,
    verify,
)
from ml.config import TrainingConfig, canonical_json
from ml.errors import ArtifactCorrupt
from ml.keys import ModelKey
from ml.rows import SignalRows
from ml.training import Challenger, FittedBooster, fit_booster, fit_key

MakeRows = Callable[..., SignalRows]
Trained = tuple[SignalRows, FittedBooster, Challenger]

pytestmark = pytest.mark.training

CONFIG = TrainingConfig.from_mapping({"bootstrap_samples": 100, "fit": {"n_estimators": 20, "threads": 1}})
AS_OF = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def trained(make_rows: MakeRows) -> Trained:
    rows = make_rows(3000)
    fitted = fit_booster(rows, CONFIG, interval="1h")
    return rows, fitted, fit_key(ModelKey("BTCUSDT", "1h", "all"), rows, fitted, CONFIG, as_of=AS_OF)


@pytest.mark.parametrize("calibration", ["sigmoid", "isotonic"])
def test_a_loaded_model_is_the_one_written_and_answers_to_the_last_bit(
    trained: Trained, calibration: str
) -> None:
    rows, fitted, _ = trained
    config = CONFIG.model_copy(update={"calibration": calibration})
    made = fit_key(ModelKey("BTCUSDT", "1h", "all"), rows, fitted, config, as_of=AS_OF)
    body = to_bytes(made.model)

    loaded = load(body, sha256_hex(body), fitted.ubjson)

    assert loaded.model == made.model
    assert to_bytes(loaded.model) == body
    assert np.array_equal(loaded.confidence(rows.features), made.predictor.confidence(rows.features))


def test_one_row_gets_the_same_confidence_alone_as_in_a_batch(trained: Trained) -> None:
    rows, _, challenger = trained
    features = rows.features[:50].copy()
    features[::7, 2] = np.nan

    batch = challenger.predictor.confidence(features)

    alone = np.concatenate([challenger.predictor.confidence(features[i : i + 1]) for i in range(50)])
    assert np.array_equal(batch, alone)
    assert ((batch > 0) & (batch < 1)).all()


def test_any_flipped_bit_is_found(trained: Trained) -> None:
    _, fitted, challenger = trained
    body = to_bytes(challenger.model)
    recorded = sha256_hex(body)
    for position in np.random.default_rng(0).integers(0, 8 * len(body), 20):
        flipped = bytearray(body)
        flipped[position // 8] ^= 1 << (position % 8)
        with pytest.raises(ArtifactCorrupt, match=r"not [0-9a-f]{64} as recorded"):
            load(bytes(flipped), recorded, fitted.ubjson)
    trees = bytearray(fitted.ubjson)
    trees[len(trees) // 2] ^= 1
    with pytest.raises(ArtifactCorrupt):
        load(body, recorded, bytes(trees))
    with pytest.raises(ArtifactCorrupt):
        FittedBooster.from_json(fitted.to_json(), bytes(trees))


def test_another_models_trees_are_refused(trained: Trained, make_rows: MakeRows) -> None:
    _, _, challenger = trained
    other = fit_booster(make_rows(3000, seed=1), CONFIG, interval="1h")
    body = to_bytes(challenger.model)

    with pytest.raises(ArtifactCorrupt):
        load(body, sha256_hex(body), other.ubjson)


def test_trees_in_memory_serve_every_model_that_names_them_and_no_other(
    trained: Trained, make_rows: MakeRows
) -> None:
    rows, fitted, challenger = trained
    isotonic = CONFIG.model_copy(update={"calibration": "isotonic"})
    made = fit_key(ModelKey("BTCUSDT", "1h", "all"), rows, fitted, isotonic, as_of=AS_OF)
    one, other = to_bytes(challenger.model), to_bytes(made.model)
    assert read_model(other, sha256_hex(other)) == made.model
    first = load(one, sha256_hex(one), fitted.ubjson)

    second = load(other, sha256_hex(other), first.booster)

    assert second.booster is first.booster
    assert np.array_equal(second.confidence(rows.features), made.predictor.confidence(rows.features))
    elsewhere = fit_booster(make_rows(3000, seed=1), CONFIG, interval="1h")
    for unknown in (load_booster(elsewhere.ubjson), load_booster(fitted.ubjson)):
        with pytest.raises(ArtifactCorrupt, match=f"are of None, not {fitted.sha256}"):
            load(other, sha256_hex(other), unknown)
    with pytest.raises(ArtifactCorrupt, match="as recorded"):
        load(other, sha256_hex(one), first.booster)


def test_a_predictor_says_what_it_takes_and_the_trees_once(trained: Trained) -> None:
    _, fitted, challenger = trained
    body = to_bytes(challenger.model)

    loaded = load(body, sha256_hex(body), fitted.ubjson)

    # No less than what is stored, and no more than a few times that.
    assert len(fitted.ubjson) <= loaded.booster_bytes <= 2 * len(fitted.ubjson)
    assert len(body) < loaded.model_bytes < 10 * len(body)
    assert loaded.size_bytes == loaded.model_bytes + loaded.booster_bytes
    assert challenger.predictor.size_bytes == loaded.size_bytes


def test_a_model_keeps_what_its_labels_meant_and_where_its_features_lay(trained: Trained) -> None:
    rows, fitted, challenger = trained
    labels = CONFIG.labels.model_copy(update={"horizon_bars": 7, "fee_bps": 3.0})
    config = CONFIG.model_copy(update={"labels": labels})
    made = fit_key(ModelKey("BTCUSDT", "1h", "all"), rows, fitted, config, as_of=AS_OF)

    found = from_bytes(to_bytes(replace(made.model, unfit_regimes=("volatile",))))

    assert found.labels == labels
    assert found.unfit_regimes == ("volatile",)
    assert challenger.model.labels == CONFIG.labels
    assert found.ranges.importance == fitted.importance
    # Made of the rows before the test span, nothing later.
    learned = rows.features[rows.close_time < fitted.times.test_start]
    assert found.ranges.centre == pytest.approx(learned.mean(axis=0), abs=0.02)
    assert found.ranges.spread == pytest.approx(learned.std(axis=0), abs=0.02)


def test_trees_of_other_features_are_refused(trained: Trained) -> None:
    _, fitted, challenger = trained
    renamed = replace(challenger.model, feature_names=tuple(reversed(fitted.feature_names)))
    body = to_bytes(renamed)

    with pytest.raises(ArtifactCorrupt, match="6 in order"):
        load(body, sha256_hex(body), fitted.ubjson)


def test_an_unknown_format_is_refused_with_both_versions(trained: Trained) -> None:
    value = json.loads(to_bytes(trained[2].model))
    assert value["format"] == FORMAT

    with pytest.raises(ArtifactCorrupt, match="model format 1; this code reads 2"):
        from_bytes(canonical_json(value | {"format": 1}))


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"[]", b"{}", b'{"format":2}', b'{"format":2,"key":["../"]}']
)
def test_bytes_that_are_no_model_are_refused(body: bytes) -> None:
    with pytest.raises(ArtifactCorrupt):
        from_bytes(body)


def test_verify_hands_matching_bytes_on() -> None:
    # sha256 of no bytes at all, as the standard's test vectors give it.
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

    assert verify(b"", empty) == b""


def test_margins_are_those_of_xgboosts_own_python(trained: Trained) -> None:
    table, _, challenger = trained
    rows = table.features[:500].copy()
    rows[::7, 3] = np.nan
    booster = challenger.predictor.booster
    expected = booster.inplace_predict(rows, predict_type="margin").astype(np.float64)
    np.testing.assert_array_equal(booster_margin(booster, rows), expected)
    alone = np.concatenate([booster_margin(booster, row[None]) for row in rows[:50]])
    np.testing.assert_array_equal(alone, expected[:50])
    with pytest.raises(ValueError, match=r"expected \(n, "):
        booster_margin(booster, rows[:, 1:])
