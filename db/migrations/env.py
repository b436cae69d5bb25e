"""Run by Alembic; ``db/schema.py`` hands it the connection it holds."""

from alembic import context

import db.drift_models  # noqa: F401 - its tables belong to the metadata
from db.base import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
