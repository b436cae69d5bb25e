"""Every option that changes what is learned: frozen, unknown fields refused, identified by its hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ml.errors import ConfigRejected

__all__ = [
    "DriftConfig",
    "EnsembleConfig",
    "FitConfig",
    "GateConfig",
    "LabelConfig",
    "LiveConfig",
    "ShadowConfig",
    "SplitConfig",
    "TrainingConfig",
    "canonical_json",
]


SCORES_SHARE: Final = 0.2
"""``ml.alarms.BUDGET_SHARES["scores"]``: the smallest of those whose null is one run of ``null_months``."""
NEVER: Final = 3.0
"""Upper 95 % bound of a Poisson mean of which nothing was seen (Hanley & Lippman-Hand, JAMA 249, 1983)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class LabelConfig(_Frozen):
    """The triple barrier (López de Prado, *Advances in Financial Machine Learning*, 2018, ch. 3)."""

    profit_take_atr: float = Field(1.0, gt=0, le=20)
    stop_loss_atr: float = Field(2.0, gt=0, le=20)
    horizon_bars: int = Field(12, ge=1, le=500, description="vertical barrier, in time, not rows")
    max_gap_bars: int = Field(2, ge=0, le=500, description="missing candles allowed inside one horizon")
    fee_bps: float = Field(10.0, ge=0, le=1000, description="per side, of notional")
    slippage_bps: float = Field(2.0, ge=0, le=1000, description="per side, of notional")


class SplitConfig(_Frozen):
    """Shares of the pooled rows in time order: fit, then calibrate, then test; the rest of 1 is fit."""

    calibrate_share: float = Field(0.15, gt=0, lt=0.5)
    test_share: float = Field(0.25, gt=0, lt=0.5)
    early_stop_share: float = Field(0.15, gt=0, lt=0.5, description="of the fit span, its newest part")
    embargo_bars: int = Field(12, ge=0, le=1000)
    min_fit_rows: int = Field(500, ge=50)
    min_calibrate_rows: int = Field(150, ge=30)
    min_test_rows: int = Field(200, ge=30)
    max_missing_candle_share: float = Field(0.05, ge=0, le=1)


class FitConfig(_Frozen):
    """XGBoost parameters; the mission's values are the ceiling, early stopping decides below it.

    The defaults below the ceiling were chosen on data before any test span: docs/learning.md.
    """

    n_estimators: int = Field(400, ge=1, le=400)
    max_depth: int = Field(5, ge=1, le=5)
    learning_rate: float = Field(0.02, gt=0, le=0.05)
    subsample: float = Field(0.5, gt=0, le=0.9)
    colsample_bytree: float = Field(0.5, gt=0, le=0.9)
    reg_lambda: float = Field(1.0, ge=0)
    min_child_weight: float = Field(50.0, ge=0, description="near 200 rows a leaf")
    max_bin: int = Field(256, ge=16, le=1024)
    early_stopping_rounds: int = Field(50, ge=1, le=400)
    recency_half_life_days: float = Field(1825.0, gt=0)
    max_missing_share: float = Field(0.2, ge=0, le=1, description="of a feature's values in the fit rows")
    seed: int = Field(7, ge=0)
    threads: int = Field(2, ge=1, le=64, description="part of the identity: sums depend on their order")


class LiveConfig(_Frozen):
    """What outcomes of live answers do to the fit: nothing, unless ``error_weight`` is over 0.

    Off by default: measured, it helped nobody (docs/learning.md, "Learning from live outcomes").
    """

    error_weight: float = Field(
        0.0, ge=0, le=1, description="1: a row's weight is proportional to the served squared error"
    )
    min_outcomes: int = Field(500, ge=1, description="served rows in the fit part; fewer change nothing")

    @property
    def weighs(self) -> bool:
        """Whether live outcomes are read at all."""
        return self.error_weight > 0


class GateConfig(_Frozen):
    """What a challenger must pass to become champion."""

    min_f1: float = Field(0.60, ge=0, le=1)
    min_precision: float = Field(0.58, ge=0, le=1)
    min_recall: float = Field(0.50, ge=0, le=1)
    rel_improvement_f1: float = Field(0.03, ge=0, le=1)
    max_feature_drift_ks: float = Field(0.15, ge=0, le=1)
    min_auc_lower: float = Field(0.5, ge=0, le=1)
    min_brier_skill_lower: float = Field(0.0, ge=-1, le=1)
    max_f1_loss: float = Field(
        0.01, ge=0, le=1, description="a challenger that is better by Brier and AUC may lose so much F1"
    )
    promotion_alpha: float = Field(
        0.10, gt=0, le=1, description="chance of an unjustified promotion of a key in alpha_days"
    )
    alpha_days: float = Field(90.0, ge=0, le=3650, description="0: every trial may spend promotion_alpha")
    slice_alpha: float = Field(
        0.05, ge=0, lt=1, description="chance that a sound challenger fails for a pattern's slice; 0: never"
    )
    min_slice_rows: int = Field(100, ge=30, description="of a pattern, to be looked at by itself")


