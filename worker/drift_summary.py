"""A key's drift over some days, in one row: newest scores, worst severity, trend, what is being done."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final, Self, get_args

from db.drift_history import DriftDay
from db.drift_models import DriftAction, DriftAlert
from ml.alarms import SEVERITIES, DriftKind, SeverityLimits
from ml.keys import ModelKey

__all__ = ["KINDS", "KeySummary", "NewestScore", "sparkline", "summarise"]

KINDS: Final[tuple[DriftKind, ...]] = get_args(DriftKind)
BARS: Final = "▁▂▃▄▅▆▇█"
NO_CHECK: Final = "·"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestScore:
    """The newest check of one kind."""

    score: float
    severity: str
    as_of: datetime

    @classmethod
    def of(cls, alert: DriftAlert) -> Self:
        """Of a stored check."""
        return cls(score=alert.drift_score, severity=alert.severity, as_of=alert.as_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySummary:
    """One key."""

    key: ModelKey
    newest: dict[str, NewestScore]
    """By kind, of the key's newest model; a kind that was not checked is not there."""
    worst: str
    """Severity; ``none`` where nothing was checked, too."""
    alerts: dict[str, int]
    """Checks by severity, the loudest first; without ``none``."""
    checks: int
    trend: tuple[float | None, ...]
    """Each day's largest score of any kind, oldest first; None for a day without a check."""
    critical: float
    """The limit that the trend is drawn against."""
    open_action: str | None
    """``retrain_now`` or another; None where nothing is open."""
    due_at: datetime | None
    """When the open action is, if later."""
    snoozed_until: datetime | None
    """None where alerts of the key start something."""
    calibrated: bool = True
    """False where the champion's drift cannot be checked: it was trained before drift was calibrated."""

    @property
    def largest(self) -> float:
        """The largest newest score of any kind, -1 where there is none."""
        return max((one.score for one in self.newest.values()), default=-1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        newest = {kind: asdict(one) | {"as_of": _iso(one.as_of)} for kind, one in self.newest.items()}
        return {
            "key": str(self.key),
            **asdict(self.key),
            "newest": newest,
            "worst": self.worst,
            "alerts": self.alerts,
            "checks": self.checks,
            "trend": list(self.trend),
            "open_action": self.open_action,
            "due_at": _iso(self.due_at),
            "snoozed_until": _iso(self.snoozed_until),
            "calibrated": self.calibrated,
        }


def summarise(
    keys: Iterable[ModelKey],
    newest: Sequence[DriftAlert],
    days: Sequence[DriftDay],
    actions: Sequence[DriftAction],
    *,
    now: datetime,
    span_days: int,
    uncalibrated: Collection[ModelKey] = (),
) -> list[KeySummary]:
    """One row a key, those that cannot be checked first, then the largest newest score.

    Args:
        keys: listed even where nothing was checked: those with a champion.
        newest: of each key and kind, as ``db.drift_history.newest``.
        days: of the same span, as ``db.drift_history.daily``.
        actions: of any time and order; open ones and those that snooze a key count.
        now: the clock's.
        span_days: of the trend.
        uncalibrated: keys whose champion cannot be checked.
    """
    checks, counts, acted = defaultdict(list), defaultdict(list), defaultdict(list)
    for alert in newest:
        checks[alert.key].append(alert)
    for day in days:
        counts[day.key].append(day)
    for action in actions:
        acted[action.key].append(action)
    made = [
        replace(
            _of_key(key, checks[key], counts[key], acted[key], now=now, span_days=span_days),
            calibrated=key not in uncalibrated,
        )
        for key in {*keys, *checks, *counts}
    ]
    return sorted(made, key=lambda one: (one.calibrated, -one.largest, str(one.key)))


def sparkline(values: Sequence[float | None], *, top: float, width: int) -> str:
    """A bar a value, full at ``top`` and over; of more values than ``width`` each bar is a span's largest."""
    if len(values) > width:
        edges = [len(values) * step // width for step in range(width + 1)]
        values = [_largest(values[a:b]) for a, b in pairwise(edges)]
    return "".join(
        NO_CHECK if value is None else BARS[min(len(BARS) - 1, int(value / top * len(BARS)))]
        for value in values
    )


def _of_key(
    key: ModelKey,
    newest: Sequence[DriftAlert],
    days: Sequence[DriftDay],
    actions: Sequence[DriftAction],
    *,
    now: datetime,
    span_days: int,
) -> KeySummary:
    last = max(newest, key=lambda alert: (alert.as_of, alert.model_id), default=None)
    by_kind = {alert.kind: alert for alert in newest if last is not None and alert.model_id == last.model_id}
    counted: Counter[str] = Counter()
    for day in days:
        counted[day.severity] += day.checks
    loudest = [severity for severity in reversed(SEVERITIES[1:]) if counted[severity]]
    opened = next((action for action in actions if action.state == "open"), None)
    snoozes = [action.snoozed_until for action in actions if action.snoozed_until is not None]
    return KeySummary(
        key=key,
        newest={kind: NewestScore.of(by_kind[kind]) for kind in KINDS if kind in by_kind},
        worst=loudest[0] if loudest else "none",
        alerts={severity: counted[severity] for severity in loudest},
        checks=counted.total(),
        trend=tuple(
            _largest([day.largest_score for day in days if day.days_back == back])
            for back in reversed(range(span_days))
        ),
        critical=float((last.limits if last else {}).get("critical", SeverityLimits().critical)),
        open_action=None if opened is None else opened.action,
        due_at=None if opened is None else opened.due_at,
        snoozed_until=max((moment for moment in snoozes if moment > now), default=None),
    )


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
