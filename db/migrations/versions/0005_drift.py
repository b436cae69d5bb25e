"""Drift that is calibrated, actions with their outcome, shadows, and keys that are added and frozen."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from db.base import key_checks, one_of

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

SEVERITIES = ("none", "low", "medium", "high", "critical")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "ml_drift_nulls",
        sa.Column("model_id", sa.BigInteger, sa.ForeignKey("ml_models.id"), primary_key=True),
        sa.Column("body", JSONB, nullable=False),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.now()),
    )
    op.create_table(
        "ml_keys",
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("symbol", "interval", "regime")),
        sa.Column("added_at", TIME),
        sa.Column("added_by", sa.Text),
        sa.Column("frozen_at", TIME),
        sa.Column("frozen_by", sa.Text),
        sa.Column("frozen_why", sa.Text),
        *key_checks(),
        sa.CheckConstraint("(added_at IS NULL) = (added_by IS NULL)", name="added"),
        sa.CheckConstraint(
            "(frozen_at IS NULL) = (frozen_by IS NULL) AND (frozen_at IS NULL) = (frozen_why IS NULL)",
            name="frozen",
        ),
    )
    op.add_column("ml_models", sa.Column("shadow_at", TIME))
    op.execute("DELETE FROM ml_drift_actions")  # no version before this one wrote any
    op.add_column(
        "ml_drift_actions",
        sa.Column("model_id", sa.BigInteger, sa.ForeignKey("ml_models.id"), nullable=False),
    )
    op.add_column("ml_drift_actions", sa.Column("severity", sa.Text, nullable=False))
    op.add_column("ml_drift_actions", sa.Column("snoozed_until", TIME))
    severity = one_of("severity", SEVERITIES)
    op.create_check_constraint("severity", "ml_drift_actions", severity.sqltext)


def downgrade() -> None:
    for column in ("snoozed_until", "severity", "model_id"):
        op.drop_column("ml_drift_actions", column)
    op.drop_column("ml_models", "shadow_at")
    op.drop_table("ml_keys")
    op.drop_table("ml_drift_nulls")
