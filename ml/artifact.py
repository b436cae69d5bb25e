"""What is stored of a model, and how it is read again: canonical JSON and XGBoost's UBJSON. Never pickle.

A model's JSON names its booster's sha256, so the model's own sha256 covers both; many keys share one booster.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ml.calibration import Calibration, ReturnBins, Threshold, calibration_from_json
from ml.config import LabelConfig, canonical_json
from ml.errors import ArtifactCorrupt
from ml.keys import ModelKey
from ml.novelty import FeatureRanges

if TYPE_CHECKING:
    from xgboost import Booster

__all__ = [
    "FORMAT",
    "Model",
    "Predictor",
    "attach",
    "booster_margin",
    "from_bytes",
    "library_versions",
    "load",
    "load_booster",
    "read_model",
    "sha256_hex",
    "to_bytes",
    "verify",
]

LIBRARIES = ("numpy", "scipy", "scikit-learn", "TA-Lib", "xgboost-cpu")
_INTERFACE = b'{"data": [%d, true], "shape": [%d, %d], "typestr": "<f4", "version": 3}'
"""An array as NumPy's ``__array_interface__`` describes it."""
_MARGIN = json.dumps(
    {
        "type": 1,  # margin
        "training": False,
        "iteration_begin": 0,
        "iteration_end": 0,  # every tree
        "missing": math.nan,
        "strict_shape": False,
        "cache_id": 0,
    }
).encode()

FORMAT = 2
"""Version of the JSON: a reader refuses any other."""

BOOSTER_MEMORY, MODEL_MEMORY = 1.2, 5.0
"""Resident memory over stored length: the growth of a process that loaded 200 boosters of 28 to 575 KB (1.06
to 1.20 by size) and 500 models of 11 KB (4.9) with XGBoost 3.2 and CPython 3.11 on Linux."""

_LENGTH, _SHA256 = "ubjson_bytes", "ubjson_sha256"
"""Notes that a loaded booster carries about the bytes it came from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One key's model: everything that answering needs but the trees, which ``booster_sha256`` names."""

    key: ModelKey
    as_of: datetime
    """The data cut: nothing known later went in. Aware, UTC."""
    pool: str
    """Whose rows the trees grew on: key, symbol or all."""
    booster_sha256: str
    feature_names: tuple[str, ...]
    labels: LabelConfig
    """What a hit means: barriers, horizon and costs of the outcomes that it learned from."""
    ranges: FeatureRanges
    """Of the key's own rows that it learned from; see ``ml.novelty``."""
    calibration: Calibration
    threshold: Threshold
    return_bins: ReturnBins
    pattern_hit_rates: Mapping[str, float]
    """The patterns' own confidence as of ``as_of``, for live signals."""
    base_rate: float
    """Share of hits among the key's rows whose outcome was known before the test span."""
    unfit_regimes: tuple[str, ...]
    """Regimes for which this model must not answer as the fallback; empty but for a key of ``all``."""
    spans: Mapping[str, str]
    """Where the early-stop, calibrate and test parts begin; ISO-8601, UTC."""
    rows: Mapping[str, int]
    """The key's own rows in each part."""
    config_digest: str
    libraries: Mapping[str, str]
    """Versions under which the same bytes come out again."""


def to_bytes(model: Model) -> bytes:
    """Canonical JSON: equal models give equal bytes.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    body = {field.name: getattr(model, field.name) for field in fields(model)}
    body |= {
        "format": FORMAT,
        "key": [model.key.symbol, model.key.interval, model.key.regime],
        "as_of": model.as_of.isoformat(),
        "calibration": model.calibration.to_json(),
        "threshold": model.threshold.to_json(),
        "return_bins": model.return_bins.to_json(),
        "labels": model.labels.model_dump(mode="json"),
        "ranges": model.ranges.to_json(),
    }
    return canonical_json(body)


def from_bytes(body: bytes) -> Model:
    """The inverse of ``to_bytes``; check the sha256 first (``verify``).

    Raises:
        ArtifactCorrupt: not a model, or one of another format version.
    """
    try:
        value: dict[str, Any] = json.loads(body)
        version = value.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactCorrupt(
            f"{len(body)} bytes are no model's JSON: {error!r}; restore the artifact"
        ) from error
    if version != FORMAT:
        raise ArtifactCorrupt(
            f"model format {version!r}; this code reads {FORMAT}: use the code that wrote it"
        )
    try:
        return Model(
            **value
            | {
                "key": ModelKey(*value["key"]),
                "as_of": datetime.fromisoformat(value["as_of"]),
                "feature_names": tuple(value["feature_names"]),
                "calibration": calibration_from_json(value["calibration"]),
                "threshold": Threshold(**value["threshold"]),
                "return_bins": ReturnBins.from_json(value["return_bins"]),
                "labels": LabelConfig.model_validate(value["labels"]),
                "ranges": FeatureRanges.from_json(value["ranges"]),
                "unfit_regimes": tuple(value["unfit_regimes"]),
            }
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactCorrupt(f"a part of the model's JSON is missing or wrong: {error!r}") from error


@cache
def library_versions() -> dict[str, str]:
    """Versions of what the numbers depend on; not to be changed."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def sha256_hex(body: bytes) -> str:
    """Lower-case hex sha256 of ``body``."""
    return hashlib.sha256(body).hexdigest()


