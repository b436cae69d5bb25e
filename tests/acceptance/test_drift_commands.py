"""`alphaplus drift check | summary | retrain | thresholds | actions | regret` on real champions."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import drift, drift_actions, jobs, registry
from db.drift_models import DriftNull
from db.session import transaction
from tests.processes import CommandResult, RunningProcess
from tests.trained import CHAMPIONS, CUT
from worker.replay import move_replay

pytestmark = pytest.mark.drift

Cli = Callable[..., CommandResult]
ALL, TRENDING, *_ = CHAMPIONS
LATER = CUT + timedelta(days=14)


@pytest.fixture
def worker(trained_env: dict[str, str], worker_process: Callable[..., RunningProcess]) -> RunningProcess:
    return worker_process("drift", env=trained_env)


@pytest.fixture
def later(redis_url: str) -> None:
    """The replay stands two weeks after the champions' data cut."""
    move_replay(redis_url, LATER)


def words(result: CommandResult) -> str:
    assert result.stderr == ""
    # A sentence is left to the terminal to wrap; a table is not.
    assert all(len(line) <= 100 for line in result.stdout.splitlines() if line.startswith(" "))
    return " ".join(result.stdout.split())


def set_limits(cli: Cli, *limits: str) -> None:
    options = [option for limit in limits for option in ("--set", limit)]
    done = cli("drift", "thresholds", *options, "--reason", "a test of alarms")
    assert (done.exit_code, done.stderr) == (0, "")


def test_check_shows_the_rows_that_it_left_and_the_second_one_shows_the_same(
    worker: RunningProcess, cli: Cli, later: None, trained_engine: Engine
) -> None:
    set_limits(cli, "low=100", "medium=101", "high=102", "critical=103")
    plain = cli("drift", "check", "BTCUSDT", "all", "--json")
    again = cli("drift", "check", "BTCUSDT", "all")
    assert (plain.exit_code, again.exit_code, plain.stderr) == (0, 0, "")
    found = json.loads(plain.stdout)
    assert (found["key"], found["state"], found["severity"], found["action"]) == (
        str(ALL), "checked", "none", None,
    )  # fmt: skip
    with transaction(trained_engine) as session:
        rows = drift.newest_check(session, ALL)
        scores = {row.kind: row.drift_score for row in rows}
        features = next(drift.details(session, row) for row in rows if row.kind == "features")
        first = features[0].feature
    assert {"features", "scores"} <= scores.keys()
    assert {one["kind"]: one["drift_score"] for one in found["alerts"]} == scores
    listed = next(one["features"] for one in found["alerts"] if one["kind"] == "features")
    assert len(listed) == len(features)
    assert listed[0]["feature"] == first
    told = words(again)
    assert f"{ALL}: no candle has closed since the last check; it saw candles up to 2019-09-17 00:00" in told
    for part in (first, f"{scores['features']:.3f}", f"{scores['scores']:.3f}", "Nothing is to be done."):
        assert part in told
    with transaction(trained_engine) as session:
        assert len(drift.recent_alerts(session, key=ALL, limit=100)) == len(scores)


def test_critical_check_retrains_at_once_and_is_still_a_result(
    worker: RunningProcess, cli: Cli, later: None, trained_engine: Engine
) -> None:
    set_limits(cli, "low=1e-9", "medium=2e-9", "high=3e-9", "critical=4e-9")
    checked = cli("drift", "check", "BTCUSDT", "all")
    assert checked.exit_code == 0
    with transaction(trained_engine) as session:
        action = drift_actions.actions(session, key=ALL, limit=1)[0]
        job = jobs.get(session, str(action.job_id))
        assert job is not None
        assert (action.state, action.action, job.reason) == ("open", "retrain_now", "drift")
    told = words(checked)
    assert ": critical" in told
    assert f"Action {action.id}: the key retrains now, by job {job.id}." in told

    listed = words(cli("drift", "actions", "--open"))
    assert f"job {job.id[:8]} trains" in listed
    [plain] = json.loads(cli("drift", "actions", "--json").stdout)
    assert (plain["key"], plain["state"], plain["job_id"]) == (str(ALL), "open", job.id)

    summary = json.loads(cli("drift", "summary", "--json").stdout)
    assert {one["key"] for one in summary} == {str(key) for key in CHAMPIONS}
    mine = next(one for one in summary if one["key"] == str(ALL))
    assert (mine["worst"], mine["open_action"]) == ("critical", "retrain_now")
    assert mine["trend"][-1] == max(one["score"] for one in mine["newest"].values())
    assert mine["trend"][:-1] == [None] * 6
    told = words(cli("drift", "summary", "--days", "3"))
    assert "··█ retrain now" in told
    assert f"{TRENDING} - - - - - ···" in told


