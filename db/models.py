"""The tables: types, keys, checks and an index for each query that the system makes.

Time-series tables (migration 0003 lists them) have their time in every unique key, and nothing refers
to them by a foreign key: TimescaleDB allows neither otherwise. Triggers and storage
options live in the migrations. Times are ``timestamptz``; rows carry the data's time (``as_of``, the
clock of ``runtime/clock.py``), leases the server's own.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Numeric,
    Sequence,
    SmallInteger,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, Json, Keyed, key_checks, one_of, series_checks, share
from ml.keys import MODEL_REGIMES

__all__ = [
    "FENCING_TOKENS",
    "FINISHED_STATES",
    "Artifact",
    "AuditEntry",
    "CandleRow",
    "CandleSeries",
    "EvaluationRow",
    "KeyRow",
    "ModelRow",
    "Prediction",
    "TrainingJob",
]

FINISHED_STATES: Final = ("succeeded", "refused", "failed", "superseded")
JOB_STATES: Final = ("queued", "running", *FINISHED_STATES)
MODEL_STATES: Final = ("candidate", "shadow", "champion", "archived", "rejected")

FENCING_TOKENS = Sequence("ml_fencing_token_seq", data_type=BigInteger, metadata=Base.metadata)
"""Every claim of a job draws the next: a later token always belongs to a later claim."""


class CandleRow(Base):
    """One version of one candle. Rows are only ever added: a correction is a row known later."""

    __tablename__ = "candles"
    symbol: Mapped[str] = mapped_column(primary_key=True)
    interval: Mapped[str] = mapped_column(primary_key=True)
    open_time: Mapped[datetime] = mapped_column(primary_key=True)
    known_at: Mapped[datetime] = mapped_column(primary_key=True)
    open: Mapped[float]
    high: Mapped[float]
    low: Mapped[float]
    close: Mapped[float]
    volume: Mapped[float]
    source: Mapped[str]
    __table_args__ = (
        *series_checks(),
        # NaN and infinity are not below infinity in PostgreSQL, so these refuse both.
        *(
            CheckConstraint(f"{price} > 0 AND {price} < 'infinity'", name=price)
            for price in ("open", "high", "low", "close")
        ),
        CheckConstraint("volume >= 0 AND volume < 'infinity'", name="volume"),
        CheckConstraint("high >= low", name="high_low"),
        CheckConstraint("known_at > open_time", name="known_at"),
        Index("ix_candles_known", "symbol", "interval", "known_at"),
    )


class CandleSeries(Base):
    """What ``candles`` holds of one symbol and interval, kept by ``db.candles.write``.

    A count over a million candles takes longer than a query may; and the row's lock is what puts
    the writers of one series in line.
    """

    __tablename__ = "candle_series"
    symbol: Mapped[str] = mapped_column(primary_key=True)
    interval: Mapped[str] = mapped_column(primary_key=True)
    sources: Mapped[list[str]]
    rows: Mapped[int] = mapped_column(BigInteger)
    revisions: Mapped[int] = mapped_column(BigInteger)
    first_open: Mapped[datetime]
    last_open: Mapped[datetime]
    content: Mapped[Decimal] = mapped_column(Numeric)
    """Sum of ``hash_record_extended`` over the rows: any part of it can be taken away again."""
    __table_args__ = (*series_checks(),)


class Artifact(Base):
    """Bytes under their own sha256."""

    __tablename__ = "ml_model_artifacts"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    address: Mapped[str | None] = mapped_column(unique=True)
    """Content address of a shared fit's inputs; leads from data and options to the bytes they gave."""
    body: Mapped[bytes]
    size: Mapped[int] = mapped_column(BigInteger)
    details: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256"),
        one_of("kind", ("booster", "model")),
        CheckConstraint("size = octet_length(body) AND size > 0", name="size"),
    )


class ModelRow(Keyed, Base):
    """The registry: every model ever trained, with its state and the reasons for it."""

    __tablename__ = "ml_models"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    version: Mapped[int]
    state: Mapped[str]
    artifact_sha256: Mapped[str] = mapped_column(ForeignKey(Artifact.sha256))
    booster_sha256: Mapped[str] = mapped_column(ForeignKey(Artifact.sha256))
    job_id: Mapped[str | None]
    as_of: Mapped[datetime]
    data_cut: Mapped[datetime]
    config: Mapped[Json]
    config_digest: Mapped[str]
    metrics: Mapped[Json]
    decision: Mapped[Json]
    details: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    shadow_at: Mapped[datetime | None]
    """When it began to answer in shadow, as a candidate."""
    promoted_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]
    replaces_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("ml_models.id"))
    """The champion that this one took the place of, when it was last promoted."""
    __table_args__ = (
        *key_checks(),
        one_of("state", MODEL_STATES),
        CheckConstraint("version > 0", name="version"),
        CheckConstraint("(state <> 'champion') OR (promoted_at IS NOT NULL)", name="promoted"),
        UniqueConstraint("symbol", "interval", "regime", "version", name="uq_ml_models_version"),
        UniqueConstraint("symbol", "interval", "regime", "artifact_sha256", name="uq_ml_models_artifact"),
        Index(
            "uq_ml_models_champion",
            "symbol",
            "interval",
            "regime",
            unique=True,
            postgresql_where=text("state = 'champion'"),
        ),
        Index("ix_ml_models_created", text("created_at DESC")),
    )


