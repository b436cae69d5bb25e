"""The newest predictions of a decision, by index: accepted ones are few among many rejected."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

INDEX = "ix_ml_performance_tracking_decision"
TABLE = "ml_performance_tracking"


def upgrade() -> None:
    op.create_index(
        INDEX,
        TABLE,
        ["symbol", "interval", "regime", "decision", sa.text("signal_time DESC")],
        postgresql_where=sa.text("decision <> 'reject'"),
    )


def downgrade() -> None:
    op.drop_index(INDEX, TABLE)