def test_all_keys_are_checked_each_with_its_score(
    worker: RunningProcess, cli: Cli, later: None, trained_engine: Engine
) -> None:
    set_limits(cli, "low=100", "medium=101", "high=102", "critical=103")
    told = words(cli("drift", "check", "--all"))
    with transaction(trained_engine) as session:
        newest = {key: drift.newest_check(session, key) for key in CHAMPIONS}
    for key, rows in newest.items():
        assert f"{key} 1 2019-09-17 00:00 {rows[0].drift_score:.3f} none" in told
    again = cli("drift", "check", "--all", "--json")
    assert (again.exit_code, again.stderr) == (0, "")
    assert sorted((one["key"], one["state"]) for one in json.loads(again.stdout)) == sorted(
        (str(key), "no_new_candles") for key in CHAMPIONS
    )


def test_check_that_fails_loses_no_other_keys_report(
    worker: RunningProcess, cli: Cli, later: None, trained_engine: Engine
) -> None:
    with transaction(trained_engine) as session:
        broken = registry.champion(session, TRENDING)
        assert broken is not None
        session.execute(sa.update(DriftNull).where(DriftNull.model_id == broken.id).values(body={}))
        bare = registry.champion(session, ALL)
        assert bare is not None
        session.execute(sa.delete(DriftNull).where(DriftNull.model_id == bare.id))
    done = cli("drift", "check", "--all", "--json")
    assert done.exit_code == 1
    states = {one["key"]: one["state"] for one in json.loads(done.stdout)}
    others = {str(key): "checked" for key in CHAMPIONS if key not in (ALL, TRENDING)}
    assert others
    assert states == {str(TRENDING): "failed", str(ALL): "no_calibration", **others}
    shown = cli("drift", "check", "--all")
    assert shown.exit_code == 1
    assert "KeyError" in shown.stdout
    assert all(key in shown.stdout for key in states)
    assert f"{ALL} - - - - - ······· no calibration: train again" in words(cli("drift", "summary"))


def test_key_with_too_few_signals_is_not_checked_and_the_exit_code_says_so(
    trained_env: dict[str, str], worker_process: Callable[..., RunningProcess], cli: Cli, later: None
) -> None:
    training = json.dumps({"drift": {"window_days": 1.0}})
    worker_process("drift", env=trained_env | {"ALPHAPLUS_TRAINING": training})
    told = cli("drift", "check", "BTCUSDT", "trending")
    assert told.exit_code == 1
    assert words(told).startswith(f"{TRENDING} was not checked: too few rows: ")
    assert "at least 250 are needed" in told.stdout
    plain = cli("drift", "check", "BTCUSDT", "trending", "--json")
    assert (plain.exit_code, json.loads(plain.stdout)["state"]) == (1, "too_few_rows")


