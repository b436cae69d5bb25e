from __future__ import annotations

import pytest

from ml.errors import ConfigRejected
from worker.key_schedule import crons
from worker.schedule import Entry


def entry(cron: str, task: str = "tasks.train") -> Entry:
    return Entry(
        name=cron, task=task, args=(), kwargs={}, cron=cron, state="active", origin="added",
        next_run=None, last_sent=None,
    )  # fmt: skip


def test_hours_that_train_already_are_left_out() -> None:
    taken = [entry("0 9 * * *"), entry("0 11 * * 0"), entry("0 10 * * *", "tasks.sync_all_candles")]
    assert crons(taken) == {
        "trending": "0 10 * * *",
        "sideways": "0 12 * * *",
        "volatile": "0 13 * * *",
        "consolidation": "0 14 * * *",
        "all": "0 15 * * 0",
    }


def test_many_series_take_each_time_once_before_any_twice() -> None:
    entries: list[Entry] = []
    for _ in range(252):  # 21 hours of 60 minutes, 5 a series
        entries += [entry(cron) for cron in crons(entries).values()]
    times = {tuple(one.cron.split()[:2]) for one in entries}
    assert len(times) == len(entries) == 1260
    assert {minute for minute, _ in list(times)} == {str(minute) for minute in range(60)}
    assert crons(entries)["trending"] == "0 9 * * *"


def test_given_time_is_the_first_regimes_and_the_others_follow_an_hour_apart() -> None:
    assert list(crons([], "15 22 * * 1-5").values()) == [
        "15 22 * * 1-5",
        "15 23 * * 1-5",
        "15 0 * * 2,3,4,5,6",
        "15 1 * * 2,3,4,5,6",
        "15 2 * * 0",
    ]
    assert list(crons([], "0 23 * * sat").values())[:2] == ["0 23 * * sat", "0 0 * * 0"]
    assert list(crons([], "0 23 * * *").values())[1] == "0 0 * * *"


def test_given_cron_of_several_times_a_day_is_shared() -> None:
    assert list(crons([], "0 */6 * * *").values()) == ["0 */6 * * *"] * 4 + ["0 4 * * 0"]


@pytest.mark.parametrize("days", ["1 * *", "*/2 * *", "* 6 *", "1-15 6 1"])
def test_days_of_the_month_are_not_carried_past_midnight(days: str) -> None:
    assert list(crons([], f"0 20 {days}").values())[:4] == [f"0 {hour} {days}" for hour in (20, 21, 22, 23)]
    with pytest.raises(ConfigRejected, match=r"cron: .* expected an hour up to 20"):
        crons([], f"0 21 {days}")


def test_malformed_cron_is_refused() -> None:
    with pytest.raises(ConfigRejected, match="cron"):
        crons([], "every day")
