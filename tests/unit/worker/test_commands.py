"""How the command line names keys and shows numbers."""

from __future__ import annotations

import pytest

from ml.errors import KeyRejected
from ml.keys import ModelKey
from worker.commands.training import parse_key
from worker.tables import estimate_text, span_text

pytestmark = pytest.mark.scheduler


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        (["BTCUSDT/1h/trending"], ModelKey("BTCUSDT", "1h", "trending")),
        (["BTCUSDT", "trending"], ModelKey("BTCUSDT", "4h", "trending")),
        (["BTCUSDT trending"], ModelKey("BTCUSDT", "4h", "trending")),
        (["BTCUSDT", "1h", "all"], ModelKey("BTCUSDT", "1h", "all")),
        (["ETHUSDT/volatile"], ModelKey("ETHUSDT", "4h", "volatile")),
    ],
)
def test_key_is_read_with_slashes_or_spaces_with_or_without_its_interval(
    parts: list[str], key: ModelKey
) -> None:
    assert parse_key(parts, "4h") == key


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        (["BTCUSDT"], "key"),
        (["a", "b", "c", "d"], "key"),
        (["../../etc/trending"], "key"),
        (["btcusdt", "trending"], "symbol"),
        (["BTCUSDT", "trending", "1h"], "interval"),
        (["BTCUSDT", "up"], "regime"),
    ],
)
def test_what_is_no_key_is_rejected_by_name(parts: list[str], field: str) -> None:
    with pytest.raises(KeyRejected) as caught:
        parse_key(parts, "1h")
    assert caught.value.field == field


def test_estimates_show_their_interval_and_what_is_missing() -> None:
    assert estimate_text({"value": 0.5582, "low": 0.5341, "high": 0.581}) == "0.558 [0.534, 0.581]"
    assert estimate_text({"value": 0.5, "low": None, "high": None}) == "0.500 [-, -]"
    assert estimate_text({"value": None, "low": None, "high": None}) == ""
    assert estimate_text(None) == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ""),
        (0.84, "0.8 s"),
        (42.4, "42 s"),
        (119, "119 s"),
        (300, "5 min"),
        (10_800, "3 h"),
        (259_200, "3 days"),
    ],
)
def test_spans_are_shown_in_the_unit_that_suits_them(seconds: float | None, shown: str) -> None:
    assert span_text(seconds) == shown
