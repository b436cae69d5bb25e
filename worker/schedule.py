"""The schedule as it stands in Redis: read, and changed at run time without a restart of beat.

Each entry is a redbeat hash; beat looks at them every few seconds. ``beat_schedule.py`` is only what
the schedule starts with: a name in the hash ``changes`` belongs to the operator, who changed or
removed it, and no start of a beat overwrites it. Whether an entry is paused is kept in the entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import redis
from celery import Celery
from celery.schedules import ParseException, crontab
from redbeat.decoder import RedBeatJSONDecoder, RedBeatJSONEncoder
from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf, get_redis

from beat_schedule import SCHEDULED
from ml.errors import BrokerUnavailable, ConfigRejected
from ml.keys import ModelKey
from runtime.queues import TRAINING

__all__ = ["Beat", "Entry", "Schedule", "parse_cron"]

CHANGED, REMOVED = "changed", "removed"
IGNORED_SCORE = -1
"""Beat looks at scores from 0 to now."""
NEVER = datetime.max.replace(tzinfo=UTC)
CRON_MAX_CHARACTERS = 200
CRON_LIMIT = "five fields, minute hour day month weekday, UTC, such as '0 9 * * *'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of the schedule. Times are aware UTC; ``next_run`` is None while paused or removed."""

    name: str
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cron: str
    state: Literal["active", "paused", "removed"]
    origin: Literal["shipped", "changed", "added"]
    next_run: datetime | None
    last_sent: datetime | None

    def key(self, default_interval: str) -> ModelKey | None:
        """The model that this entry trains, if it trains one."""
        if self.task != "tasks.train":
            return None
        symbol, regime = self.args[:2]
        return ModelKey(symbol, self.kwargs.get("interval") or default_interval, regime)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The beat that holds the lock, and when it last looked at the schedule."""

    host: str
    pid: int
    last_tick: datetime


class Schedule:
    """Reads and changes the schedule of one application.

    Every method raises BrokerUnavailable when Redis does not answer.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._conf = ensure_conf(app)
        self._redis: Any = get_redis(app)
        self._changes_key = f"{self._conf.key_prefix}:changes"
        self._beat_key = f"{self._conf.key_prefix}:beat"

    def entries(self) -> list[Entry]:
        """Every entry, the soonest first; then the paused ones and the shipped ones that were removed."""
        with _broker():
            self._seed_if_empty()
            changes = self._changes()
            keys = self._redis.zrange(self._conf.schedule_key, 0, -1)
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hgetall(key)
                stored = pipe.execute()
        found = [self._entry(fields, changes) for fields in stored if "definition" in fields]
        gone = [
            self._shipped_entry(name, state="removed")
            for name in self._shipped
            if changes.get(name) == REMOVED
        ]
        return sorted(
            [*found, *gone],
            key=lambda entry: (entry.next_run or datetime.max.replace(tzinfo=UTC), entry.name),
        )

    def add(self, symbol: str, regime: str, cron: str, *, interval: str | None = None) -> Entry:
        """Train a key by a cron; replaces the entry of that key.

        Raises:
            KeyRejected: the key is not of the vocabulary.
            ConfigRejected: the cron is malformed or never comes.
        """
        ModelKey(symbol, interval or "1h", regime)
        when = parse_cron(cron)
        when.app = self._app
        name = entry_name(symbol, regime, interval)
        definition = {
            "name": name,
            "task": "tasks.train",
            "args": [symbol, regime],
            "kwargs": {"reason": SCHEDULED} | ({"interval": interval} if interval else {}),
            "options": {"queue": TRAINING},
            "schedule": when,
            "enabled": True,
        }

        def write(pipe: Any) -> None:
            pipe.multi()
            self._write(pipe, definition)
            pipe.hset(self._changes_key, name, CHANGED)

        with _broker():
            self._redis.transaction(write, self._key(name))
        return self._named(name)

    def remove(self, name: str) -> None:
        """Take an entry out; a shipped one stays out over restarts until `resume` brings it back.

        Raises:
            ConfigRejected: there is no such entry.
        """
        self._named(name)

        def write(pipe: Any) -> None:
            pipe.multi()
            pipe.zrem(self._conf.schedule_key, self._key(name))
            pipe.delete(self._key(name))
            if name in self._shipped:
                pipe.hset(self._changes_key, name, REMOVED)
            else:
                pipe.hdel(self._changes_key, name)

        with _broker():
            self._redis.transaction(write, self._key(name))

    def pause(self, name: str) -> Entry:
        """Send nothing for this entry until it is resumed. Raises ConfigRejected."""
        if self._named(name).state == "removed":
            raise ConfigRejected("entry", name, "an entry that has not been removed")
        self._enable(name, False)
        return self._named(name)

    def resume(self, name: str) -> Entry:
        """Let a paused entry run from its next time on, or bring a removed shipped one back.

        What it missed meanwhile is not made up for. Raises ConfigRejected.
        """
        match self._named(name).state:
            case "paused":
                self._enable(name, True)
            case "removed":

                def write(pipe: Any) -> None:
                    pipe.multi()
                    pipe.hdel(self._changes_key, name)
                    self._write(pipe, self._shipped_definition(name))

                with _broker():
                    self._redis.transaction(write, self._changes_key)
            case "active":
                pass
        return self._named(name)

    def seed(self) -> None:
        """Bring in what the code ships: new entries and new definitions; drop what it ships no more.

        Leaves what the operator changed or removed, and keeps paused what is paused. Two beats may
        do this at once: they write the same.
        """
        with _broker():
            self._redis.transaction(self._seed, self._changes_key, self._conf.statics_key)

    def record_tick(self, beat: Beat, lifetime: timedelta) -> None:
        """Note that a beat has just looked at the schedule."""
        value = json.dumps({"host": beat.host, "pid": beat.pid, "last_tick": beat.last_tick.isoformat()})
        self._redis.set(self._beat_key, value, px=lifetime)

    def forget_beat(self) -> None:
        """Note that the beat at work has stopped."""
        self._redis.delete(self._beat_key)

    def beat(self) -> Beat | None:
        """The beat at work; None if none has looked at the schedule for as long as its lock lasts."""
        with _broker():
            value = self._redis.get(self._beat_key)
        if value is None:
            return None
        fields = json.loads(str(value))
        return Beat(
            host=fields["host"], pid=fields["pid"], last_tick=datetime.fromisoformat(fields["last_tick"])
        )

    @property
    def _shipped(self) -> dict[str, dict[str, Any]]:
        shipped: dict[str, dict[str, Any]] = self._app.conf.beat_schedule
        return shipped

    def _key(self, name: str) -> str:
        return f"{self._conf.key_prefix}{name}"

    def _changes(self) -> dict[str, str]:
        return dict(self._redis.hgetall(self._changes_key))

    def _named(self, name: str) -> Entry:
        entries = {entry.name: entry for entry in self.entries()}
        if name not in entries:
            raise ConfigRejected("entry", name, "one of " + ", ".join(sorted(entries)))
        return entries[name]

    def _seed_if_empty(self) -> None:
        # Before the first beat: the schedule can be read and changed all the same.
        if not self._redis.exists(self._conf.statics_key):
            self.seed()

    def _seed(self, pipe: Any) -> None:
        changes = dict(pipe.hgetall(self._changes_key))
        seeded = set(pipe.smembers(self._conf.statics_key))
        wanted = {name: self._shipped_definition(name) for name in self._shipped if name not in changes}
        stored = {name: pipe.hgetall(self._key(name)) for name in wanted}
        pipe.multi()
        for name, definition in wanted.items():
            if "definition" in stored[name]:
                definition["enabled"] = self._decoded(stored[name]["definition"])["enabled"]
            self._write(pipe, definition, stored[name].get("meta"))
        for name in seeded - self._shipped.keys():
            pipe.srem(self._conf.statics_key, name)
            pipe.hdel(self._changes_key, name)
            if changes.get(name) != CHANGED:
                pipe.zrem(self._conf.schedule_key, self._key(name))
                pipe.delete(self._key(name))
        pipe.sadd(self._conf.statics_key, *self._shipped)

    def _enable(self, name: str, enabled: bool) -> None:
        def write(pipe: Any) -> None:
            definition, meta = pipe.hmget(self._key(name), "definition", "meta")
            changed = self._decoded(definition) | {"enabled": enabled}
            pipe.multi()
            self._write(pipe, changed, meta if not enabled else None)

        with _broker():
            self._redis.transaction(write, self._key(name))

    def _write(self, pipe: Any, definition: dict[str, Any], meta: str | None = None) -> None:
        """Store an entry. Without ``meta`` (its past runs) its next run is counted from now."""
        entry = self._redbeat_entry(definition, _last_run(meta) or self._app.now())
        pipe.hset(entry.key, "definition", json.dumps(definition, cls=RedBeatJSONEncoder))
        if meta is None:
            pipe.hset(
                entry.key, "meta", json.dumps({"last_run_at": entry.last_run_at}, cls=RedBeatJSONEncoder)
            )
        pipe.zadd(self._conf.schedule_key, {entry.key: entry.score if entry.enabled else IGNORED_SCORE})

    def _redbeat_entry(self, definition: dict[str, Any], last_sent: datetime | None) -> RedBeatSchedulerEntry:
        return RedBeatSchedulerEntry(app=self._app, last_run_at=last_sent, **definition)

    def _decoded(self, definition: str) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(definition, cls=RedBeatJSONDecoder)
        decoded["schedule"].app = self._app  # its clock and zone; else those of Celery's current application
        return decoded

    def _shipped_definition(self, name: str) -> dict[str, Any]:
        return {"name": name, "args": [], "kwargs": {}, "options": {}, "enabled": True, **self._shipped[name]}

    def _shipped_entry(self, name: str, *, state: Literal["removed"]) -> Entry:
        definition = self._shipped_definition(name)
        return Entry(
            name=name,
            task=definition["task"],
            args=tuple(definition["args"]),
            kwargs=definition["kwargs"],
            cron=cron_text(definition["schedule"]),
            state=state,
            origin="shipped",
            next_run=None,
            last_sent=None,
        )

    def _entry(self, fields: dict[str, str], changes: dict[str, str]) -> Entry:
        definition = self._decoded(fields["definition"])
        name, meta = definition["name"], fields.get("meta")
        changed: Literal["shipped", "changed"] = "changed" if name in changes else "shipped"
        return Entry(
            name=name,
            task=definition["task"],
            args=tuple(definition["args"] or ()),
            kwargs=definition["kwargs"] or {},
            cron=cron_text(definition["schedule"]),
            state="active" if definition["enabled"] else "paused",
            origin=changed if name in self._shipped else "added",
            next_run=_next_run(definition["schedule"], _last_run(meta)) if definition["enabled"] else None,
            # Until its first run, an entry's last run is the time that it was made.
            last_sent=_last_run(meta) if meta and "total_run_count" in meta else None,
        )


