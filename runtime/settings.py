"""Settings: environment variables with the prefix ``ALPHAPLUS_``, read once, frozen.

A list is comma-separated (``ALPHAPLUS_SYMBOLS=BTCUSDT,ETHUSDT``). Training options are one JSON
object (``ALPHAPLUS_TRAINING='{"pool": "key"}'``) or one variable each
(``ALPHAPLUS_TRAINING__POOL=key``, ``ALPHAPLUS_TRAINING__FIT__SEED=3``). An empty variable counts as unset.
"""

from __future__ import annotations

import difflib
import os
import re
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from ml.config import TrainingConfig
from ml.errors import ConfigRejected, ServersMissing
from ml.keys import check_symbol, interval_duration
from runtime.server_record import ServerRecord

__all__ = ["PREFIX", "Settings", "load_settings", "servers_configured"]

PREFIX = "ALPHAPLUS_"
_POSTGRES_SCHEME = re.compile(r"^postgres(ql)?(\+psycopg2)?://")


class Settings(BaseSettings):
    """Every setting of every process. Durations are in seconds, as their names say."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        validate_default=True,
    )

    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    data_dir: Path = Path("~/.local/share/alphaplus")
    """Where the system's own servers keep their data."""

    default_interval: str = "1h"
    data_cut_hour: int = Field(0, ge=0, le=23)
    clock: Literal["wall", "replay"] = "wall"
    replay_start: AwareDatetime | None = None
    training: dict[str, Any] = {}
    """Options that differ from ``ml.config.TrainingConfig``'s defaults."""

    lease_seconds: float = Field(30, ge=1, le=3600)
    heartbeat_seconds: float = Field(8, gt=0, le=1200)
    train_soft_limit_seconds: int = Field(900, ge=1, le=86_400)
    train_hard_limit_seconds: int = Field(960, ge=1, le=86_400)
    visibility_timeout_seconds: int = Field(3600, ge=1, le=604_800)
    queued_grace_seconds: float = Field(600, ge=1, le=86_400)
    sweep_seconds: float = Field(20, ge=1, le=3600)
    beat_tick_seconds: int = Field(5, ge=1, le=60)
    """How soon beat sees a change of the schedule."""
    beat_lock_seconds: int = Field(30, ge=2, le=3600)
    """After so long without a tick a second beat takes over."""

    champion_check_seconds: float = Field(10, gt=0, le=3600)
    """How long an inference worker trusts what it knows of a key's champion, should no message reach it."""
    model_cache_mib: int = Field(96, ge=1, le=65_536)
    max_model_age_days: float = Field(45, gt=0, le=3650)
    max_signal_age_bars: float = Field(1, gt=0, le=500)
    """A signal is answered until so many candles after its own; later its outcome may be known already."""
    max_out_of_distribution: float = Field(0.2, gt=0, le=1)
    predict_queue_limit: int = Field(1000, ge=1)
    record_limit: int = Field(100_000, ge=1)
    """Requests whose answers wait to be stored in PostgreSQL; beyond it the answer is "busy"."""
    reply_seconds: int = Field(60, ge=1, le=3600)
    live_window_days: int = Field(90, ge=1, le=3650)
    """Resolved predictions of so many days make up the live accuracy."""

    shadow_days: float = Field(28, gt=0, le=365)
    """So long a replaced champion goes on answering in shadow, beside the one that took its place."""
    rollback_alpha: float = Field(0.05, gt=0, lt=1)
    """Chance that a champion no worse than the one before is taken back by itself."""
    rollback_cooldown_days: float = Field(30, ge=0, le=365)
    """A second automatic rollback of a key within so long freezes it instead."""
    drift_retrainings_per_day: int = Field(48, ge=1, le=100_000)
    """Of all keys together; what drift asks for beyond them waits."""

    audit_hmac_key: SecretStr | None = Field(None, min_length=16)
    log_format: Literal["auto", "console", "json"] = "auto"
    """``auto``: console on a terminal, JSON lines elsewhere."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    exchange: str = Field("binance", pattern=r"^[a-z0-9]{2,32}$")
    exchange_url: HttpUrl | None = None
    """Replaces the exchange's own address; for tests and proxies."""
    symbols: Annotated[tuple[str, ...], NoDecode] = ("BTCUSDT", "ETHUSDT")

    @field_validator("database_url")
    @classmethod
    def _name_the_driver(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        if not _POSTGRES_SCHEME.match(url.get_secret_value()):
            raise ValueError("a URL that begins with postgresql+psycopg2://")
        return SecretStr(_POSTGRES_SCHEME.sub("postgresql+psycopg2://", url.get_secret_value()))

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("redis://", "rediss://")):
            raise ValueError("a URL that begins with redis:// or rediss://")
        return url

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100 - resolve() would follow links

    @field_validator("default_interval")
    @classmethod
    def _is_interval(cls, interval: str) -> str:
        interval_duration(interval)
        return interval

    @field_validator("replay_start", mode="before")
    @classmethod
    def _is_written_out(cls, moment: object) -> object:
        if isinstance(moment, str) and moment.isdigit():  # pydantic would take 2019 for seconds since 1970
            raise ValueError("a time such as 2019-10-01T00:00Z")
        return moment

    @field_validator("replay_start")
    @classmethod
    def _in_utc(cls, moment: AwareDatetime | None) -> AwareDatetime | None:
        return None if moment is None else moment.astimezone(UTC)

    @field_validator("symbols", mode="before")
    @classmethod
    def _split(cls, symbols: object) -> object:
        return [part.strip() for part in symbols.split(",")] if isinstance(symbols, str) else symbols

    @field_validator("symbols")
    @classmethod
    def _are_symbols(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_symbol(symbol) for symbol in symbols)

    @field_validator("training")
    @classmethod
    def _is_training(cls, options: dict[str, Any]) -> dict[str, Any]:
        TrainingConfig.from_mapping(options)
        return options

    @model_validator(mode="after")
    def _limits_are_in_order(self) -> Self:
        # Two heartbeats must fit into a lease, or one slow commit loses it.
        _require_less(
            "heartbeat_seconds", 2 * self.heartbeat_seconds, "lease_seconds", self.lease_seconds, "2 x "
        )
        _require_less(
            "train_soft_limit_seconds",
            self.train_soft_limit_seconds,
            "train_hard_limit_seconds",
            self.train_hard_limit_seconds,
        )
        # Redis hands a message to a second worker after this time, finished or not.
        _require_less(
            "train_hard_limit_seconds",
            self.train_hard_limit_seconds,
            "visibility_timeout_seconds",
            self.visibility_timeout_seconds,
        )
        _require_less(
            "beat_tick_seconds", self.beat_tick_seconds, "beat_lock_seconds", self.beat_lock_seconds
        )
        if self.clock == "replay" and self.replay_start is None:
            raise ConfigRejected(
                f"{PREFIX}REPLAY_START", None, "a time such as 2019-10-01T00:00Z, for CLOCK=replay"
            )
        return self

    @property
    def required_database_url(self) -> str:
        """The database's URL. Raises ServersMissing."""
        return _required(self.database_url, "DATABASE_URL", self.data_dir)

    @property
    def audit_key(self) -> bytes | None:
        """Signs and checks the audit log's rows; None where none is set."""
        return None if self.audit_hmac_key is None else self.audit_hmac_key.get_secret_value().encode()

    @property
    def required_redis_url(self) -> str:
        """The broker's URL. Raises ServersMissing."""
        return _required(self.redis_url, "REDIS_URL", self.data_dir)


