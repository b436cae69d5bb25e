"""The `celery call` plugin: what --args takes, and what is refused before it is sent."""

from __future__ import annotations

from typing import Any

import click
import pytest
from celery import Celery
from celery.bin.call import call
from hypothesis import given
from hypothesis import strategies as st

from worker import celery_cli
from worker.celery_cli import CommaSeparatedOrJson, check_call

pytestmark = pytest.mark.scheduler

ARGS = CommaSeparatedOrJson()


@pytest.fixture(scope="module")
def app() -> Celery:
    """An application with a task that takes what tasks.train takes, and no server."""
    app = Celery("alphaplus", set_as_current=False, broker="memory://")

    @app.task(name="tasks.example")
    def example(symbol: str, regime: str, interval: str | None = None, reason: str = "manual") -> None:
        """Never runs."""

    app.finalize()
    return app


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("BTCUSDT,trending", ["BTCUSDT", "trending"]),
        (" BTCUSDT , trending ", ["BTCUSDT", "trending"]),
        ("BTCUSDT", ["BTCUSDT"]),
        ("1,2", ["1", "2"]),
        ('["BTCUSDT", "trending"]', ["BTCUSDT", "trending"]),
        (' [1, null, {"a": 2}]', [1, None, {"a": 2}]),
        ("[]", []),
        (["BTCUSDT"], ["BTCUSDT"]),
    ],
)
def test_args_take_comma_separated_text_and_json_arrays(given: Any, taken: list[Any]) -> None:
    assert ARGS.convert(given, None, None) == taken


@pytest.mark.parametrize(
    "given", ["", ",", "BTCUSDT,", "a,,b", "[1", '["BTCUSDT", ', '{"a": 1}', '"text"', "[1] x"]
)
def test_malformed_args_are_refused(given: str) -> None:
    with pytest.raises(click.BadParameter):
        ARGS.convert(given, None, None)


@given(st.text())
def test_any_text_gives_a_list_or_a_refusal(text: str) -> None:
    try:
        taken = ARGS.convert(text, None, None)
    except click.BadParameter:
        return
    assert isinstance(taken, list)


@given(st.lists(st.from_regex(r"[A-Za-z0-9_./-]+", fullmatch=True), min_size=1))
def test_plain_words_come_back_as_they_were(words: list[str]) -> None:
    assert ARGS.convert(",".join(words), None, None) == words


def test_celerys_own_call_has_the_new_type() -> None:
    [option] = [parameter for parameter in call.params if parameter.name == "args"]
    assert isinstance(option.type, CommaSeparatedOrJson)


def test_celery_without_that_option_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "params", [one for one in call.params if one.name != "args"])
    with pytest.raises(SystemExit, match="--args"):
        celery_cli._take_comma_separated_args()


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (["BTCUSDT", "trending"], {}),
        (["BTCUSDT", "all", "4h"], {"reason": "test"}),
        (["BTCUSDT", "all", None], {}),
        ([], {"symbol": "ETHUSDT", "regime": "volatile"}),
    ],
)
def test_call_that_a_worker_could_do_passes(app: Celery, args: list[Any], kwargs: dict[str, Any]) -> None:
    check_call(app, "tasks.example", args, kwargs)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "told"),
    [
        ("tasks.trian", [], {}, "no task is called 'tasks.trian'; there are .*tasks.example"),
        ("celery.nonsense", [], {}, "no task is called"),
        ("tasks.example", ["BTCUSDT"], {}, "missing a required argument: 'regime'"),
        ("tasks.example", ["BTCUSDT", "trending", "1h", "x", "y"], {}, "too many positional arguments"),
        ("tasks.example", ["BTCUSDT", "trending"], {"sybmol": "X"}, "unexpected keyword argument 'sybmol'"),
        (
            "tasks.example",
            ["BTCUSDT", "bogus"],
            {},
            "regime: 'bogus' is not accepted; expected one of trending",
        ),
        ("tasks.example", ["../../etc", "trending"], {}, "symbol: '../../etc' is not accepted"),
        ("tasks.example", ["'; drop table", "trending"], {}, "symbol: .* is not accepted"),
        ("tasks.example", [None, "trending"], {}, "symbol: None is not accepted"),
        ("tasks.example", [7, "trending"], {}, "symbol: 7 is not accepted"),
        ("tasks.example", ["BTCUSDT", "trending", "7h"], {}, "interval: '7h' is not accepted"),
        ("tasks.example", [], {"symbol": "BTCUSDT", "regime": ["trending"]}, "regime: .* is not accepted"),
    ],
)
def test_nonsense_is_refused_with_what_would_be_accepted(
    app: Celery, name: str, args: list[Any], kwargs: dict[str, Any], told: str
) -> None:
    with pytest.raises(click.UsageError, match=told):
        check_call(app, name, args, kwargs)
