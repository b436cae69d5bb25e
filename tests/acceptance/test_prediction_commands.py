"""`alphaplus predict | predictions | replay | accuracy | detect` on real champions, candles and servers."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from pydantic import SecretStr
from sqlalchemy.engine import Engine

from db import candles, predictions, registry
from db.models import Prediction
from db.session import create_engine, transaction
from ml.candles import to_datetime64
from ml.dataset import ROW_FEATURE_NAMES
from ml.features import FEATURE_NAMES
from runtime.settings import Settings
from tasks.answering import Answering
from tasks.base import Resources
from tasks.detect import Detection, read_signals
from tasks.outcomes import live_accuracy
from tasks.prediction_log import drain
from tests.predicting import ohlcv_rows
from tests.processes import CommandResult, RunningProcess, run_command, script
from tests.trained import CUT, FixedClock, resources_of
from worker.cli import main
from worker.replay import move_replay

pytestmark = pytest.mark.inference

HOUR = timedelta(hours=1)
NOW = CUT + timedelta(minutes=30)
DAYS = 6
WAIT_SECONDS = 60.0

Cli = Callable[..., CommandResult]
Json = dict[str, Any]


@pytest.fixture
def cli(trained_env: dict[str, str]) -> Cli:
    """Run ``alphaplus ARGS`` on the trained database."""

    def run(*args: str, **env: str) -> CommandResult:
        return run_command([script("alphaplus"), *args], trained_env | env)

    return run


@pytest.fixture
def trained_engine(trained_database_url: str) -> Iterator[Engine]:
    engine = create_engine(trained_database_url, application_name="tests")
    yield engine
    engine.dispose()


@pytest.fixture
def worker(trained_env: dict[str, str], worker_process: Callable[..., RunningProcess]) -> RunningProcess:
    return worker_process("inference", "--pool=solo", env=trained_env)


@pytest.fixture
def ask(trained_database_url: str, redis_url: str) -> Iterator[Callable[..., list[Json]]]:
    """Answer signals as a worker does, and store the records: ``ask(signals, moment)``."""
    settings = Settings(database_url=SecretStr(trained_database_url), redis_url=SecretStr(redis_url))
    clock = FixedClock(NOW)
    resources = Resources(lambda: settings, lambda _: clock)
    answering = Answering(resources)

    def run(signals: list[Json], moment: datetime = NOW) -> list[Json]:
        clock.moment = moment
        reply = answering.handle(str(uuid4()), [signals], {}).reply
        drained = drain(client, resources.transaction, consumer="test")
        assert (drained.rows, drained.rejected) == (len(signals), 0)
        return list(reply["answers"])

    with redis.Redis.from_url(redis_url) as client:
        yield run
    resources.engine.dispose()


@pytest.fixture
def run_main(
    trained_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., CommandResult]:
    """As ``cli``, in this process."""

    def run(*args: str) -> CommandResult:
        for name, value in trained_env.items():
            if name.startswith("ALPHAPLUS_"):
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["alphaplus", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        return CommandResult(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def resolve(trained_database_url: str) -> Iterator[Callable[[datetime], None]]:
    """Run ``tasks.resolve_outcomes`` at a moment."""
    with Celery("resolver", set_as_current=False) as app:

        def run(moment: datetime) -> None:
            app.resources = resources_of(trained_database_url, moment)
            app.tasks["tasks.resolve_outcomes"].apply(throw=True)
            app.resources.engine.dispose()

        yield run


def newest(engine: Engine, moment: datetime, symbol: str = "BTCUSDT") -> Detection:
    with transaction(engine) as session:
        return read_signals(session, symbol=symbol, interval="1h", now=moment, max_age_bars=1.0)


def first_hour(engine: Engine, fits: Callable[[Detection], bool], symbol: str = "BTCUSDT") -> datetime:
    """The first half past an hour, from the cut on, at which the newest candle fits."""
    moment = NOW
    while not fits(newest(engine, moment, symbol)):
        moment += HOUR
    return moment


def every_signal(engine: Engine, hours: int, symbol: str = "BTCUSDT") -> list[tuple[datetime, list[Json]]]:
    """Each hour from the cut on that has signals, with them."""
    moments = (NOW + index * HOUR for index in range(hours))
    found = ((moment, newest(engine, moment, symbol)) for moment in moments)
    return [(moment, one.messages()) for moment, one in found if one.signals]


def get(engine: Engine, prediction_id: str) -> Prediction:
    with transaction(engine) as session:
        [row] = session.scalars(sa.select(Prediction).where(Prediction.id == prediction_id))
    return row


def directions(found: Detection) -> list[int | None]:
    """Of the lines that a candle gets."""
    return [one.direction for one in found.signals] or [None]


def given(answers: list[Json]) -> Json:
    """The first that is no abstention."""
    return next(one for one in answers if one["decision"] != "abstain")


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
        assert (one["signal_id"], one["pattern_confidence"]) == (message["id"], message["confidence"])
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


def test_replay_makes_every_answer_again_to_the_last_bit(
    run_main: Cli, ask: Callable[..., list[Json]], trained_engine: Engine
) -> None:
    hours = every_signal(trained_engine, 24 * 3)
    answers = [one for moment, signals in hours for one in ask(signals, moment)]
    served = [one for one in answers if one["model"] is not None]
    from tasks.remake import remake

    for one in served:
        with transaction(trained_engine) as session:
            row = get(trained_engine, one["prediction_id"])
            remade = remake(session, row, max_signal_age_bars=1.0)
        assert remade.identical
        assert [value.name for value in remade.compared if value.again is not None]
        assert remade.candles is not None
        assert remade.candles.state == "equal"
    assert len(served) > 60

    one = given(served)
    result = run_main("replay", one["prediction_id"], "--json", "--features")
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert told["identical"]
    assert (told["model"], told["model_version"]) == (one["model"], one["model_version"])
    assert told["values"]["confidence"] == {
        "recorded": one["confidence"],
        "again": one["confidence"],
        "same": True,
    }
    assert told["features_from_candles"]["state"] == "equal"
    assert tuple(told["features"]) == ROW_FEATURE_NAMES
    with transaction(trained_engine) as session:
        row = get(trained_engine, one["prediction_id"])
        model = registry.by_id(session, [row.model_id or 0])[row.model_id or 0]
    assert (told["artifact_sha256"], told["booster_sha256"]) == (model.artifact_sha256, model.booster_sha256)
    assert told["libraries_now"] == told["libraries_then"]

    text = run_main("replay", one["prediction_id"][:8], "--features").stdout
    assert "Identical, to the last bit." in text
    assert f"{one['model']}, version {one['model_version']}, now champion" in text
    assert str(one["confidence"]) in text
    assert "they give the same features, bit for bit" in text
    assert all(name in text for name in ROW_FEATURE_NAMES)
    assert "stage_done" not in text


def test_replay_finds_a_changed_record_and_changed_bytes(
    run_main: Cli, ask: Callable[..., list[Json]], trained_engine: Engine
) -> None:
    [(moment, signals), *_] = every_signal(trained_engine, 24)
    one = given(ask(signals, moment) + ask(signals, moment))
    changed = math.nextafter(one["confidence"], 1.0)
    with transaction(trained_engine) as session:
        session.execute(
            sa.update(Prediction).where(Prediction.id == one["prediction_id"]).values(confidence=changed)
        )
    result = run_main("replay", one["prediction_id"], "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert not told["identical"]
    assert [name for name, value in told["values"].items() if not value["same"]] == ["confidence"]
    assert "Not identical" in run_main("replay", one["prediction_id"]).stdout

    with transaction(trained_engine) as session:
        session.execute(sa.text("UPDATE ml_model_artifacts SET body = 'x', size = 1 WHERE kind = 'booster'"))
    broken = run_main("replay", one["prediction_id"])
    assert broken.exit_code == 3
    assert "sha256" in broken.stderr


def test_replay_reads_the_candles_as_they_were_known_and_says_where_the_caller_brought_others(
    run_main: Cli, ask: Callable[..., list[Json]], trained_engine: Engine
) -> None:
    [(moment, signals), *_] = every_signal(trained_engine, 24)
    stored = ask(signals, moment)[0]
    row = get(trained_engine, stored["prediction_id"])
    with transaction(trained_engine) as session:  # the exchange corrects the last candle, a day later
        known = candles.read(
            session, "BTCUSDT", "1h", known_at=moment, start=row.signal_time - HOUR, end=row.signal_time
        )
        corrected = type(known)(
            "1h", known.open_time, known.open, known.high * 1.01, known.low, known.close, known.volume
        )
        written = candles.write(
            session, symbol="BTCUSDT", interval="1h", candles=corrected, source="test",
            now=moment + timedelta(days=1),
        )  # fmt: skip
    assert written.revised == 1
    told = json.loads(run_main("replay", stored["prediction_id"], "--json").stdout)
    assert told["features_from_candles"]["state"] == "equal"

    message = {name: value for name, value in signals[0].items() if name != "id"}
    rows = ohlcv_rows(until=row.signal_time)
    for one in rows[-24:]:
        one[5] *= 3
    own = ask([message | {"candles": rows}], moment)[0]
    result = run_main("replay", own["prediction_id"], "--json")
    other = json.loads(result.stdout)
    assert (result.exit_code, other["identical"]) == (0, True)
    assert other["features_from_candles"]["state"] == "different"
    assert other["features_from_candles"]["largest"].startswith("volume_")
    assert other["features_from_candles"]["difference"] > 0.1
    assert "they give other features: volume_" in run_main("replay", own["prediction_id"]).stdout


def test_replay_of_an_abstention_says_that_no_model_was_used(
    run_main: Cli, ask: Callable[..., list[Json]], trained_engine: Engine
) -> None:
    [unseen] = ask([{"symbol": "BTCUSDT", "direction": 1, "time": (CUT - 9 * HOUR).isoformat()}])
    [other] = ask([{"symbol": "ETHUSDT", "direction": 1, "patterns": ["CDLDOJI"]}])
    assert (unseen["abstain_reason"], other["abstain_reason"]) == ("stale_signal", "no_model")
    for one in (unseen, other):
        text = run_main("replay", one["prediction_id"])
        assert (text.exit_code, text.stderr) == (0, "")
        assert "none was used: there are no numbers to make again" in text.stdout
    told = json.loads(run_main("replay", other["prediction_id"], "--json").stdout)
    assert (told["model"], told["values"], told["features_from_candles"]["state"]) == (None, {}, "equal")

    features: dict[str, float | None] = dict.fromkeys(FEATURE_NAMES, 9.0)
    far = {"symbol": "BTCUSDT", "direction": 1, "patterns": ["CDLDOJI"], "time": CUT.isoformat()}
    [withheld] = ask([far | {"features": features | {"atr_rank_500": 0.5, "width_rank_500": 0.9}}])
    assert withheld["abstain_reason"] == "out_of_distribution"
    told = json.loads(run_main("replay", withheld["prediction_id"], "--json").stdout)
    assert told["identical"]
    assert told["values"]["confidence"] == {"recorded": None, "again": None, "same": True}
    assert told["values"]["out_of_distribution"]["again"] == withheld["out_of_distribution"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (str(uuid4()), "the id of a stored prediction"),
        ("deadbeef", "the id of a stored prediction"),
        ("dead", "its first 8 characters or more"),
        ("../../etc/passwd", "its first 8 characters or more"),
        ("0" * 40, "its first 8 characters or more"),
    ],
)
def test_replay_of_an_unknown_id_is_bad_input(run_main: Cli, text: str, told: str) -> None:
    result = run_main("replay", text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in " ".join(result.stderr.split())


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
        [plain, *_] = [line for line in table.stdout.splitlines() if line.lstrip().startswith(str(key))]
        assert [str(one.resolved), str(one.answered)] == plain.split()[3:5]
    assert "No bounds where there are too few signals" in table.stdout


def test_detect_answers_each_symbols_newest_candle_once_and_ends(
    worker: RunningProcess, cli: Cli, trained_engine: Engine, redis_url: str
) -> None:
    moment = first_hour(trained_engine, lambda found: bool(found.signals))
    move_replay(redis_url, moment)
    result = cli("detect", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    for symbol in ("BTCUSDT", "ETHUSDT"):
        found = newest(trained_engine, moment, symbol)
        mine = [line for line in lines if line["symbol"] == symbol]
        if found.signals:
            assert [line["signal_id"] for line in mine] == [one["id"] for one in found.messages()]
        else:
            assert [line["reason"] for line in mine] == [found.reason]
    text = cli("detect", "--symbol", "BTCUSDT").stdout
    assert text.count("BTCUSDT 1h") == len(newest(trained_engine, moment).signals)
    wrong = cli("detect", "--symbol", "SOLUSDT")
    assert wrong.exit_code == 2
    assert "expected a symbol with 1h candles: BTCUSDT, ETHUSDT" in " ".join(wrong.stderr.split())


def test_detect_follows_candle_by_candle_and_outlives_its_worker(
    worker: RunningProcess,
    worker_process: Callable[..., RunningProcess],
    processes: Callable[..., RunningProcess],
    trained_env: dict[str, str],
    trained_engine: Engine,
    redis_url: str,
) -> None:
    command = [script("alphaplus"), "detect", "--symbol", "BTCUSDT", "--follow", "--json", "--timeout", "1"]
    follow = processes(command, trained_env)
    moments = [NOW + index * HOUR for index in range(4)]
    moments += [moment for moment, _ in every_signal(trained_engine, 24) if moment > moments[-1]][:2]

    def lines() -> list[Json]:
        text = follow.log.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def wait_for_candle(moment: datetime) -> None:
        close = moment - timedelta(minutes=30)
        follow.wait_for(
            lambda: any(datetime.fromisoformat(line["time"]) == close for line in lines()), str(close)
        )

    for moment in moments[:-1]:
        move_replay(redis_url, moment)
        wait_for_candle(moment)
    worker.kill()
    move_replay(redis_url, moments[-1])
    follow.wait_for_line("start one with `alphaplus worker inference`")
    worker_process("inference", "--pool=solo", env=trained_env)
    wait_for_candle(moments[-1])
    time.sleep(2.5)  # two more looks: nothing is answered twice

    follow.popen.send_signal(signal.SIGINT)
    assert follow.popen.wait(WAIT_SECONDS) == 0
    expected = [
        (moment - timedelta(minutes=30), direction)
        for moment in moments
        for direction in directions(newest(trained_engine, moment))
    ]
    told = [(datetime.fromisoformat(line["time"]), line.get("direction")) for line in lines()]
    assert told == expected
    assert follow.log.read_text().count("Trying on.") == 1


def test_candle_that_is_detected_twice_is_recorded_once(
    worker: RunningProcess,
    worker_process: Callable[..., RunningProcess],
    trained_env: dict[str, str],
    trained_engine: Engine,
    redis_url: str,
) -> None:
    moment = first_hour(trained_engine, lambda found: bool(found.signals))
    move_replay(redis_url, moment)
    worker_process("maintenance", "--pool=solo", env=trained_env)
    with Celery("sender", broker=redis_url, backend=redis_url, set_as_current=False) as sender:

        def rows() -> list[Prediction]:
            sender.send_task("tasks.drain_predictions", queue="maintenance", ignore_result=True)
            with transaction(trained_engine) as session:
                return list(predictions.recent(session, limit=100))

        def wait_for(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + WAIT_SECONDS
            while not condition():
                assert time.monotonic() < deadline
                time.sleep(0.1)

        expected = newest(trained_engine, moment)
        sender.send_task("tasks.detect_signals", args=["BTCUSDT"], queue="maintenance")
        wait_for(lambda: len(rows()) == len(expected.signals))
        sender.send_task("tasks.detect_signals", args=["BTCUSDT", "1h"], queue="maintenance")
        sender.send_task("tasks.detect_signals", args=["ETHUSDT", "1h"], queue="maintenance")
        other = newest(trained_engine, moment, "ETHUSDT")
        total = len(expected.signals) + len(other.signals)
        wait_for(lambda: len(rows()) >= total)
        found = rows()
    assert {row.signal_id for row in found if row.symbol == "BTCUSDT"} == {
        message["id"] for message in expected.messages()
    }
    assert len(found) == total
    assert {row.symbol: row.decision for row in found}.get("ETHUSDT", "abstain") == "abstain"


def test_shared_window_of_the_tests_holds_signals_of_every_kind(trained_engine: Engine) -> None:
    """What the tests above rely on: real candles with and without patterns after the cut."""
    kinds = [newest(trained_engine, NOW + index * HOUR).reason for index in range(48)]
    assert {None, "no_pattern"} <= set(kinds)
    assert np.datetime64(to_datetime64(NOW)) > to_datetime64(CUT)
