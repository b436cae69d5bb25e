"""What every table is made of: naming, types, and the checks of a model key."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    ColumnElement,
    DateTime,
    Double,
    LargeBinary,
    MetaData,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped

from ml.keys import INTERVALS, MODEL_REGIMES, ModelKey

__all__ = ["Base", "Json", "Keyed", "key_checks", "one_of", "series_checks", "share"]

Json = dict[str, Any]


class Base(DeclarativeBase):
    """Root of the tables."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own declaration
        str: Text,
        datetime: DateTime(timezone=True),
        float: Double,
        bytes: LargeBinary,
        Json: JSONB,
        list[Json]: JSONB,
        list[str]: ARRAY(Text),
        list[float]: ARRAY(Double),
    }


def one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    accepted = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({accepted})", name=column)


def share(column: str) -> CheckConstraint:
    return CheckConstraint(f"{column} BETWEEN 0 AND 1", name=column)  # NaN sorts above all: refused


def series_checks() -> tuple[CheckConstraint, ...]:
    return (
        CheckConstraint("symbol ~ '^[A-Z0-9]{2,24}$'", name="symbol"),
        one_of("interval", INTERVALS),
    )


def key_checks() -> tuple[CheckConstraint, ...]:
    return (*series_checks(), one_of("regime", MODEL_REGIMES))


class Keyed:
    """Columns of a model key."""

    symbol: Mapped[str]
    interval: Mapped[str]
    regime: Mapped[str]

    @classmethod
    def of_key(cls, key: ModelKey) -> tuple[ColumnElement[bool], ...]:
        """Conditions of a WHERE clause: the rows of this key."""
        return (cls.symbol == key.symbol, cls.interval == key.interval, cls.regime == key.regime)

    @property
    def key(self) -> ModelKey:
        """What the row is about."""
        return ModelKey(self.symbol, self.interval, self.regime)
