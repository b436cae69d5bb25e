"""Artifacts: what was written is what answers, or nothing does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from ml.artifact import FORMAT, from_bytes, load, sha256_hex, to_bytes, verify
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