class ShadowConfig(_Frozen):
    """Whether a challenger that passed its gates first answers in shadow; off while both are 0."""

    signals: int = Field(0, ge=0, le=100_000, description="matured outcomes asked for")
    days: float = Field(0.0, ge=0, le=365, description="the decision is taken after so long at the latest")

    @property
    def on(self) -> bool:
        """Whether there is a shadow phase."""
        return self.signals > 0 or self.days > 0


class EnsembleConfig(_Frozen):
    """An average of fits on ever shorter spans, each ending where the fit part ends; off with one member."""

    members: int = Field(1, ge=1, le=8)
    span_ratio: float = Field(0.5, gt=0, lt=1, description="member i learns from this share to the power i")


class DriftConfig(_Frozen):
    """What drift checks compare, and how often they may be wrong. See ml/drift.py."""

    window_rows: int = Field(
        250, ge=200, le=1000, description="newest signals of the regime; with fewer these are not checked"
    )
    window_days: float = Field(
        180.0, gt=0, le=3650, description="older signals are no part of the current sample"
    )
    block_days: float = Field(14.0, gt=0, le=365, description="of the block bootstrap of the null")
    null_months: int = Field(120, ge=12, le=1200, description="simulated to calibrate the alarms")
    false_retrainings_per_month: float = Field(
        1.0, gt=0, le=30, description="a key's budget, high and critical alarms of all kinds together"
    )
    cooldown_days: float = Field(
        7.0, ge=0, le=365, description="after a retraining a key is left alone so long"
    )

    @model_validator(mode="after")
    def _budget_can_be_reached(self) -> Self:
        """What never happened in so many months may still happen 3 / months a month, at 95 %."""
        smallest = SCORES_SHARE * self.false_retrainings_per_month
        if NEVER / self.null_months > smallest:
            raise ValueError(
                f"drift.null_months {self.null_months} can show no rate under {NEVER / self.null_months:.3g} "
                f"a month, and drift.false_retrainings_per_month {self.false_retrainings_per_month:g} leaves "
                f"{smallest:.3g} to the scores: at least {math.ceil(NEVER / smallest)} months are needed"
            )
        return self


class TrainingConfig(_Frozen):
    """All of it. ``pool`` says whose rows the fit learns from; see docs/learning.md."""

    pool: Literal["key", "symbol", "all"] = "all"
    calibration: Literal["sigmoid", "isotonic"] = "sigmoid"
    threshold_margin: float = Field(
        0.02,
        ge=0,
        le=0.2,
        description="kept over the precision and recall gates when the threshold is chosen",
    )
    bootstrap_samples: int = Field(1000, ge=100, le=20_000)
    labels: LabelConfig = LabelConfig()
    split: SplitConfig = SplitConfig()
    fit: FitConfig = FitConfig()
    gates: GateConfig = GateConfig()
    live: LiveConfig = LiveConfig()
    shadow: ShadowConfig = ShadowConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    drift: DriftConfig = DriftConfig()

    @model_validator(mode="after")
    def _shares_leave_a_fit_span(self) -> Self:
        if self.split.calibrate_share + self.split.test_share > 0.8:
            raise ValueError("split.calibrate_share + split.test_share must be at most 0.8")
        return self

    @classmethod
    def from_mapping(cls, options: Mapping[str, object]) -> TrainingConfig:
        """Build from plain values (a setting, a JSON column).

        Raises:
            ConfigRejected: an unknown or out-of-range option; names the first one.
        """
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in ("training", *first["loc"]))
            raise ConfigRejected(field, first.get("input"), first["msg"]) from error

    def digest(self) -> str:
        """sha256 of the canonical JSON of every option, in hex.

        ``live`` and ``ensemble`` count only where they are on: what was trained before they existed is what
        is trained without them. ``shadow`` and ``drift`` change nothing that is learned.
        """
        unused = {"shadow", "drift"}
        unused |= set() if self.live.weighs else {"live"}
        unused |= set() if self.ensemble.members > 1 else {"ensemble"}
        return _digest(self.model_dump(mode="json", exclude=unused))

    def fit_digest(self) -> str:
        """sha256 of the options that change the shared fit, so that gates may change without refitting."""
        changing = {"pool", "labels", "split", "fit"} | ({"live"} if self.live.weighs else set())
        return _digest(self.model_dump(mode="json", include=changing))


def canonical_json(value: object) -> bytes:
    """The one way to write ``value`` as JSON: sorted keys, no spaces, ASCII; equal values give equal bytes.

    Raises:
        ValueError: NaN or an infinity.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