def test_retrain_now_begins_a_job_and_asking_again_begins_no_other(
    cli: Cli, later: None, trained_engine: Engine
) -> None:
    done = cli("drift", "retrain", "BTCUSDT", "trending", "--reason", "news of a merger", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    first = json.loads(done.stdout)
    assert first["began"] is True
    again = cli("drift", "retrain", "BTCUSDT", "trending", "--reason", "impatience")
    assert f"{TRENDING} is being retrained already, by job {first['action']['job_id']}" in words(again)
    with transaction(trained_engine) as session:
        assert [row.id for row in drift_actions.actions(session, limit=9)] == [first["action"]["id"]]
        assert len(jobs.recent(session, 9, key=TRENDING)) == 2  # with the champion's own
        why = session.scalars(sa.text("SELECT why FROM ml_audit_log WHERE action = 'drift_action'")).all()
    assert why == ["news of a merger"]


def test_thresholds_of_a_key_hold_over_those_of_every_key_until_they_are_reset(
    cli: Cli, later: None, trained_engine: Engine
) -> None:
    before = words(cli("drift", "thresholds"))
    assert before.startswith(
        "In force for every key without limits of its own: ks 0.15, psi 0.25, low 0.1, medium 0.15, "
        "high 0.2, critical 0.3 "
    )
    assert "every key 0.15 0.25 0.1 0.15 0.2 0.3" in before  # as the migration has set them
    set_limits(cli, "high=0.22")
    key = ("BTCUSDT", "trending")
    own = cli("drift", "thresholds", *key, "--set", "critical=0.5", "--reason", "calm", "--json")
    found = json.loads(own.stdout)
    assert found["scope"] == "BTCUSDT 1h trending"
    assert (found["in_force"]["high"], found["in_force"]["critical"]) == (0.22, 0.5)
    assert [(row["regime"], row["why"]) for row in found["rows"]] == [
        ("*", "a test of alarms"), ("trending", "calm"),
    ]  # fmt: skip
    reset = json.loads(cli("drift", "thresholds", *key, "--reset", "--reason", "over", "--json").stdout)
    assert (reset["in_force"]["high"], reset["in_force"]["critical"]) == (0.22, 0.3)
    history = json.loads(cli("drift", "thresholds", *key, "--history", "--json").stdout)
    assert [row["valid_until"] is None for row in history["rows"]] == [True, False, False]
    told = words(cli("drift", "thresholds", "--history"))
    assert "every key" in told
    assert "BTCUSDT 1h trending" in told
    with transaction(trained_engine) as session:
        rows = session.execute(sa.text("SELECT subject, why FROM ml_audit_log WHERE action = 'threshold'"))
        assert rows.all() == [
            ("* * *", "a test of alarms"), ("BTCUSDT 1h trending", "calm"), ("BTCUSDT 1h trending", "over"),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["thresholds", "--set", "high=0.3", "--reason", "r"],
            "critical: 0.3 is not accepted; expected over",
        ),
        (["thresholds", "--set", "high=nan", "--reason", "r"], "high: nan is not accepted"),
        (["thresholds", "--set", "low=0", "--reason", "r"], "low: 0.0 is not accepted; expected over 0"),
        (["thresholds", "--set", "ks=1.5", "--reason", "r"], "ks: 1.5 is not accepted"),
        (["thresholds", "--set", "hihg=0.3", "--reason", "r"], "set: 'hihg=0.3' is not accepted"),
        (["thresholds", "--set", "high=x", "--reason", "r"], "high: 'x' is not accepted; expected a number"),
        (["thresholds", "--set", "high=0.25"], "reason: None is not accepted"),
        (["thresholds", "--set", "high=0.25", "--reason", " "], "reason: ' ' is not accepted"),
        (["thresholds", "../../etc", "trending"], "symbol: '../../etc' is not accepted"),
        (["thresholds", "", "", "--set", "high=0.25", "--reason", "r"], "symbol: '' is not accepted"),
        (["thresholds", "BTCUSDT", "", "--set", "high=0.25", "--reason", "r"], "regime: '' is not accepted"),
        (["thresholds", "--interval", "", "--set", "high=0.25", "--reason", "r"], "interval: '' is not"),
        (["check", "BTCUSDT", "all", "--interval", ""], "interval: '' is not accepted"),
        (["check", "BTCUSDT", "all", "--timeout", "nan"], "Invalid value for --timeout: nan"),
        (["check", "BTCUSDT", "all", "--timeout", "inf"], "inf is not in the range"),
        (["check", "BTCUSDT"], "give SYMBOL REGIME, or --all"),
        (["check", "BTCUSDT", "all", "--all"], "give SYMBOL REGIME, or --all"),
        (["check", "BTCUSDT", "sideway"], "regime: 'sideway' is not accepted"),
        (["check", "BTCUSDT", "consolidation"], "expected a key with a champion"),
        (["check", "ETHUSDT", "all"], "`alphaplus train ETHUSDT all --interval 1h` makes one"),
        (["retrain", "ETHUSDT", "all", "--reason", "r"], "`alphaplus train ETHUSDT all"),
        (["retrain", "BTCUSDT", "all", "--reason", ""], "reason: '' is not accepted"),
        (["summary", "--symbol", "x;"], "symbol: 'x;' is not accepted"),
        (["regret", "--days", "0"], "0 is not in the range"),
    ],
)
def test_bad_input_is_refused_by_name_and_value_and_nothing_is_sent(
    run_main: Cli, trained_engine: Engine, redis_url: str, arguments: list[str], told: str
) -> None:
    result = run_main("drift", *arguments)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("drift") == 0
    with transaction(trained_engine) as session:
        assert session.scalars(sa.text("SELECT changed_by FROM ml_drift_thresholds")).all() == ["migration"]


def test_without_a_worker_the_check_stays_in_the_queue_and_the_command_says_so(
    cli: Cli, redis_url: str
) -> None:
    waited = cli("drift", "check", "BTCUSDT", "all", "--timeout", "0.5")
    assert waited.exit_code == 4
    assert "`alphaplus worker drift` starts one" in " ".join(waited.stderr.split())
    sent = cli("drift", "check", "BTCUSDT", "trending", "--no-wait", "--json")
    assert (sent.exit_code, sent.stderr) == (0, "")
    [one] = json.loads(sent.stdout)
    assert one["key"] == str(TRENDING)
    with redis.Redis.from_url(redis_url) as client:
        messages = [json.loads(message) for message in client.lrange("drift", 0, -1)]
    assert one["task_id"] in [message["headers"]["id"] for message in messages]
    assert len(messages) == 2


def test_nothing_done_and_nothing_to_regret_are_said_in_words(run_main: Cli, later: None) -> None:
    assert run_main("drift", "actions").stdout == "Nothing was done about drift yet.\n"
    told = "No model took another one's place in the last 180 days, so there is nothing to regret.\n"
    assert run_main("drift", "regret").stdout == told
    assert json.loads(run_main("drift", "regret", "--json").stdout)["entries"] == []
    assert json.loads(run_main("drift", "actions", "--json").stdout) == []


def test_away_servers_have_the_exit_codes_of_every_command(run_cli: Cli) -> None:
    unset = {"ALPHAPLUS_DATABASE_URL": "", "ALPHAPLUS_REDIS_URL": ""}
    assert run_cli("drift", "summary", env=unset).exit_code == 3
    away = {"ALPHAPLUS_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}
    assert run_cli("drift", "summary", env=away).exit_code == 4
