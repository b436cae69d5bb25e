"""Tables of a million rows, made up by ``generate_series`` for the table of queries only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Engine

__all__ = ["FIRST_OPEN", "HOUR", "MILLION", "Size", "fill"]

FIRST_OPEN = datetime(2018, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Size:
    """How many rows ``fill`` makes."""

    symbols: int
    candles_each: int
    models: int
    jobs: int
    predictions: int
    audit_rows: int

    @property
    def cut(self) -> datetime:
        """The last midnight before the newest candle's close."""
        return (FIRST_OPEN + self.candles_each * HOUR).replace(hour=0)


MILLION = Size(
    symbols=17, candles_each=58_830, models=1_000, jobs=100_000, predictions=1_000_000, audit_rows=10_000
)


def fill(engine: Engine, size: Size) -> None:
    """Make the rows, and let the server look at them as its own maintenance would.

    Raises:
        ValueError: the database holds candles already.
    """
    parameters = {
        "first": FIRST_OPEN,
        "symbols": size.symbols,
        "candles": size.candles_each,
        "models": size.models,
        "jobs": size.jobs,
        "predictions": size.predictions,
        "audit_rows": size.audit_rows,
    }
    with engine.begin() as connection:
        if connection.scalar(sa.text("SELECT EXISTS (SELECT FROM candles)")):
            raise ValueError("the benchmark fills tables with made-up rows: give it an empty database")
        for statement in _FILL:
            connection.execute(sa.text(statement), parameters)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE"))


_REGIMES = "(ARRAY['trending', 'sideways', 'volatile', 'consolidation', 'all'])"

_FILL = (
    """
    INSERT INTO candles (symbol, interval, open_time, known_at, open, high, low, close, volume, source)
    SELECT 'S' || s, '1h', :first + n * interval '1 hour', :first + (n + 1) * interval '1 hour',
           100, 101, 99, 100, n, 'made up'
    FROM generate_series(1, :symbols) AS s, generate_series(0, :candles - 1) AS n
    """,
    """
    INSERT INTO candle_series
    SELECT symbol, interval, ARRAY['made up'], count(*), 0, min(open_time), max(open_time), 0
    FROM candles GROUP BY symbol, interval
    """,
    """
    INSERT INTO ml_model_artifacts (sha256, kind, address, body, size)
    SELECT encode(sha256(body), 'hex'), 'booster', 'fit ' || n, body, octet_length(body)
    FROM generate_series(1, :models) AS n,
         LATERAL (SELECT convert_to(repeat('model ' || n, 2000), 'UTF8') AS body) AS made
    """,
    f"""
    INSERT INTO ml_models (symbol, interval, regime, version, state, artifact_sha256, booster_sha256,
        as_of, data_cut, config, config_digest, metrics, decision, created_at, promoted_at)
    SELECT 'S' || 1 + n % :symbols, '1h', {_REGIMES}[1 + n / :symbols % 5], 1 + n / :symbols / 5,
           CASE WHEN n / :symbols / 5 = 0 THEN 'champion' ELSE 'rejected' END,
           a.sha256, a.sha256, :first, :first, '{{}}', '', '{{}}', '{{}}',
           :first + n * interval '1 hour', CASE WHEN n / :symbols / 5 = 0 THEN :first END
    FROM generate_series(0, :models - 1) AS n JOIN ml_model_artifacts AS a ON a.address = 'fit ' || n + 1
    """,
    """
    INSERT INTO ml_eval_history (as_of, model_id, symbol, interval, regime, kind, rows, metrics)
    SELECT :first + n * interval '1 hour', id, symbol, interval, regime, 'challenger', 250, '{}'
    FROM ml_models, generate_series(1, 20) AS n
    """,
    f"""
    INSERT INTO ml_training_jobs (id, symbol, interval, regime, reason, requested_by, as_of, state,
        queued_at, enqueued_at, finished_at)
    SELECT 'job ' || n, 'S' || 1 + n % :symbols, '1h', {_REGIMES}[1 + n / :symbols % 5], 'schedule', 'beat',
           :first, CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'succeeded' END,
           :first + n * interval '1 minute', :first, :first + n * interval '1 minute'
    FROM generate_series(1, :jobs) AS n
    """,
    f"""
    INSERT INTO ml_performance_tracking (id, signal_time, as_of, symbol, interval, regime, direction,
        patterns, confidence, decision, features, entry_price, atr, horizon_end, label, label_end,
        resolved_at, metadata)
    SELECT lpad(to_hex(n), 32, '0')::uuid, :first + n * interval '1 minute', :first, 'S' || 1 + n % :symbols,
           '1h', {_REGIMES}[1 + n / :symbols % 4], 1, '{{CDLDOJI}}', 0.6,
           CASE WHEN n % 50 = 0 THEN 'accept' ELSE 'reject' END,
           decode(repeat(md5(n::text), 14), 'hex'), 100, 1,
           :first + n * interval '1 minute' + interval '12 hours', known.label, known.at, known.at,
           '{{"threshold": 0.55}}'
    FROM generate_series(1, :predictions) AS n, LATERAL (
        SELECT CASE WHEN n < :predictions - 5000 THEN 1 END AS label,
               CASE WHEN n < :predictions - 5000
                    THEN :first + n * interval '1 minute' + interval '12 hours' END AS at
    ) AS known
    """,
    f"""
    INSERT INTO ml_audit_log (id, at, action, actor, subject, why, details, prev_hash, hash)
    SELECT n, :first, 'promote', 'bench', format('S%s 1h %s', 1 + n % :symbols, {_REGIMES}[1 + n % 5]),
           '', '{{}}', encode(sha256(convert_to((n - 1)::text, 'UTF8')), 'hex'),
           encode(sha256(convert_to(n::text, 'UTF8')), 'hex')
    FROM generate_series(1, :audit_rows) AS n
    """,
)
