"""`alphaplus predict | predictions | accuracy` on real champions, candles and servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import redis
from sqlalchemy.engine import Engine

from db.session import transaction
from tasks.outcomes import live_accuracy
from tests.newest_signals import HOUR, NOW, Json, every_signal, first_hour, newest
from tests.processes import CommandResult, RunningProcess
from tests.trained import CUT
from worker.replay import move_replay

pytestmark = pytest.mark.inference

DAYS = 6
"""Of answers that accuracy is made of."""

Cli = Callable[..., CommandResult]


@pytest.fixture
def worker(trained_env: dict[str, str], worker_process: Callable[..., RunningProcess]) -> RunningProcess:
    return worker_process("inference", "--pool=solo", env=trained_env)


def test_predict_asks_about_the_newest_candle_and_shows_the_answer_beside_the_patterns(
    worker: RunningProcess, cli: Cli, trained_engine: Engine, redis_url: str
) -> None:
    moment = first_hour(trained_engine, lambda found: len(found.signals) == 2)
    move_replay(redis_url, moment)
    expected = newest(trained_engine, moment)

    plain = cli("predict", "BTCUSDT", "--json")
    table = cli("predict", "BTCUSDT")

    assert (plain.exit_code, table.exit_code, plain.stderr, table.stderr) == (0, 0, "", "")
    answers = json.loads(plain.stdout)
    assert [one["direction"] for one in answers] == [-1, 1]
    for one, message in zip(answers, expected.messages(), strict=True):
        for name in ("symbol", "interval", "time", "patterns"):
            assert one[name] == message[name]
        assert one["signal_id"] == message["id"]
        assert 0 < one["pattern_confidence"] < 1  # by the model that answered
    assert table.stdout.startswith(f"BTCUSDT 1h, candle closed {expected.close_time:%Y-%m-%d %H:%M} UTC\n")
    for one in answers:
        assert one["decision"] in table.stdout
        assert f"{one['pattern_confidence']:.3f}" in table.stdout


def test_predict_takes_a_signal_of_the_callers_own_and_abstains_in_words(
    worker: RunningProcess, cli: Cli, trained_engine: Engine
) -> None:
    options = [
        "--direction",
        "short",
        "--pattern",
        "CDLDOJI",
        "--pattern",
        "CDLHARAMI",
        "--confidence",
        "0.57",
    ]
    own = cli("predict", "BTCUSDT", *options, "--time", CUT.isoformat(), "--json")
    assert (own.exit_code, own.stderr) == (0, "")
    [answer] = json.loads(own.stdout)
    assert (answer["direction"], answer["pattern_confidence"]) == (-1, 0.57)
    assert answer["patterns"] == ["CDLDOJI", "CDLHARAMI"]
    assert datetime.fromisoformat(answer["time"]) == CUT

    none = cli("predict", "ETHUSDT", "--direction", "long", "--pattern", "CDLDOJI")
    assert (none.exit_code, none.stderr) == (0, "")
    told = " ".join(none.stdout.split())
    assert "long: abstains, neither the key nor its fallback has a champion: `alphaplus train ETHUSDT" in told

    old = (CUT - 3 * HOUR).isoformat()
    stale = cli("predict", "BTCUSDT", "--direction", "long", "--time", old, "--json")
    assert (stale.exit_code, json.loads(stale.stdout)[0]["abstain_reason"]) == (0, "stale_signal")

    # What only a worker can refuse; the field is named as the caller of the wire would name it.
    unknown = cli("predict", "SOLUSDT", "--direction", "long")
    assert unknown.exit_code == 2
    assert "symbol: 'SOLUSDT' is not accepted" in " ".join(unknown.stderr.split())


def test_candle_without_a_pattern_is_named_and_asks_nobody(
    run_main: Cli, trained_engine: Engine, redis_url: str
) -> None:
    moment = first_hour(trained_engine, lambda found: found.reason == "no_pattern")
    move_replay(redis_url, moment)
    told = f"BTCUSDT 1h: the newest candle closed {moment - timedelta(minutes=30):%Y-%m-%d %H:%M} UTC"
    text, plain = run_main("predict", "BTCUSDT"), run_main("predict", "BTCUSDT", "--json")
    assert (text.exit_code, text.stdout, text.stderr) == (0, f"{told} and has no pattern.\n", "")
    assert (plain.exit_code, plain.stdout, plain.stderr) == (0, "[]\n", f"{told} and has no pattern.\n")
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("inference") == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["BTCUSDT", "--direction", "long", "--confidence", "1.7"], "confidence: '1.7' is not accepted"),
        (["BTCUSDT", "--direction", "long", "--confidence", "nan"], "confidence: 'nan' is not accepted"),
        (["BTCUSDT", "--direction", "long", "--pattern", "CDLDODO"], "patterns[0]: 'CDLDODO' is not"),
        (["BTCUSDT", "--direction", "long", "--time", "2019-08-31T23:00"], "ISO-8601 time with its zone"),
        (["BTCUSDT", "--direction", "long", "--time", "2031-01-01T00:00Z"], "a time that has come"),
        (["BTCUSDT", "--direction", "sideways"], "'sideways' is not one of"),
        (["BTCUSDT", "--pattern", "CDLDOJI"], "direction: None is not accepted; expected long or short"),
        (["../../etc"], "symbol: '../../etc' is not accepted"),
        (["SOLUSDT"], "expected a symbol with 1h candles: BTCUSDT, ETHUSDT"),
        (["BTCUSDT", "--interval", "7h"], "interval: '7h' is not accepted"),
        (["BTCUSDT", "--timeout", "0"], "0 is not in the range"),
    ],
)
def test_bad_input_is_refused_by_name_without_a_worker(
    run_main: Cli, redis_url: str, arguments: list[str], told: str
) -> None:
    result = run_main("predict", *arguments)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


def test_without_a_worker_or_a_broker_it_says_what_to_start(cli: Cli) -> None:
    command = ["predict", "BTCUSDT", "--direction", "long", "--pattern", "CDLDOJI", "--timeout", "0.3"]
    alone = cli(*command)
    assert (alone.exit_code, alone.stdout) == (4, "")
    assert "start one with `alphaplus worker inference`" in " ".join(alone.stderr.split())
    away = cli(*command, ALPHAPLUS_REDIS_URL="redis://127.0.0.1:1/0", ALPHAPLUS_CLOCK="wall")
    assert away.exit_code == 4
    assert "Traceback" not in away.stderr
    nothing = cli(*command, ALPHAPLUS_REDIS_URL="", ALPHAPLUS_DATABASE_URL="", ALPHAPLUS_CLOCK="wall")
    assert nothing.exit_code == 3
    assert "alphaplus up" in nothing.stderr


def test_predictions_are_listed_with_what_became_of_them(
    run_main: Cli,
    ask: Callable[..., list[Json]],
    resolve: Callable[[datetime], None],
    trained_engine: Engine,
) -> None:
    assert "No such predictions." in run_main("predictions").stdout
    hours = every_signal(trained_engine, 24)
    answers = [one for moment, signals in hours for one in ask(signals, moment)]
    later = NOW + 20 * HOUR
    resolve(later)

    listed = json.loads(run_main("predictions", "--json", "--limit", "1000").stdout)
    assert {one["id"] for one in listed} == {one["prediction_id"] for one in answers}
    assert [one["signal_time"] for one in listed] == sorted(
        (one["signal_time"] for one in listed), reverse=True
    )
    ids = {
        flag: {
            one["id"] for one in json.loads(run_main("predictions", flag, "--json", "--limit", "1000").stdout)
        }
        for flag in ("--open", "--resolved")
    }
    assert ids["--open"] == {one["id"] for one in listed if one["resolved_at"] is None}
    assert ids["--resolved"] == {one["id"] for one in listed if one["resolved_at"] is not None}
    assert min(len(ids["--open"]), len(ids["--resolved"])) > 3

    few = json.loads(run_main("predictions", "--resolved", "--json", "--limit", "2").stdout)
    assert few == [one for one in listed if one["resolved_at"] is not None][:2]
    assert json.loads(run_main("predictions", "--symbol", "ETHUSDT", "--json").stdout) == []
    decision = listed[0]["decision"]
    same = json.loads(run_main("predictions", "--decision", decision, "--json", "--limit", "1000").stdout)
    assert [one["id"] for one in same] == [one["id"] for one in listed if one["decision"] == decision]

    table = run_main("predictions", "--limit", "1000").stdout
    assert all(one["prediction_id"][:8] in table for one in answers)
    assert " hit " in table
    assert " miss " in table
    assert " open to " in table
    assert run_main("predictions", "--symbol", "btc").exit_code == 2


def test_accuracy_is_that_of_the_outcomes_and_says_where_there_are_none(
    run_main: Cli,
    ask: Callable[..., list[Json]],
    resolve: Callable[[datetime], None],
    trained_engine: Engine,
    redis_url: str,
) -> None:
    assert "No signal has an outcome yet" in run_main("accuracy").stdout
    for moment, signals in every_signal(trained_engine, 24 * DAYS):
        ask(signals, moment)
    end = NOW + timedelta(days=DAYS + 1)
    move_replay(redis_url, end)
    resolve(end)
    with transaction(trained_engine) as session:
        since = end - timedelta(days=90)
        expected = live_accuracy(session, since=since, until=end)
    assert len(expected) > 2

    told = json.loads(run_main("accuracy", "--json").stdout)
    assert told == [{"key": str(key)} | one.to_json() for key, one in expected]
    assert json.loads(run_main("accuracy", "--symbol", "ETHUSDT", "--json").stdout) == []
    recent = json.loads(run_main("accuracy", "--days", "2", "--json").stdout)
    assert sum(one["resolved"] for one in recent) < sum(one["resolved"] for one in told)

    table = run_main("accuracy")
    assert (table.exit_code, table.stderr) == (0, "")
    for key, one in expected:
        market = str(key).replace(" all", " unknown")
        [plain, *_] = [line for line in table.stdout.splitlines() if line.lstrip().startswith(market)]
        assert [str(one.resolved), str(one.answered)] == plain.split()[3:5]
    assert "No bounds where there are too few signals" in table.stdout
