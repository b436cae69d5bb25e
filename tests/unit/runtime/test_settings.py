"""Settings from the environment."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from ml.errors import ConfigRejected, KeyRejected, ServersMissing
from runtime.server_record import ProcessMark, ServerRecord
from runtime.settings import Settings, load_settings, servers_configured

pytestmark = pytest.mark.servers


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(f"ALPHAPLUS_{name}", value)
    return load_settings()


def test_nothing_set_gives_the_documented_defaults() -> None:
    settings = load_settings()
    assert settings.model_dump(exclude={"data_dir"}) == {
        "database_url": None,
        "redis_url": None,
        "default_interval": "1h",
        "data_cut_hour": 0,
        "clock": "wall",
        "replay_start": None,
        "training": {},
        "lease_seconds": 30,
        "heartbeat_seconds": 8,
        "train_soft_limit_seconds": 900,
        "train_hard_limit_seconds": 960,
        "visibility_timeout_seconds": 3600,
        "queued_grace_seconds": 600,
        "sweep_seconds": 20,
        "beat_tick_seconds": 5,
        "beat_lock_seconds": 30,
        "champion_check_seconds": 10,
        "model_cache_mib": 96,
        "max_model_age_days": 45,
        "max_signal_age_bars": 1,
        "max_out_of_distribution": 0.2,
        "predict_queue_limit": 1000,
        "record_limit": 100_000,
        "reply_seconds": 60,
        "live_window_days": 90,
        "shadow_days": 28.0,
        "rollback_alpha": 0.05,
        "rollback_cooldown_days": 30.0,
        "drift_retrainings_per_day": 48,
        "audit_hmac_key": None,
        "log_format": "auto",
        "log_level": "INFO",
        "exchange": "binance",
        "exchange_url": None,
        "symbols": ("BTCUSDT", "ETHUSDT"),
    }
    assert settings.data_dir == Path.home() / ".local/share/alphaplus"


def test_variables_are_read_in_their_documented_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        DATABASE_URL="postgres://u:p@h:5/d",
        REDIS_URL="rediss://h/3",
        SYMBOLS="BTCUSDT, SOLUSDT",
        CLOCK="replay",
        REPLAY_START="2019-10-01T02:00+02:00",
        TRAINING='{"pool": "key"}',
        TRAINING__FIT__SEED="3",
        EXCHANGE_URL="http://127.0.0.1:1/",
        LOG_LEVEL="",
    )
    assert settings.required_database_url == "postgresql+psycopg2://u:p@h:5/d"
    assert settings.required_redis_url == "rediss://h/3"
    assert settings.symbols == ("BTCUSDT", "SOLUSDT")
    assert settings.replay_start == datetime(2019, 10, 1, tzinfo=UTC)
    assert settings.training == {"pool": "key", "fit": {"seed": 3}}
    assert settings.log_level == "INFO"


def test_settings_are_frozen_and_print_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, REDIS_URL="redis://:hunter22@h/0", AUDIT_HMAC_KEY="0123456789abcdef")
    with pytest.raises(ValueError, match="frozen"):
        settings.clock = "replay"  # type: ignore[misc]
    assert "hunter22" not in repr(settings)
    assert "0123456789abcdef" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("ALPHAPLUS_DATABSE_URL", "did you mean ALPHAPLUS_DATABASE_URL?"),
        ("ALPHAPLUS_SYMBOL", "did you mean ALPHAPLUS_SYMBOLS?"),
        ("ALPHAPLUS_QQQQ", "see docs/settings.md"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known_one(
    variable: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigRejected) as caught:
        load_settings()
    assert (caught.value.field, caught.value.hint) == (variable, hint)


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("DATA_CUT_HOUR", "24", "less than or equal to 23"),
        ("DATA_CUT_HOUR", "noon", "a valid integer"),
        ("LEASE_SECONDS", "0", "greater than or equal to 1"),
        ("LEASE_SECONDS", "nan", "less than or equal to 3600"),
        ("HEARTBEAT_SECONDS", "15", "2 x heartbeat_seconds < lease_seconds (30)"),
        ("TRAIN_SOFT_LIMIT_SECONDS", "960", "train_soft_limit_seconds < train_hard_limit_seconds (960)"),
        ("TRAIN_HARD_LIMIT_SECONDS", "3600", "train_hard_limit_seconds < visibility_timeout_seconds (3600)"),
        ("CLOCK", "sundial", "'wall' or 'replay'"),
        ("CLOCK", "replay", "a time such as 2019-10-01T00:00Z"),
        ("REPLAY_START", "2019-10-01T00:00", "timezone"),
        ("REPLAY_START", "2019", "a time such as 2019-10-01T00:00Z"),
        ("TRAINING", "{", "a JSON object"),
        ("EXCHANGE", "../etc", "pattern"),
        ("EXCHANGE_URL", "file:///etc/passwd", "scheme"),
        ("DATABASE_URL", "mysql://u:hunter22@h/d", "postgresql+psycopg2://"),
        ("REDIS_URL", "http://h", "redis:// or rediss://"),
        ("AUDIT_HMAC_KEY", "short", "at least 16"),
        ("LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_limit(
    name: str, value: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigRejected) as caught:
        load(monkeypatch, **{name: value})
    assert caught.value.field.startswith("ALPHAPLUS_")
    assert limit in f"{caught.value.limit} {caught.value.hint}"
    assert "hunter22" not in str(caught.value)


def test_a_wrong_training_option_names_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigRejected, match=r"training\.fit\.n_estimators: '401'|401"):
        load(monkeypatch, TRAINING__FIT__N_ESTIMATORS="401")


@pytest.mark.parametrize("symbols", ["../../etc", "'; drop table", "BTCUSDT,,ETHUSDT", "btcusdt"])
def test_a_symbol_that_is_none_is_refused(symbols: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyRejected):
        load(monkeypatch, SYMBOLS=symbols)


def write_record(data_dir: Path, mark: ProcessMark) -> None:
    data_dir.mkdir(exist_ok=True)
    ServerRecord(
        database_url="postgresql+psycopg2://u:p@127.0.0.1:1/d",
        redis_url="redis://:p@127.0.0.1:2/0",
        postgres=mark,
        valkey=mark,
        owner=mark,
        clock="replay",
        replay_start=datetime(2019, 10, 1, tzinfo=UTC),
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    ).write(data_dir)


def test_servers_that_run_under_the_data_folder_are_found_with_their_clock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_record(tmp_path, ProcessMark.of(os.getpid()))
    settings = load(monkeypatch, DATA_DIR=str(tmp_path))
    assert settings.required_database_url == "postgresql+psycopg2://u:p@127.0.0.1:1/d"
    assert settings.required_redis_url == "redis://:p@127.0.0.1:2/0"
    assert (settings.clock, settings.replay_start) == ("replay", datetime(2019, 10, 1, tzinfo=UTC))


def test_configured_servers_win_over_those_of_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_record(tmp_path, ProcessMark.of(os.getpid()))
    settings = load(
        monkeypatch, DATA_DIR=str(tmp_path), DATABASE_URL="postgresql://h/d", REDIS_URL="redis://h/0"
    )
    assert settings.database_url == SecretStr("postgresql+psycopg2://h/d")
    assert settings.redis_url == SecretStr("redis://h/0")
    assert settings.clock == "wall"
    assert servers_configured()


def test_a_clock_that_is_set_wins_over_the_servers_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_record(tmp_path, ProcessMark.of(os.getpid()))
    settings = load(monkeypatch, DATA_DIR=str(tmp_path), CLOCK="wall")
    assert (settings.clock, settings.replay_start) == ("wall", None)


def test_servers_that_have_ended_are_missing_and_the_message_says_how_to_start_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = ProcessMark.of(os.getpid())
    write_record(tmp_path, ProcessMark(pid=mine.pid, started=mine.started - 60))
    settings = load(monkeypatch, DATA_DIR=str(tmp_path))
    with pytest.raises(ServersMissing, match=r"ALPHAPLUS_DATABASE_URL .*`alphaplus up`"):
        _ = settings.required_database_url
    with pytest.raises(ServersMissing, match=r"ALPHAPLUS_REDIS_URL .*`alphaplus up`"):
        _ = settings.required_redis_url


def test_every_setting_is_documented() -> None:
    text = Path(__file__).parents[3].joinpath("docs", "settings.md").read_text(encoding="utf-8")
    assert [name for name in Settings.model_fields if f"`ALPHAPLUS_{name.upper()}`" not in text] == []
