"""Time-series tables become hypertables with compression, where the server has TimescaleDB."""

from collections.abc import Sequence
from datetime import timedelta

from alembic import op

from db.timescale import Hypertable, has_timescaledb, make_hypertable

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


LONGEST_HORIZON = timedelta(days=21)
"""Of a label: 500 bars of an hour (the most that ``LabelConfig`` takes), 12 bars of a day (its default)."""
STATED_OUTAGE = timedelta(days=14)
"""The longest time for which outcomes may stay unwritten because something was down."""

HYPERTABLES = (
    # A chunk of a year: an hourly series has 8,760 rows in it, and training reads every chunk there is.
    Hypertable(
        "candles", "open_time", timedelta(days=364), "symbol, interval", "open_time DESC, known_at DESC"
    ),
    Hypertable(
        "ml_performance_tracking",
        "signal_time",
        timedelta(days=28),
        "symbol, interval",
        "signal_time DESC, id",
    ),
    Hypertable("ml_eval_history", "as_of", timedelta(days=364), "symbol, interval, regime", "as_of DESC, id"),
    Hypertable("ml_drift_alerts", "as_of", timedelta(days=91), "symbol, interval, regime", "as_of DESC, id"),
    Hypertable("ml_drift_details", "as_of", timedelta(days=91), "feature", "as_of DESC, alert_id"),
)


def upgrade() -> None:
    connection = op.get_bind()
    if has_timescaledb(connection):
        for hypertable in HYPERTABLES:
            make_hypertable(connection, hypertable, compress_after=LONGEST_HORIZON + STATED_OUTAGE)


def downgrade() -> None:
    """Nothing: a hypertable is dropped with its table, by the migration that made that."""