def load_settings() -> Settings:
    """Read the environment; where it names no server, take the one that runs under the data folder.

    A replay is shared: with the running servers come their clock and its start, unless set.

    Raises:
        ConfigRejected: an unknown variable, or a value out of its range.
    """
    _refuse_unknown_variables()
    try:
        settings = Settings()
    except SettingsError as error:
        raise ConfigRejected(
            f"{PREFIX}TRAINING", os.environ.get(f"{PREFIX}TRAINING"), "a JSON object"
        ) from error
    except ValidationError as error:
        raise _rejected(error) from error
    if settings.database_url is not None and settings.redis_url is not None:
        return settings
    record = ServerRecord.read(settings.data_dir)
    if record is None or not record.alive:
        return settings
    found: dict[str, object] = {}
    if settings.redis_url is None:
        found["redis_url"] = SecretStr(record.redis_url)
    if settings.database_url is None:
        found["database_url"] = SecretStr(record.database_url)
        if "clock" not in settings.model_fields_set:
            found |= {"clock": record.clock, "replay_start": record.replay_start}
    return settings.model_copy(update=found)


def servers_configured() -> bool:
    """Whether variables name both servers: then the system starts none of its own."""
    return all(os.environ.get(f"{PREFIX}{name}") for name in ("DATABASE_URL", "REDIS_URL"))


def _refuse_unknown_variables() -> None:
    known = [name.upper() for name in Settings.model_fields]
    for variable, value in sorted(os.environ.items()):
        name = variable.removeprefix(PREFIX)
        if name in (variable, *known) or name.startswith("TRAINING__"):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else "see docs/settings.md"
        # It may be a secret under a misspelt name.
        shown = "…" if re.search("URL|KEY|PASS|SECRET", name) else value
        raise ConfigRejected(variable, shown, "a known setting", hint)


def _rejected(error: ValidationError) -> ConfigRejected:
    first = error.errors()[0]
    name = str(first["loc"][0])
    secret = name.endswith(("_url", "_key"))
    limit = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return ConfigRejected(PREFIX + name.upper(), "…" if secret else first.get("input"), limit)


def _require_less(low: str, low_value: float, high: str, high_value: float, times: str = "") -> None:
    if low_value >= high_value:
        limit = f"{times}{low} < {high} ({high_value:g})"
        raise ConfigRejected(PREFIX + low.upper(), low_value if not times else low_value / 2, limit)


def _required(url: SecretStr | None, name: str, data_dir: Path) -> str:
    if url is None:
        raise ServersMissing(
            f"no server: {PREFIX}{name} is not set and none runs under {data_dir}. "
            "Start the system's own with `alphaplus up`, or set the variable."
        )
    return url.get_secret_value()
