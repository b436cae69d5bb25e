"""The audit log refuses to be changed; artifacts are stored as they are; default limits."""

from collections.abc import Sequence

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("""
        CREATE FUNCTION ml_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER ml_audit_log_append_only BEFORE UPDATE OR DELETE ON ml_audit_log
        FOR EACH ROW EXECUTE FUNCTION ml_refuse_change()
    """)
    op.execute("""
        CREATE TRIGGER ml_audit_log_no_truncate BEFORE TRUNCATE ON ml_audit_log
        FOR EACH STATEMENT EXECUTE FUNCTION ml_refuse_change()
    """)
    # Trees do not compress well, and decompressing costs more than it saves when a model is loaded.
    op.execute("ALTER TABLE ml_model_artifacts ALTER COLUMN body SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE ml_reference_features ALTER COLUMN sample SET STORAGE EXTERNAL")
    # The mission's limits, for every key that has none of its own.
    op.execute("""
        INSERT INTO ml_drift_thresholds (symbol, interval, regime, changed_by, why)
        VALUES ('*', '*', '*', 'migration', 'the defaults of the mission')
    """)


def downgrade() -> None:
    op.execute("DELETE FROM ml_drift_thresholds WHERE changed_by = 'migration'")
    op.execute("DROP TRIGGER ml_audit_log_no_truncate ON ml_audit_log")
    op.execute("DROP TRIGGER ml_audit_log_append_only ON ml_audit_log")
    op.execute("DROP FUNCTION ml_refuse_change()")
    op.execute("ALTER TABLE ml_model_artifacts ALTER COLUMN body SET STORAGE EXTENDED")
    op.execute("ALTER TABLE ml_reference_features ALTER COLUMN sample SET STORAGE EXTENDED")