class KeyRow(Keyed, Base):
    """What an operator, or the system, said about one key at run time."""

    __tablename__ = "ml_keys"
    symbol: Mapped[str] = mapped_column(primary_key=True)
    interval: Mapped[str] = mapped_column(primary_key=True)
    regime: Mapped[str] = mapped_column(primary_key=True)
    added_at: Mapped[datetime | None]
    """Added at run time: its candles are kept up to date."""
    added_by: Mapped[str | None]
    frozen_at: Mapped[datetime | None]
    """Its champion is changed by people only, until it is thawed."""
    frozen_by: Mapped[str | None]
    frozen_why: Mapped[str | None]
    __table_args__ = (
        *key_checks(),
        CheckConstraint("(added_at IS NULL) = (added_by IS NULL)", name="added"),
        CheckConstraint(
            "(frozen_at IS NULL) = (frozen_by IS NULL) AND (frozen_at IS NULL) = (frozen_why IS NULL)",
            name="frozen",
        ),
    )


class TrainingJob(Keyed, Base):
    """A training from queued to its end. Its lease, not the broker's message, says who may write."""

    __tablename__ = "ml_training_jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    """Also the Celery task's id."""
    reason: Mapped[str]
    requested_by: Mapped[str]
    as_of: Mapped[datetime]
    state: Mapped[str] = mapped_column(server_default="queued")
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    """Runs whose lease ran out."""
    max_attempts: Mapped[int] = mapped_column(SmallInteger, server_default="3")
    queued_at: Mapped[datetime]
    enqueued_at: Mapped[datetime | None]
    """When a message was last sent to the broker; NULL asks the sweep to send one."""
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    owner: Mapped[str | None]
    fencing_token: Mapped[int | None] = mapped_column(BigInteger)
    heartbeat_at: Mapped[datetime | None]
    lease_expires_at: Mapped[datetime | None]
    stage: Mapped[str | None]
    progress: Mapped[float] = mapped_column(server_default="0")
    stages: Mapped[list[Json]] = mapped_column(server_default=text("'[]'"))
    """In order: ``{"stage", "started_at", "seconds", "rows"}``."""
    outcome: Mapped[Json | None]
    model_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey(ModelRow.id))
    superseded_by: Mapped[str | None] = mapped_column(ForeignKey("ml_training_jobs.id"))
    fit_address: Mapped[str | None]
    """Content address of the shared fit that this run makes: no other run makes it meanwhile."""
    __table_args__ = (
        *key_checks(),
        one_of("state", JOB_STATES),
        share("progress"),
        CheckConstraint("length(id) BETWEEN 1 AND 155", name="id"),
        CheckConstraint("attempts BETWEEN 0 AND max_attempts", name="attempts"),
        CheckConstraint("(state = 'running') = (lease_expires_at IS NOT NULL)", name="lease"),
        CheckConstraint(
            "state <> 'running' OR (fencing_token IS NOT NULL AND owner IS NOT NULL)", name="owner"
        ),
        CheckConstraint("(state IN ('queued', 'running')) = (finished_at IS NULL)", name="finished"),
        Index(
            "uq_ml_training_jobs_running",
            "symbol",
            "interval",
            "regime",
            unique=True,
            postgresql_where=text("state = 'running'"),
        ),
        Index(
            "uq_ml_training_jobs_fit",
            "fit_address",
            unique=True,
            postgresql_where=text("state = 'running'"),
        ),
        Index("ix_ml_training_jobs_lease", "lease_expires_at", postgresql_where=text("state = 'running'")),
        Index("ix_ml_training_jobs_unsent", "enqueued_at", postgresql_where=text("state = 'queued'")),
        Index("ix_ml_training_jobs_queued", text("queued_at DESC")),
        Index("ix_ml_training_jobs_key", "symbol", "interval", "regime", text("queued_at DESC")),
        Index("ix_ml_training_jobs_state", "state", text("queued_at DESC")),
    )


