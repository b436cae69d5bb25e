"""When the keys of a series that was added at run time are trained: spread over the day, as what ships is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import Final

from celery.schedules import crontab

from ml.errors import ConfigRejected
from ml.keys import ALL_REGIMES, REGIMES
from worker.schedule import Entry, parse_cron

__all__ = ["crons"]

WEEKLY: Final = "0"
"""The fallback model's day of the week: Sunday."""
FIRST_HOUR: Final = 9
"""After those that ship."""
DAYS: Final = 31
MONTHS: Final = 12
WEEKDAYS: Final = 7
HOURS_OF_WEEKLY: Final = 3
"""The first hours of the day are left to the weekly ones that ship, and to candles that come late."""


def crons(entries: Iterable[Entry], given: str | None = None) -> dict[str, str]:
    """A cron for each regime of a new series, in UTC.

    Args:
        entries: the schedule as it stands; times at which it trains are avoided while there are others.
        given: of the first regime. If it comes once a day the others follow an hour apart, also past
            midnight, where its weekdays are then the next ones; else they share it. The fallback's is weekly
            in any case.

    Raises:
        ConfigRejected: ``given`` is malformed, or names days of the month or months and is so late that
            another regime would come on the next day.
    """
    if given is None:
        free = _free_times(entries)
        times = [next(free) for _ in (*REGIMES, ALL_REGIMES)]
        daily = [f"{minute} {hour} * * *" for minute, hour in times[: len(REGIMES)]]
        return dict(zip(REGIMES, daily, strict=True)) | {ALL_REGIMES: _weekly(*times[-1])}
    when = parse_cron(given)
    minute, hour = min(when.minute), min(when.hour)
    if len(when.minute) == len(when.hour) == 1:
        daily = [_hours_later(given, when, later) for later in range(len(REGIMES))]
    else:
        daily = [" ".join(given.split())] * len(REGIMES)
    return dict(zip(REGIMES, daily, strict=True)) | {ALL_REGIMES: _weekly(minute, (hour + len(REGIMES)) % 24)}


def _hours_later(given: str, when: crontab, later: int) -> str:
    """A cron of one time a day, by whole hours later. Raises ConfigRejected."""
    _, _, days, months, weekdays = given.split()
    days_on, hour_then = divmod(int(min(when.hour)) + later, 24)
    if days_on:
        if len(when.day_of_month) < DAYS or len(when.month_of_year) < MONTHS:
            limit = f"an hour up to {24 - len(REGIMES)} where days of the month or months are named"
            raise ConfigRejected(
                "cron", given, limit, "the other regimes follow an hour apart, past midnight"
            )
        if len(when.day_of_week) < WEEKDAYS:
            weekdays = ",".join(str(day) for day in sorted((int(day) + 1) % 7 for day in when.day_of_week))
    return f"{min(when.minute)} {hour_then} {days} {months} {weekdays}"


def _weekly(minute: int, hour: int) -> str:
    return f"{minute} {hour} * * {WEEKLY}"


def _free_times(entries: Iterable[Entry]) -> Iterator[tuple[int, int]]:
    """(minute, hour) that train nothing yet: whole hours first, then halves, then the rest; then any."""
    taken = {tuple(entry.cron.split()[:2]) for entry in entries if entry.task == "tasks.train"}
    minutes = sorted(range(60), key=lambda minute: (minute % 30 > 0, minute % 15 > 0, minute % 5 > 0, minute))
    hours = [*range(FIRST_HOUR, 24), *range(HOURS_OF_WEEKLY, FIRST_HOUR)]
    times = [(minute, hour) for minute in minutes for hour in hours]
    yield from (time for time in times if (str(time[0]), str(time[1])) not in taken)
    yield from cycle(times)