def parse_cron(cron: object) -> crontab:
    """A cron expression as Celery's schedule, in UTC.

    Raises:
        ConfigRejected: it is malformed or never comes (30 February).
    """
    if not isinstance(cron, str) or len(cron) > CRON_MAX_CHARACTERS:
        raise ConfigRejected("cron", cron, CRON_LIMIT)
    fields = cron.split()
    if len(fields) != 5:
        raise ConfigRejected("cron", cron, CRON_LIMIT, f"it has {len(fields)} fields")
    try:
        return crontab.from_string(" ".join(fields))
    except (ValueError, ParseException) as error:
        raise ConfigRejected("cron", cron, CRON_LIMIT, str(error)) from error


def entry_name(symbol: str, regime: str, interval: str | None = None) -> str:
    """What the entry that trains a key is called."""
    return f"train-{symbol}-{regime}" + (f"-{interval}" if interval else "")


def cron_text(when: Any) -> str:
    """``0 3 * * *``, or ``every 20 s``."""
    if isinstance(when, crontab):
        fields = when._orig_minute, when._orig_hour, when._orig_day_of_month, when._orig_month_of_year
        return " ".join(str(field) for field in (*fields, when._orig_day_of_week))
    return f"every {when.run_every.total_seconds():g} s"


def _next_run(when: Any, last: datetime | None) -> datetime | None:
    """When the run after ``last`` is due; in the past where no beat has sent it yet."""
    if last is None:
        return None
    if isinstance(when, crontab):
        start, delta, _now = when.remaining_delta(last)
        due: datetime = start + delta
    else:
        due = last + when.run_every
    return due.astimezone(UTC)


def _last_run(meta: str | None) -> datetime | None:
    last: datetime | None = RedBeatSchedulerEntry.decode_meta(meta)["last_run_at"]
    return last


@contextmanager
def _broker() -> Iterator[None]:
    try:
        yield
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        raise BrokerUnavailable(f"cannot reach the schedule: {error}") from error
