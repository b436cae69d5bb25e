"""Time-series tables become hypertables with compression, where the server has TimescaleDB."""

from collections.abc import Sequence

from alembic import op

from db.timescale import HYPERTABLES, has_timescaledb, make_hypertable

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    connection = op.get_bind()
    if has_timescaledb(connection):
        for hypertable in HYPERTABLES:
            make_hypertable(connection, hypertable)


def downgrade() -> None:
    """Nothing: a hypertable is dropped with its table, by the migration that made that."""
