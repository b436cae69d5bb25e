"""tasks.sync_candles: a series brought up to date from the exchange, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from celery import shared_task
from sqlalchemy.orm import Session

from db import candles, keys
from feeds.exchange import Exchange
from ml.candles import Candles, Gap, find_gaps, to_datetime, to_datetime64
from ml.errors import InputRejected
from ml.keys import check_symbol, interval_duration
from runtime.clock import check_aware
from runtime.settings import Settings
from tasks.base import Task

__all__ = ["HISTORY", "Synced", "open_exchange", "sync", "sync_all_candles", "sync_candles"]

HISTORY: Final = timedelta(days=2 * 365)
"""How far back a series begins of which nothing is stored, where the caller does not say."""
OVERLAP_CANDLES: Final = 3
"""Stored candles that are read again at each sync: an exchange may still correct its newest."""
SYNC_EXPIRES_SECONDS: Final = 60
"""By then the next minute's fan-out has come, and has sent again what is still missing."""
DETECT_EXPIRES_SECONDS: Final = 3600
"""Nobody sends it again; what is stale by then the detector leaves."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What a sync did. Times are aware UTC."""

    symbol: str
    interval: str
    source: str
    inserted: int = 0
    revised: int = 0
    unchanged: int = 0
    pages: int = 0
    newest: datetime | None = None
    """Open time of the newest candle that was read; None where there was none to read."""
    gaps: tuple[Gap, ...] = ()
    """Missing candles in the span that was read; the exchange has none to fill them with."""

    def plus(self, written: candles.Written, newest: datetime) -> Synced:
        """With one more page."""
        return replace(
            self,
            inserted=self.inserted + written.inserted,
            revised=self.revised + written.revised,
            unchanged=self.unchanged + written.unchanged,
            pages=self.pages + 1,
            newest=newest if self.newest is None else max(self.newest, newest),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for a task's result."""
        return {
            "symbol": self.symbol,
            "interval": self.interval,
            "source": self.source,
            "inserted": self.inserted,
            "revised": self.revised,
            "unchanged": self.unchanged,
            "pages": self.pages,
            "newest": self.newest.isoformat() if self.newest else None,
            "gaps": [gap_as_json(gap) for gap in self.gaps],
        }


def gap_as_json(gap: Gap) -> dict[str, Any]:
    """Plain values."""
    return {"start": gap.start.isoformat(), "end": gap.end.isoformat(), "missing": gap.missing}


@shared_task(base=Task, bind=True, name="tasks.sync_candles")
def sync_candles(self: Task, symbol: str, interval: str | None = None) -> dict[str, Any]:
    """Bring one series up to date, and have the detector look at what came. A second run finds nothing new.

    Returns:
        What it did, as ``Synced.as_json``.
    """
    settings = self.resources.settings
    interval = interval or settings.default_interval
    with open_exchange(settings) as exchange:
        done = sync(
            exchange,
            self.resources.transaction,
            symbol=symbol,
            interval=interval,
            now=self.resources.clock.now(),
        )
    # A run that failed or was killed after its commit leaves nothing new to the next one.
    again = self.request.retries or (self.request.delivery_info or {}).get("redelivered")
    if done.inserted or again:
        self.app.send_task("tasks.detect_signals", args=[symbol, interval], expires=DETECT_EXPIRES_SECONDS)
    return done.as_json()


@shared_task(base=Task, bind=True, name="tasks.sync_all_candles")
def sync_all_candles(self: Task) -> list[str]:
    """Send ``tasks.sync_candles`` for each series that is kept whose next candle must have closed.

    Kept are the settings' symbols in the default interval, and what was added at run time (``db/keys.py``).
    Each has its own message: one's trouble is not another's. Beat sends this one every minute, so that a
    candle is there soon after its close, whatever the interval; while the exchange is late, or away, it is
    asked once a minute. A replay walks through what is stored: it asks no exchange.

    Returns:
        The series: ``BTCUSDT``, or ``BTCUSDT 4h`` where the interval is not the default.
    """
    settings = self.resources.settings
    if settings.clock == "replay":
        return []
    interval, now = settings.default_interval, self.resources.clock.now()
    with self.resources.transaction() as session:
        stored = {(one.symbol, one.interval): one for one in candles.series(session)}
        added = keys.added(session)
    kept = dict.fromkeys([*((symbol, interval) for symbol in settings.symbols), *added])
    # The default interval is left to the receiver.
    due = [
        [symbol] if of == interval else [symbol, of]
        for symbol, of in kept
        if _is_due(stored.get((symbol, of)), now)
    ]
    for args in due:
        self.app.send_task("tasks.sync_candles", args=args, expires=SYNC_EXPIRES_SECONDS)
    return [" ".join(args) for args in due]


def _is_due(stored: candles.Series | None, now: datetime) -> bool:
    """Whether the candle after the newest stored one has closed by ``now``, or nothing is stored."""
    return stored is None or stored.last_open + 2 * interval_duration(stored.interval) <= now


def open_exchange(settings: Settings) -> AbstractContextManager[Exchange]:
    """The exchange of the settings, closed at the end of the block. Raises ConfigRejected."""
    url = None if settings.exchange_url is None else str(settings.exchange_url)
    return closing(Exchange(settings.exchange, url=url))


def sync(
    exchange: Exchange,
    transaction: Callable[[], AbstractContextManager[Session]],
    *,
    symbol: str,
    interval: str,
    now: datetime,
    since: datetime | None = None,
    on_page: Callable[[Synced], None] | None = None,
) -> Synced:
    """Fetch what is missing at the end of a series, and at its beginning where ``since`` lies before it.

    Each page is written in a transaction of its own, so a run that is killed loses at most the page in
    hand, and the next goes on from there. A candle counts as closed when both ``now`` and the exchange's
    own clock are past its end. Gaps stay gaps.

    Args:
        exchange: where the candles come from; its name is their source.
        transaction: opens one.
        symbol: as in ``ml.keys``.
        interval: as in ``ml.keys``.
        now: aware.
        since: the series shall reach back to here; by default, if nothing is stored, ``HISTORY``.
        on_page: called after each page with what was done so far.

    Raises:
        KeyRejected: symbol or interval, or the exchange does not have them.
        InputRejected: ``since`` lies in the future.
        CandlesRejected: the exchange's candles break the contract of ``Candles``.
        ExchangeUnavailable: it failed at every attempt.
        StoreUnavailable: the database did not answer.
    """
    check_symbol(symbol)
    interval_duration(interval)
    if since is not None and check_aware(since) >= check_aware(now):
        raise InputRejected("since", since.isoformat(), f"a time before {now.isoformat()}")
    closed_by = min(now, exchange.now())
    with transaction() as session:
        known = candles.find_series(session, symbol, interval)
    done = Synced(symbol=symbol, interval=interval, source=exchange.name)
    oldest = known.last_open if known else closed_by
    pages = _missing(exchange, known, symbol=symbol, interval=interval, since=since, closed_by=closed_by)
    for page in pages:
        with transaction() as session:
            written = candles.write(
                session, symbol=symbol, interval=interval, candles=page, source=exchange.name, now=now
            )
        oldest = min(oldest, to_datetime(page.open_time[0]))
        done = done.plus(written, to_datetime(page.open_time[-1]))
        if on_page is not None:
            on_page(done)
    with transaction() as session:
        span = candles.read(session, symbol, interval, known_at=closed_by, start=oldest)
    done = replace(done, gaps=find_gaps(span))
    missing = sum(gap.missing for gap in done.gaps)
    log.info("candles_synced", **done.as_json() | {"gaps": len(done.gaps), "missing": missing})
    return done


def _missing(
    exchange: Exchange,
    known: candles.Series | None,
    *,
    symbol: str,
    interval: str,
    since: datetime | None,
    closed_by: datetime,
) -> Iterator[Candles]:
    """Pages after the newest stored candle, then pages before the oldest, back to ``since``."""
    step = interval_duration(interval)
    start = since or closed_by - HISTORY
    if known is not None:
        # Candles of another source are not this exchange's to correct: go on after them.
        again = OVERLAP_CANDLES if known.source.endswith(exchange.name) else 0
        start = known.last_open + (1 - again) * step
    while start + step <= closed_by:
        page = exchange.after(symbol, interval, start, closed_by=closed_by)
        if not len(page):
            break
        yield page
        start = to_datetime(page.close_time[-1])
    if known is None or since is None:
        return
    end = known.first_open
    while end > since:
        page = exchange.before(symbol, interval, end, closed_by=closed_by)
        page = page.take(page.open_time >= to_datetime64(since))
        if not len(page):
            return
        yield page
        end = to_datetime(page.open_time[0])