def verify(body: bytes, sha256: str) -> bytes:
    """Return ``body`` if its sha256 is ``sha256``.

    Raises:
        ArtifactCorrupt: it is not.
    """
    found = sha256_hex(body)
    if found != sha256:
        raise ArtifactCorrupt(
            f"{len(body)} bytes have sha256 {found}, not {sha256} as recorded; restore them or train again"
        )
    return body


class Predictor:
    """A model with its trees in memory. Many share one booster, so that their sizes are told apart."""

    def __init__(self, model: Model, booster: Booster, *, json_bytes: int | None = None) -> None:
        self.model = model
        self.booster = booster
        length = len(to_bytes(model)) if json_bytes is None else json_bytes
        self.model_bytes = int(MODEL_MEMORY * length)
        """Memory of the model without its trees: an estimate."""

    @property
    def booster_bytes(self) -> int:
        """Memory of the trees, an estimate; 0 for those that did not come from ``load_booster``."""
        return int(BOOSTER_MEMORY * int(self.booster.attr(_LENGTH) or 0))

    @property
    def size_bytes(self) -> int:
        """Memory of both."""
        return self.model_bytes + self.booster_bytes

    def margin(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) raw log-odds of features (n, F); NaN takes each split's default side."""
        return booster_margin(self.booster, features)

    def confidence(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) calibrated probabilities of features (n, F), columns as ``model.feature_names``."""
        return self.model.calibration.confidence(self.margin(features))


def read_model(model_body: bytes, model_sha256: str) -> Model:
    """A model without its trees: enough to learn which ones it needs.

    Raises:
        ArtifactCorrupt: the sha256 does not match, or the format is unknown.
    """
    return from_bytes(verify(model_body, model_sha256))


def load(model_body: bytes, model_sha256: str, booster: bytes | Booster) -> Predictor:
    """Check a model's bodies and make them answer.

    Args:
        model_body: from ``to_bytes``.
        model_sha256: recorded when the model was judged.
        booster: the UBJSON that the model names, or another predictor's trees, which come from the same.

    Raises:
        ArtifactCorrupt: a sha256 does not match, the format is unknown, or the trees are of other features.
    """
    return attach(read_model(model_body, model_sha256), booster, json_bytes=len(model_body))


def attach(model: Model, booster: bytes | Booster, *, json_bytes: int | None = None) -> Predictor:
    """Give a model its trees; ``load`` where the model has been read already.

    Args:
        model: from ``read_model``.
        booster: as for ``load``.
        json_bytes: length of the model's stored form, if known.

    Raises:
        ArtifactCorrupt: the trees are not those that the model names, or are of other features.
    """
    if isinstance(booster, bytes):
        booster = load_booster(verify(booster, model.booster_sha256))
        booster.set_attr(**{_SHA256: model.booster_sha256})
    elif booster.attr(_SHA256) != model.booster_sha256:
        raise ArtifactCorrupt(
            f"the trees in memory are of {booster.attr(_SHA256)}, not {model.booster_sha256}; load them"
        )
    if tuple(booster.feature_names or ()) != model.feature_names:
        raise ArtifactCorrupt(
            f"the booster's features are not the model's {len(model.feature_names)} in order; restore it"
        )
    return Predictor(model, booster, json_bytes=json_bytes)


def load_booster(ubjson: bytes) -> Booster:
    """Trees from verified UBJSON. One thread: handing a few rows to more costs more than it saves.

    Reading them too: on a busy machine of two cores 575 KB took 26 ms with a thread a core, 4 ms with one.

    Raises:
        ArtifactCorrupt: this version of xgboost cannot read them.
    """
    import xgboost

    try:
        with xgboost.config_context(nthread=1):
            booster = xgboost.Booster({"nthread": 1})
            booster.load_model(bytearray(ubjson))
    except xgboost.core.XGBoostError as error:
        raise ArtifactCorrupt(
            f"xgboost {xgboost.__version__} cannot read these trees: {error}; use the version that wrote them"
        ) from error
    booster.set_attr(**{_LENGTH: str(len(ubjson))})
    return booster


def booster_margin(booster: Booster, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) log-odds of features (n, F): float32 sums of leaves, widened, the same in a batch and alone.

    By the C function that ``Booster.inplace_predict`` calls, XGBoosterPredictFromDense of XGBoost's C API:
    for one row the way to it in Python takes longer (0.1 ms) than the trees do.
    """
    rows = np.ascontiguousarray(features, np.float32)
    if rows.ndim != 2 or rows.shape[1] != booster.num_features():
        raise ValueError(f"features of shape {rows.shape}; expected (n, {booster.num_features()})")
    if not len(rows):
        return np.empty(0)
    interface = _INTERFACE % (rows.ctypes.data, *rows.shape)
    shape, dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
    margins = ctypes.POINTER(ctypes.c_float)()
    failed = _library().XGBoosterPredictFromDense(
        booster.handle,
        interface,
        _MARGIN,
        None,
        ctypes.byref(shape),
        ctypes.byref(dimensions),
        ctypes.byref(margins),
    )
    if failed:
        raise RuntimeError("XGBoosterPredictFromDense failed")
    # The buffer is XGBoost's own, until its next prediction in this thread.
    return np.ctypeslib.as_array(margins, (len(rows),)).astype(np.float64)


@cache
def _library() -> ctypes.CDLL:
    """The library that xgboost has loaded."""
    from xgboost.libpath import find_lib_path

    return ctypes.CDLL(find_lib_path()[0])
