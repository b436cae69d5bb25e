"""Every table, with its checks, keys and indexes."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("CREATE SEQUENCE ml_fencing_token_seq AS bigint")
    op.create_table(
        "candle_series",
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("sources", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("revisions", sa.BigInteger(), nullable=False),
        sa.Column("first_open", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_open", sa.DateTime(timezone=True), nullable=False),
        sa.Column("content", sa.Numeric(), nullable=False),
        sa.CheckConstraint(
            "interval IN ('1m', '5m', '15m', '30m', '1h', '4h', '1d')", name=op.f("ck_candle_series_interval")
        ),
        sa.CheckConstraint("symbol ~ '^[A-Z0-9]{2,24}$'", name=op.f("ck_candle_series_symbol")),
        sa.PrimaryKeyConstraint("symbol", "interval", name=op.f("pk_candle_series")),
    )
    op.create_table(
        "candles",
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("open_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("known_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("open", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("close", sa.Double(), nullable=False),
        sa.Column("volume", sa.Double(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.CheckConstraint("close > 0 AND close < 'infinity'", name=op.f("ck_candles_close")),
        sa.CheckConstraint("high > 0 AND high < 'infinity'", name=op.f("ck_candles_high")),
        sa.CheckConstraint(
            "interval IN ('1m', '5m', '15m', '30m', '1h', '4h', '1d')", name=op.f("ck_candles_interval")
        ),
        sa.CheckConstraint("low > 0 AND low < 'infinity'", name=op.f("ck_candles_low")),
        sa.CheckConstraint("open > 0 AND open < 'infinity'", name=op.f("ck_candles_open")),
        sa.CheckConstraint("symbol ~ '^[A-Z0-9]{2,24}$'", name=op.f("ck_candles_symbol")),
        sa.CheckConstraint("volume >= 0 AND volume < 'infinity'", name=op.f("ck_candles_volume")),
        sa.CheckConstraint("high >= low", name=op.f("ck_candles_high_low")),
        sa.CheckConstraint("known_at > open_time", name=op.f("ck_candles_known_at")),
        sa.PrimaryKeyConstraint("symbol", "interval", "open_time", "known_at", name=op.f("pk_candles")),
    )
    op.create_index("ix_candles_known", "candles", ["symbol", "interval", "known_at"], unique=False)
    op.create_table(
        "ml_audit_log",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("prev_hash", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("hmac", sa.Text(), nullable=True),
        sa.CheckConstraint("hash ~ '^[0-9a-f]{64}$'", name=op.f("ck_ml_audit_log_hash")),
        sa.CheckConstraint("hmac ~ '^[0-9a-f]{64}$'", name=op.f("ck_ml_audit_log_hmac")),
        sa.CheckConstraint("prev_hash ~ '^[0-9a-f]{64}$'", name=op.f("ck_ml_audit_log_prev_hash")),
        sa.CheckConstraint("id > 0", name=op.f("ck_ml_audit_log_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ml_audit_log")),
        sa.UniqueConstraint("hash", name=op.f("uq_ml_audit_log_hash")),
        sa.UniqueConstraint("prev_hash", name=op.f("uq_ml_audit_log_prev_hash")),
    )
    op.create_index(
        "ix_ml_audit_log_artifact",
        "ml_audit_log",
        [sa.literal_column("(details ->> 'artifact_sha256')")],
        unique=False,
    )
    op.create_index(
        "ix_ml_audit_log_subject", "ml_audit_log", ["subject", sa.literal_column("id DESC")], unique=False
    )
    op.create_table(
        "ml_drift_details",
        sa.Column("alert_id", sa.Uuid(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ks", sa.Double(), nullable=False),
        sa.Column("p_value", sa.Double(), nullable=True),
        sa.Column("population_stability_index", sa.Double(), nullable=True),
        sa.Column("importance", sa.Double(), nullable=False),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.CheckConstraint("ks BETWEEN 0 AND 1", name=op.f("ck_ml_drift_details_ks")),
        sa.CheckConstraint("p_value BETWEEN 0 AND 1", name=op.f("ck_ml_drift_details_p_value")),
        sa.PrimaryKeyConstraint("alert_id", "feature", "as_of", name=op.f("pk_ml_drift_details")),
    )
    op.create_table(
        "ml_drift_thresholds",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("regime", sa.Text(), nullable=False),
        sa.Column("ks", sa.Double(), server_default="0.15", nullable=False),
        sa.Column("population_stability_index", sa.Double(), server_default="0.25", nullable=False),
        sa.Column("low", sa.Double(), server_default="0.10", nullable=False),
        sa.Column("medium", sa.Double(), server_default="0.15", nullable=False),
        sa.Column("high", sa.Double(), server_default="0.20", nullable=False),
        sa.Column("critical", sa.Double(), server_default="0.30", nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("changed_by", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "0 < low AND low < medium AND medium < high AND high < critical AND critical < 'infinity'",
            name=op.f("ck_ml_drift_thresholds_severities"),
        ),
        sa.CheckConstraint(
            "interval IN ('*', '1m', '5m', '15m', '30m', '1h', '4h', '1d')",
            name=op.f("ck_ml_drift_thresholds_interval"),
        ),
        sa.CheckConstraint(
            "regime IN ('*', 'trending', 'sideways', 'volatile', 'consolidation', 'all')",
            name=op.f("ck_ml_drift_thresholds_regime"),
        ),
        sa.CheckConstraint(
            "symbol = '*' OR symbol ~ '^[A-Z0-9]{2,24}$'", name=op.f("ck_ml_drift_thresholds_symbol")
        ),
        sa.CheckConstraint("ks BETWEEN 0 AND 1", name=op.f("ck_ml_drift_thresholds_ks")),
        sa.CheckConstraint(
            "population_stability_index > 0", name=op.f("ck_ml_drift_thresholds_population_stability_index")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ml_drift_thresholds")),
    )
    op.create_index(
        "uq_ml_drift_thresholds_current",
        "ml_drift_thresholds",
        ["symbol", "interval", "regime"],
        unique=True,
        postgresql_where=sa.text("valid_until IS NULL"),
    )
    op.create_table(
        "ml_model_artifacts",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('booster', 'model')", name=op.f("ck_ml_model_artifacts_kind")),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name=op.f("ck_ml_model_artifacts_sha256")),
        sa.CheckConstraint("size = octet_length(body) AND size > 0", name=op.f("ck_ml_model_artifacts_size")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_ml_model_artifacts")),
        sa.UniqueConstraint("address", name=op.f("uq_ml_model_artifacts_address")),
    )
    op.create_table(
        "ml_models",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("artifact_sha256", sa.Text(), nullable=False),
        sa.Column("booster_sha256", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data_cut", sa.DateTime(timezone=True), nullable=False),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("config_digest", sa.Text(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("decision", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("replaces_id", sa.BigInteger(), nullable=True),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("regime", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(state <> 'champion') OR (promoted_at IS NOT NULL)", name=op.f("ck_ml_models_promoted")
        ),
        sa.CheckConstraint(
            "interval IN ('1m', '5m', '15m', '30m', '1h', '4h', '1d')", name=op.f("ck_ml_models_interval")
        ),
        sa.CheckConstraint(
            "regime IN ('trending', 'sideways', 'volatile', 'consolidation', 'all')",
            name=op.f("ck_ml_models_regime"),
        ),
        sa.CheckConstraint(
            "state IN ('candidate', 'shadow', 'champion', 'archived', 'rejected')",
            name=op.f("ck_ml_models_state"),
        ),
        sa.CheckConstraint("symbol ~ '^[A-Z0-9]{2,24}$'", name=op.f("ck_ml_models_symbol")),
        sa.CheckConstraint("version > 0", name=op.f("ck_ml_models_version")),
        sa.ForeignKeyConstraint(
            ["artifact_sha256"],
            ["ml_model_artifacts.sha256"],
            name=op.f("fk_ml_models_artifact_sha256_ml_model_artifacts"),
        ),
        sa.ForeignKeyConstraint(
            ["booster_sha256"],
            ["ml_model_artifacts.sha256"],
            name=op.f("fk_ml_models_booster_sha256_ml_model_artifacts"),
        ),
        sa.ForeignKeyConstraint(
            ["replaces_id"], ["ml_models.id"], name=op.f("fk_ml_models_replaces_id_ml_models")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ml_models")),
        sa.UniqueConstraint("symbol", "interval", "regime", "artifact_sha256", name="uq_ml_models_artifact"),
        sa.UniqueConstraint("symbol", "interval", "regime", "version", name="uq_ml_models_version"),
    )
    op.create_index("ix_ml_models_created", "ml_models", [sa.literal_column("created_at DESC")], unique=False)
    op.create_index(
        "uq_ml_models_champion",
        "ml_models",
        ["symbol", "interval", "regime"],
        unique=True,
        postgresql_where=sa.text("state = 'champion'"),
    )
    op.create_table(
        "ml_drift_alerts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("drift_score", sa.Double(), nullable=False),
        sa.Column("p_value", sa.Double(), nullable=True),
        sa.Column("reference_rows", sa.Integer(), nullable=False),
        sa.Column("current_rows", sa.Integer(), nullable=False),
        sa.Column("limits", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("snoozed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("regime", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "drift_score >= 0 AND drift_score < 'infinity'", name=op.f("ck_ml_drift_alerts_drift_score")
        ),
        sa.CheckConstraint(
            "interval IN ('1m', '5m', '15m', '30m', '1h', '4h', '1d')",
            name=op.f("ck_ml_drift_alerts_interval"),
        ),
        sa.CheckConstraint(
            "kind IN ('features', 'scores', 'calibration', 'accuracy')", name=op.f("ck_ml_drift_alerts_kind")
        ),
        sa.CheckConstraint(
            "regime IN ('trending', 'sideways', 'volatile', 'consolidation', 'all')",
            name=op.f("ck_ml_drift_alerts_regime"),
        ),
        sa.CheckConstraint(
            "severity IN ('none', 'low', 'medium', 'high', 'critical')",
            name=op.f("ck_ml_drift_alerts_severity"),
        ),
        sa.CheckConstraint("symbol ~ '^[A-Z0-9]{2,24}$'", name=op.f("ck_ml_drift_alerts_symbol")),
        sa.CheckConstraint("p_value BETWEEN 0 AND 1", name=op.f("ck_ml_drift_alerts_p_value")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["ml_models.id"], name=op.f("fk_ml_drift_alerts_model_id_ml_models")
        ),
        sa.PrimaryKeyConstraint("id", "as_of", name=op.f("pk_ml_drift_alerts")),
    )
    op.create_index(
        "ix_ml_drift_alerts_key",
        "ml_drift_alerts",
        ["symbol", "interval", "regime", sa.literal_column("as_of DESC")],
        unique=False,
    )
    op.create_index(
        "ix_ml_drift_alerts_severity",
        "ml_drift_alerts",
        ["severity", sa.literal_column("as_of DESC")],
        unique=False,
    )
    op.create_table(
        "ml_eval_history",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("champion_id", sa.BigInteger(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("base_rate", sa.Double(), nullable=True),
        sa.Column("f1", sa.Double(), nullable=True),
        sa.Column("precision", sa.Double(), nullable=True),
        sa.Column("recall", sa.Double(), nullable=True),
        sa.Column("auc", sa.Double(), nullable=True),
        sa.Column("brier", sa.Double(), nullable=True),
        sa.Column("brier_skill", sa.Double(), nullable=True),
        sa.Column("net_return_atr", sa.Double(), nullable=True),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("promote", sa.Boolean(), nullable=True),
        sa.Column("decision", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("regime", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "interval IN ('1m', '5m', '15m', '30m', '1h', '4h', '1d')",
            name=op.f("ck_ml_eval_history_interval"),
        ),
        sa.CheckConstraint(
            "kind IN ('challenger', 'champion', 'shadow', 'live')", name=op.f("ck_ml_eval_history_kind")
        ),
        sa.CheckConstraint(
            "regime IN ('trending', 'sideways', 'volatile', 'consolidation', 'all')",
            name=op.f("ck_ml_eval_history_regime"),
        ),
        sa.CheckConstraint("symbol ~ '^[A-Z0-9]{2,24}$'", name=op.f("ck_ml_eval_history_symbol")),
        sa.CheckConstraint("auc BETWEEN 0 AND 1", name=op.f("ck_ml_eval_history_auc")),
        sa.CheckConstraint("base_rate BETWEEN 0 AND 1", name=op.f("ck_ml_eval_history_base_rate")),
        sa.CheckConstraint("brier BETWEEN 0 AND 1", name=op.f("ck_ml_eval_history_brier")),
        sa.CheckConstraint("f1 BETWEEN 0 AND 1", name=op.f("ck_ml_eval_history_f1")),
        sa.CheckConstraint("precision BETWEEN 0 AND 1", name=op.f("ck_ml_eval_history_precision")),
        sa.CheckConstraint("recall BETWEEN 0 AND 1", name=op.f("ck_ml_eval_history_recall")),
        sa.CheckConstraint("rows >= 0", name=op.f("ck_ml_eval_history_rows")),
        sa.ForeignKeyConstraint(
            ["champion_id"], ["ml_models.id"], name=op.f("fk_ml_eval_history_champion_id_ml_models")
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["ml_models.id"], name=op.f("fk_ml_eval_history_model_id_ml_models")
        ),
        sa.PrimaryKeyConstraint("id", "as_of", name=op.f("pk_ml_eval_history")),
        sa.UniqueConstraint("job_id", "model_id", "kind", "as_of", name="uq_ml_eval_history_once"),
    )
    op.create_index(
        "ix_ml_eval_history_key",
        "ml_eval_history",
        ["symbol", "interval", "regime", sa.literal_column("as_of DESC")],
        unique=False,
    )
    op.create_index(
        "ix_ml_eval_history_model",
        "ml_eval_history",
        ["model_id", sa.literal_column("as_of DESC")],
        unique=False,
    )
    op.create_table(
        "ml_performance_tracking",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("signal_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("signal_id", sa.Text(), nullable=True),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=True),
        sa.Column("served_regime", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), server_default="champion", nullable=False),
        sa.Column("direction", sa.SmallInteger(), nullable=False),
        sa.Column("patterns", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("pattern_confidence", sa.Double(), nullable=True),
        sa.Column("confidence", sa.Double(), nullable=True),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("abstain_reason", sa.Text(), nullable=True),
        sa.Column("expected_net_return_atr", sa.Double(), nullable=True),
        sa.Column("out_of_distribution", sa.Double(), nullable=True),
        sa.Column("model_age_seconds", sa.Double(), nullable=True),
        sa.Column("latency_ms", sa.Double(), nullable=True),
        sa.Column("features", sa.LargeBinary(), nullable=True),
        sa.Column("entry_price", sa.Double(), nullable=True),
        sa.Column("atr", sa.Double(), nullable=True),
        sa.Column("horizon_end", sa.DateTime(timezone=True), nullable=False),
        sa.Column("label", sa.Double(), nullable=True),
        sa.Column("label_end", sa.DateTime(timezone=True), nullable=True),
        sa.Column("net_return_atr", sa.Double(), nullable=True),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "metadata",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("regime", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(decision = 'abstain') = (abstain_reason IS NOT NULL)",
            name=op.f("ck_ml_performance_tracking_abstain_reason"),
        ),
        sa.CheckConstraint(
            "decision IN ('accept', 'reject', 'abstain')", name=op.f("ck_ml_performance_tracking_decision")
        ),
        sa.CheckConstraint(
            "interval IN ('1m', '5m', '15m', '30m', '1h', '4h', '1d')",
            name=op.f("ck_ml_performance_tracking_interval"),
        ),
        sa.CheckConstraint(
            "regime IN ('trending', 'sideways', 'volatile', 'consolidation', 'all')",
            name=op.f("ck_ml_performance_tracking_regime"),
        ),
        sa.CheckConstraint("role IN ('champion', 'shadow')", name=op.f("ck_ml_performance_tracking_role")),
        sa.CheckConstraint(
            "served_regime IN ('trending', 'sideways', 'volatile', 'consolidation', 'all')",
            name=op.f("ck_ml_performance_tracking_served_regime"),
        ),
        sa.CheckConstraint("symbol ~ '^[A-Z0-9]{2,24}$'", name=op.f("ck_ml_performance_tracking_symbol")),
        sa.CheckConstraint(
            "(label IS NULL) OR (label_end IS NOT NULL)", name=op.f("ck_ml_performance_tracking_label_end")
        ),
        sa.CheckConstraint("confidence BETWEEN 0 AND 1", name=op.f("ck_ml_performance_tracking_confidence")),
        sa.CheckConstraint("direction IN (-1, 1)", name=op.f("ck_ml_performance_tracking_direction")),
        sa.CheckConstraint("label IN (0, 1)", name=op.f("ck_ml_performance_tracking_label")),
        sa.CheckConstraint(
            "pattern_confidence BETWEEN 0 AND 1", name=op.f("ck_ml_performance_tracking_pattern_confidence")
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["ml_models.id"], name=op.f("fk_ml_performance_tracking_model_id_ml_models")
        ),
        sa.PrimaryKeyConstraint("id", "signal_time", name=op.f("pk_ml_performance_tracking")),
    )
    op.create_index(
        "ix_ml_performance_tracking_key",
        "ml_performance_tracking",
        ["symbol", "interval", "regime", sa.literal_column("signal_time DESC")],
        unique=False,
    )
    op.create_index(
        "ix_ml_performance_tracking_model",
        "ml_performance_tracking",
        ["model_id", sa.literal_column("signal_time DESC")],
        unique=False,
    )
    op.create_index(
        "ix_ml_performance_tracking_open",
        "ml_performance_tracking",
        ["horizon_end"],
        unique=False,
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.create_table(
        "ml_reference_features",
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("feature", sa.Text(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("importance", sa.Double(), nullable=False),
        sa.Column("sample", sa.LargeBinary(), nullable=False),
        sa.Column("bin_edges", sa.ARRAY(sa.Double()), nullable=False),
        sa.Column("bin_shares", sa.ARRAY(sa.Double()), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "cardinality(bin_shares) = cardinality(bin_edges) + 1", name=op.f("ck_ml_reference_features_bins")
        ),
        sa.CheckConstraint("importance BETWEEN 0 AND 1", name=op.f("ck_ml_reference_features_importance")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["ml_models.id"], name=op.f("fk_ml_reference_features_model_id_ml_models")
        ),
        sa.PrimaryKeyConstraint("model_id", "feature", name=op.f("pk_ml_reference_features")),
        sa.UniqueConstraint("model_id", "position", name="uq_ml_reference_features_position"),
    )
    op.create_table(
        "ml_training_jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.SmallInteger(), server_default="3", nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("enqueued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("fencing_token", sa.BigInteger(), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stage", sa.Text(), nullable=True),
        sa.Column("progress", sa.Double(), server_default="0", nullable=False),
        sa.Column(
            "stages", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        sa.Column("outcome", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("model_id", sa.BigInteger(), nullable=True),
        sa.Column("superseded_by", sa.Text(), nullable=True),
        sa.Column("fit_address", sa.Text(), nullable=True),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("regime", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(state = 'running') = (lease_expires_at IS NOT NULL)", name=op.f("ck_ml_training_jobs_lease")
        ),
        sa.CheckConstraint(
            "(state IN ('queued', 'running')) = (finished_at IS NULL)",
            name=op.f("ck_ml_training_jobs_finished"),
        ),
        sa.CheckConstraint(
            "interval IN ('1m', '5m', '15m', '30m', '1h', '4h', '1d')",
            name=op.f("ck_ml_training_jobs_interval"),
        ),
        sa.CheckConstraint(
            "regime IN ('trending', 'sideways', 'volatile', 'consolidation', 'all')",
            name=op.f("ck_ml_training_jobs_regime"),
        ),
        sa.CheckConstraint(
            "state <> 'running' OR (fencing_token IS NOT NULL AND owner IS NOT NULL)",
            name=op.f("ck_ml_training_jobs_owner"),
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'refused', 'failed', 'superseded')",
            name=op.f("ck_ml_training_jobs_state"),
        ),
        sa.CheckConstraint("symbol ~ '^[A-Z0-9]{2,24}$'", name=op.f("ck_ml_training_jobs_symbol")),
        sa.CheckConstraint("attempts BETWEEN 0 AND max_attempts", name=op.f("ck_ml_training_jobs_attempts")),
        sa.CheckConstraint("length(id) BETWEEN 1 AND 155", name=op.f("ck_ml_training_jobs_id")),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name=op.f("ck_ml_training_jobs_progress")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["ml_models.id"], name=op.f("fk_ml_training_jobs_model_id_ml_models")
        ),
        sa.ForeignKeyConstraint(
            ["superseded_by"],
            ["ml_training_jobs.id"],
            name=op.f("fk_ml_training_jobs_superseded_by_ml_training_jobs"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ml_training_jobs")),
    )
    op.create_index(
        "ix_ml_training_jobs_key",
        "ml_training_jobs",
        ["symbol", "interval", "regime", sa.literal_column("queued_at DESC")],
        unique=False,
    )
    op.create_index(
        "ix_ml_training_jobs_lease",
        "ml_training_jobs",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "ix_ml_training_jobs_queued", "ml_training_jobs", [sa.literal_column("queued_at DESC")], unique=False
    )
    op.create_index(
        "ix_ml_training_jobs_state",
        "ml_training_jobs",
        ["state", sa.literal_column("queued_at DESC")],
        unique=False,
    )
    op.create_index(
        "ix_ml_training_jobs_unsent",
        "ml_training_jobs",
        ["enqueued_at"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "uq_ml_training_jobs_fit",
        "ml_training_jobs",
        ["fit_address"],
        unique=True,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "uq_ml_training_jobs_running",
        "ml_training_jobs",
        ["symbol", "interval", "regime"],
        unique=True,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "ml_drift_actions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("alert_id", sa.Uuid(), nullable=False),
        sa.Column("alert_as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="open", nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("symbol", sa.Text(), nullable=False),
        sa.Column("interval", sa.Text(), nullable=False),
        sa.Column("regime", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "action IN ('retrain_now', 'schedule_retraining', 'monitor', 'record', 'rollback')",
            name=op.f("ck_ml_drift_actions_action"),
        ),
        sa.CheckConstraint(
            "interval IN ('1m', '5m', '15m', '30m', '1h', '4h', '1d')",
            name=op.f("ck_ml_drift_actions_interval"),
        ),
        sa.CheckConstraint(
            "regime IN ('trending', 'sideways', 'volatile', 'consolidation', 'all')",
            name=op.f("ck_ml_drift_actions_regime"),
        ),
        sa.CheckConstraint(
            "state IN ('open', 'done', 'cancelled', 'snoozed')", name=op.f("ck_ml_drift_actions_state")
        ),
        sa.CheckConstraint("symbol ~ '^[A-Z0-9]{2,24}$'", name=op.f("ck_ml_drift_actions_symbol")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["ml_training_jobs.id"], name=op.f("fk_ml_drift_actions_job_id_ml_training_jobs")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ml_drift_actions")),
    )
    op.create_index("ix_ml_drift_actions_alert", "ml_drift_actions", ["alert_id"], unique=False)
    op.create_index(
        "ix_ml_drift_actions_key",
        "ml_drift_actions",
        ["symbol", "interval", "regime", sa.literal_column("as_of DESC")],
        unique=False,
    )
    op.create_index(
        "uq_ml_drift_actions_open",
        "ml_drift_actions",
        ["symbol", "interval", "regime"],
        unique=True,
        postgresql_where=sa.text("state = 'open'"),
    )


def downgrade() -> None:
    for table in (
        "ml_drift_actions",
        "ml_training_jobs",
        "ml_reference_features",
        "ml_performance_tracking",
        "ml_eval_history",
        "ml_drift_alerts",
        "ml_models",
        "ml_model_artifacts",
        "ml_drift_thresholds",
        "ml_drift_details",
        "ml_audit_log",
        "candles",
        "candle_series",
    ):
        op.drop_table(table)
    op.execute("DROP SEQUENCE ml_fencing_token_seq")
