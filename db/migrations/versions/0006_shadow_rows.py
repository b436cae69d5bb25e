"""What a model in shadow has judged already, by index: a signal may have thousands of answers."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

INDEX = "ix_ml_performance_tracking_shadow"
TABLE = "ml_performance_tracking"


def upgrade() -> None:
    op.create_index(
        INDEX,
        TABLE,
        ["model_id", sa.text("(metadata ->> 'of')")],
        postgresql_where=sa.text("role = 'shadow'"),
    )


def downgrade() -> None:
    op.drop_index(INDEX, TABLE)