class EvaluationRow(Keyed, Base):
    """One judgement of one model on rows it had not seen. The history of every decision."""

    __tablename__ = "ml_eval_history"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    as_of: Mapped[datetime] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(BigInteger, ForeignKey(ModelRow.id))
    kind: Mapped[str]
    job_id: Mapped[str | None]
    champion_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey(ModelRow.id))
    """The champion it was held against."""
    rows: Mapped[int]
    base_rate: Mapped[float | None]
    f1: Mapped[float | None]
    precision: Mapped[float | None]
    recall: Mapped[float | None]
    auc: Mapped[float | None]
    brier: Mapped[float | None]
    brier_skill: Mapped[float | None]
    net_return_atr: Mapped[float | None]
    metrics: Mapped[Json]
    """Everything, with intervals."""
    promote: Mapped[bool | None]
    decision: Mapped[Json | None]
    """Gates with value and limit, reasons."""
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        *key_checks(),
        one_of("kind", ("challenger", "champion", "shadow", "live")),
        *(share(name) for name in ("base_rate", "f1", "precision", "recall", "auc", "brier")),
        CheckConstraint("rows >= 0", name="rows"),
        UniqueConstraint("job_id", "model_id", "kind", "as_of", name="uq_ml_eval_history_once"),
        Index("ix_ml_eval_history_key", "symbol", "interval", "regime", text("as_of DESC")),
        Index("ix_ml_eval_history_model", "model_id", text("as_of DESC")),
    )


class Prediction(Keyed, Base):
    """One answer given, all that is needed to make it again, and what became of it."""

    __tablename__ = "ml_performance_tracking"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    signal_time: Mapped[datetime] = mapped_column(primary_key=True)
    """Close of the signal's candle."""
    signal_id: Mapped[str | None]
    """The caller's own name for the signal."""
    as_of: Mapped[datetime]
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())
    model_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey(ModelRow.id))
    served_regime: Mapped[str | None]
    """Regime of the model that answered; differs from ``regime`` where the fallback did."""
    role: Mapped[str] = mapped_column(server_default="champion")
    direction: Mapped[int] = mapped_column(SmallInteger)
    patterns: Mapped[list[str]]
    pattern_confidence: Mapped[float | None]
    confidence: Mapped[float | None]
    decision: Mapped[str]
    abstain_reason: Mapped[str | None]
    expected_net_return_atr: Mapped[float | None]
    out_of_distribution: Mapped[float | None]
    model_age_seconds: Mapped[float | None]
    latency_ms: Mapped[float | None]
    features: Mapped[bytes | None]
    """float32, little endian, in the artifact's order."""
    entry_price: Mapped[float | None]
    atr: Mapped[float | None]
    horizon_end: Mapped[datetime]
    """The vertical barrier: no later than this is the outcome known."""
    label: Mapped[float | None]
    label_end: Mapped[datetime | None]
    net_return_atr: Mapped[float | None]
    resolved_at: Mapped[datetime | None]
    details: Mapped[Json] = mapped_column("metadata", server_default=text("'{}'"))
    __table_args__ = (
        *key_checks(),
        one_of("decision", ("accept", "reject", "abstain")),
        one_of("role", ("champion", "shadow")),
        one_of("served_regime", MODEL_REGIMES),
        CheckConstraint("direction IN (-1, 1)", name="direction"),
        CheckConstraint("label IN (0, 1)", name="label"),
        CheckConstraint("(label IS NULL) OR (label_end IS NOT NULL)", name="label_end"),
        CheckConstraint("(decision = 'abstain') = (abstain_reason IS NOT NULL)", name="abstain_reason"),
        *(share(name) for name in ("confidence", "pattern_confidence")),
        Index("ix_ml_performance_tracking_key", "symbol", "interval", "regime", text("signal_time DESC")),
        Index(
            "ix_ml_performance_tracking_decision",
            "symbol",
            "interval",
            "regime",
            "decision",
            text("signal_time DESC"),
            postgresql_where=text("decision <> 'reject'"),
        ),
        Index("ix_ml_performance_tracking_model", "model_id", text("signal_time DESC")),
        Index(
            "ix_ml_performance_tracking_shadow",
            "model_id",
            text("(metadata ->> 'of')"),
            postgresql_where=text("role = 'shadow'"),
        ),
        Index("ix_ml_performance_tracking_open", "horizon_end", postgresql_where=text("resolved_at IS NULL")),
    )


class AuditEntry(Base):
    """Who did what and why; each row holds the hash of the one before. Triggers refuse any change."""

    __tablename__ = "ml_audit_log"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    action: Mapped[str]
    actor: Mapped[str]
    subject: Mapped[str]
    why: Mapped[str]
    details: Mapped[Json]
    prev_hash: Mapped[str] = mapped_column(unique=True)
    """The hash of row ``id - 1``. Unique, so that the chain cannot fork."""
    hash: Mapped[str] = mapped_column(unique=True)
    hmac: Mapped[str | None]
    __table_args__ = (
        CheckConstraint("id > 0", name="id"),
        *(
            CheckConstraint(f"{column} ~ '^[0-9a-f]{{64}}$'", name=column)
            for column in ("prev_hash", "hash", "hmac")
        ),
        Index("ix_ml_audit_log_subject", "subject", text("id DESC")),
        Index("ix_ml_audit_log_artifact", text("(details ->> 'artifact_sha256')")),
    )
