"""`alphaplus train | jobs | models | model show` as processes; the test plays the worker."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import pytest
import redis
from sqlalchemy.engine import Engine

from db import artifacts, candles, jobs, registry
from db.session import transaction
from ml.keys import ModelKey
from tests.integration.db.rows import hourly
from tests.processes import CommandResult, RunningProcess, script

pytestmark = pytest.mark.training

Start = Callable[[list[str], Mapping[str, str]], RunningProcess]
RunCli = Callable[..., CommandResult]
KEY = ModelKey("BTCUSDT", "1h", "trending")
NOW = datetime(2019, 10, 1, tzinfo=UTC)
SOURCE = "a test's own candles"
METRICS = {
    "rows": 1726,
    "first_close": "2019-04-11T21:00:00",
    "last_close": "2019-09-24T15:00:00",
    "base_rate": 0.601,
    "threshold": 0.435,
    "auc": {"value": 0.643, "low": 0.596, "high": 0.691},
    "f1": {"value": 0.55, "low": 0.53, "high": None},
}
WHY = "F1 is 0.5500, at least 0.6000 is asked"
GATES = [
    {"name": "min_f1", "value": 0.55, "limit": 0.6, "passed": False, "detail": WHY},
    {"name": "min_recall", "value": 0.7, "limit": 0.5, "passed": True, "detail": "recall is 0.7000"},
]


@pytest.fixture(autouse=True)
def _stored_candles(engine: Engine) -> None:
    with transaction(engine) as session:
        candles.write(
            session, symbol="BTCUSDT", interval="1h", candles=hourly(3), source=SOURCE, now=datetime.now(UTC)
        )


def finish_as_rejected(engine: Engine, job_id: str) -> None:
    """What a worker does: claims the job, makes a model that fails a gate, ends the job with it."""
    with transaction(engine) as session:
        claim = jobs.claim(session, job_id, owner="the test", lease=timedelta(seconds=30))
        assert isinstance(claim, jobs.Claimed)
        digests = []
        for kind in ("booster", "model"):
            body = f"{kind} of {job_id}".encode()
            digests.append(hashlib.sha256(body).hexdigest())
            artifacts.put(session, sha256=digests[-1], body=body, kind=kind, address=None, metadata={})
        model = registry.add(
            session, key=claim.job.key, artifact_sha256=digests[1], booster_sha256=digests[0], job_id=job_id,
            as_of=NOW, data_cut=NOW, config={}, config_digest="0" * 64, metrics=METRICS,
            decision={"promote": False, "gates": GATES, "reasons": [WHY]},
            state="rejected", metadata={},
        )  # fmt: skip
        jobs.finish(session, job_id, claim.fencing_token, state="succeeded", outcome={}, model_id=model.id)


def wait_for_job(engine: Engine, command: RunningProcess) -> str:
    """The id of the one job, once it is there."""
    found: list[str] = []

    def look() -> bool:
        with transaction(engine) as session:
            found[:] = [job.id for job in jobs.recent(session, 2)]
        return bool(found)

    command.wait_for(look, "a job's row")
    assert len(found) == 1
    return found[0]


def test_train_and_wait_shows_the_decision_and_its_gates(
    processes: Start, settings_env: dict[str, str], engine: Engine, redis_url: str, run_cli: RunCli
) -> None:
    command = processes([script("alphaplus"), "train", "BTCUSDT", "trending", "--wait"], settings_env)
    job_id = wait_for_job(engine, command)

    def sent() -> list[str]:
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            return [json.loads(message)["headers"]["id"] for message in client.lrange("training", 0, -1)]

    command.wait_for(lambda: sent() == [job_id], "the job's message")
    finish_as_rejected(engine, job_id)
    assert command.popen.wait(30) == 0
    told = command.log.read_text()
    assert f"BTCUSDT 1h trending: job {job_id} succeeded. version 1 rejected by min_f1" in told
    assert WHY in told

    listed = run_cli("jobs")
    assert f"{job_id[:8]}  BTCUSDT 1h trending  succeeded" in listed.stdout
    models = run_cli("models")
    assert (
        "BTCUSDT 1h trending  1  rejected  1726  0.601  0.643 [0.596, 0.691]  0.550 [0.530, -]"
        in models.stdout
    )
    assert f"Candles of BTCUSDT 1h: {SOURCE}" in models.stdout
    shown = run_cli("model", "show", "BTCUSDT/1h/trending")
    assert "BTCUSDT 1h trending, version 1: rejected" in shown.stdout
    assert SOURCE in shown.stdout
    assert "auc     0.643  0.596 to 0.691" in shown.stdout
    for result in (listed, models, shown):
        assert result.exit_code == 0, result.stderr
        assert max(map(len, result.stdout.splitlines())) <= 100

    [job] = json.loads(run_cli("jobs", "--json", "--symbol", "BTCUSDT").stdout)
    assert (job["id"], job["model"]["metrics"]) == (job_id, METRICS)
    assert json.loads(run_cli("jobs", "--json", "--state", "running").stdout) == []
    [model] = json.loads(run_cli("models", "--json").stdout)
    assert (model["key"], model["candles_source"]) == ("BTCUSDT 1h trending", SOURCE)


def test_interrupted_wait_leaves_the_job_and_says_so(
    processes: Start, settings_env: dict[str, str], engine: Engine
) -> None:
    command = processes([script("alphaplus"), "train", "BTCUSDT", "trending", "--wait"], settings_env)
    job_id = wait_for_job(engine, command)
    command.wait_for_line("queued")
    time.sleep(0.3)  # into its waiting: before that an interrupt is an interrupt of the start
    command.popen.send_signal(signal.SIGINT)
    assert command.popen.wait(30) == 130
    assert f"Job {job_id} goes on" in command.log.read_text()
    with transaction(engine) as session:
        job = jobs.get(session, job_id)
        assert job is not None
        assert job.state == "queued"


def test_refused_training_ends_the_wait_with_exit_code_1_and_its_reason(
    processes: Start, settings_env: dict[str, str], engine: Engine
) -> None:
    command = processes(
        [script("alphaplus"), "train", "BTCUSDT", "trending", "--wait", "--json"], settings_env
    )
    job_id = wait_for_job(engine, command)
    with transaction(engine) as session:
        claim = jobs.claim(session, job_id, owner="the test", lease=timedelta(seconds=30))
        assert isinstance(claim, jobs.Claimed)
        outcome = {"refused": "too_few_rows", "detail": "12 rows, 500 are needed"}
        jobs.finish(session, job_id, claim.fencing_token, state="refused", outcome=outcome)
    assert command.popen.wait(30) == 1
    assert '"refused": "too_few_rows"' in command.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "told"),
    [
        (["train", "SOLUSDT", "trending"], 2, "expected a symbol with 1h candles: BTCUSDT"),
        (["train", "../../etc", "trending"], 2, "symbol: '../../etc' is not accepted"),
        (["train", "BTCUSDT", "bogus"], 2, "regime: 'bogus' is not accepted"),
        (["model", "show", "BTCUSDT"], 2, "key: 'BTCUSDT' is not accepted"),
        (["model", "show", "BTCUSDT", "trending"], 1, "has no model"),
        (["jobs", "--state", "lost"], 2, "'lost' is not one of"),
    ],
)
def test_nonsense_is_refused_by_name_and_nothing_is_written(
    run_cli: RunCli, engine: Engine, redis_url: str, arguments: list[str], exit_code: int, told: str
) -> None:
    result = run_cli(*arguments)
    assert result.exit_code == exit_code
    assert told in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    with transaction(engine) as session:
        assert jobs.recent(session, 1) == []
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
