"""How drift is shown: checks, features, keys over days, limits and actions, in at most 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from db.drift_models import ANY, DriftAction, DriftAlert, DriftDetail, DriftThreshold
from db.thresholds import limits_of
from ml.alarms import BUDGET_SCORE
from worker.drift_summary import KINDS, KeySummary, sparkline
from worker.tables import number_text, table, time_text

__all__ = [
    "action_json",
    "action_text",
    "actions_table",
    "alert_json",
    "checks_table",
    "features_table",
    "limits_text",
    "severity_text",
    "summary_table",
    "threshold_json",
    "thresholds_table",
    "unchecked_text",
    "verdicts_table",
]

SEVERITY_STYLES: Final = {"low": "cyan", "medium": "yellow", "high": "red", "critical": "bold red"}
STATE_STYLES: Final = {"open": "cyan", "done": "green", "snoozed": "yellow"}
TREND_CHARACTERS: Final = 10
FEATURES_SHOWN: Final = 8
OUTCOME_CHARACTERS: Final = 200
ACTION_WORDS: Final = {
    "retrain_now": "retrains now",
    "schedule_retraining": "retrains at its next slot",
    "monitor": "watched",
    "record": "recorded",
    "rollback": "rolled back",
}


def checks_table(alerts: Sequence[DriftAlert]) -> Table:
    """The checks of one key at one moment, in the order of the kinds."""
    made = table("Kind", ">Score", "Severity", ">p", ">Reference", ">Current")
    for alert in in_order(alerts):
        made.add_row(
            alert.kind,
            number_text(alert.drift_score),
            severity_text(alert.severity),
            probability_text(alert.p_value),
            f"{alert.reference_rows:,}",
            f"{alert.current_rows:,}",
        )
    limits = alerts[0].limits if alerts else {}
    made.caption = f"{limits_text(limits)}. {BUDGET_SCORE:.2f} is where the budget of false alarms is spent."
    made.caption_justify = "left"
    return made


def features_table(details: Sequence[DriftDetail], limits: Mapping[str, Any]) -> Table:
    """What the model leans on most among what moved most, by importance x excess."""
    made = table("Feature", ">Importance", ">KS", ">PSI", ">p", ">Excess", "Drifted")
    top = sorted(details, key=_contribution, reverse=True)[:FEATURES_SHOWN]
    for one in top:
        drifted = bool(one.details.get("drifted"))
        made.add_row(
            one.feature,
            f"{one.importance:.1%}",
            number_text(one.ks),
            number_text(one.population_stability_index),
            probability_text(one.p_value),
            number_text(one.details.get("excess")),
            Text("yes", "red") if drifted else Text("no"),
        )
    count = sum(bool(one.details.get("drifted")) for one in details)
    made.caption = (
        f"{len(top)} of {len(details)} features, by importance x excess; {count} drifted: p at most 0.05 "
        f"over all features, and KS over {limits.get('ks', '-')} or PSI over {limits.get('psi', '-')}."
    )
    made.caption_justify = "left"
    return made


def summary_table(keys: Sequence[KeySummary], *, days: int) -> Table:
    """Keys over some days, the loudest first."""
    made = table("Model key", ">Feat.", ">Scores", ">Calib.", ">Acc.", "C/H/M/L", "Trend", "Open")
    made.columns[-1].no_wrap = False
    for one in keys:
        made.add_row(
            str(one.key),
            *(_score(one, kind) for kind in KINDS),
            _counts(one),
            sparkline(one.trend, top=one.critical, width=TREND_CHARACTERS),
            _open(one),
        )
    span = "day" if days == 1 else f"{days} days"
    made.caption = (
        "Newest scores: features, confidence (scores), calibration, accuracy. C/H/M/L: checks of the last "
        f"{span} called critical, high, medium, low. Trend: largest score a day, full at critical."
    )
    made.caption_justify = "left"
    return made


def thresholds_table(rows: Sequence[DriftThreshold]) -> Table:
    """Limits with who set them, those that hold and those that held."""
    made = table("Whose", ">KS", ">PSI", ">Low", ">Med.", ">High", ">Crit.", "Since, until", "Why")
    for row in rows:
        limits = limits_of(row)
        times = [time_text(moment) for moment in (row.valid_from, row.valid_until) if moment is not None]
        made.add_row(
            whose(row),
            *(f"{value:.3g}" for value in asdict(limits).values()),
            "\n".join(times),
            f"{row.why} ({row.changed_by})",
        )
    return made


def actions_table(actions: Sequence[DriftAction]) -> Table:
    """What was done about alerts, and what came of it."""
    made = table(">Id", "Model key", "Severity", "Action", "State", "Begun", "Outcome")
    for action in actions:
        made.add_row(
            str(action.id),
            str(action.key),
            severity_text(action.severity),
            action.action,
            Text(action.state, STATE_STYLES.get(action.state, "")),
            time_text(action.as_of),
            outcome_text(action),
        )
    return made


def outcome_text(action: DriftAction) -> str:
    """What came of an action so far, in a line or two."""
    outcome = action.outcome or {}
    if action.state == "open":
        if action.job_id is not None:
            return f"job {action.job_id[:8]} trains"
        waits = f", {outcome['waits']}" if outcome.get("waits") else ""
        return (f"due {time_text(action.due_at)}" if action.due_at else "under way") + waits
    text = str(outcome.get("says") or outcome.get("result") or action.state)
    if len(text) > OUTCOME_CHARACTERS:
        text = text[: OUTCOME_CHARACTERS - 1] + "…"
    verdict = (outcome.get("regret") or {}).get("verdict")
    return f"{text}; {verdict.replace('_', ' ')}" if verdict else text


def action_text(action: DriftAction | None, snoozed_until: datetime | None) -> str:
    """A sentence on what is done about a key after a check."""
    if action is None:
        if snoozed_until is None:
            return "Nothing is to be done."
        return f"The key is snoozed until {time_text(snoozed_until)} UTC: alerts start nothing until then."
    words = ACTION_WORDS.get(action.action, action.action)
    about = f"Action {action.id}: the key {words}"
    if action.state != "open":
        return f"{about}; {outcome_text(action)}."
    if action.job_id is not None:
        return f"{about}, by job {action.job_id}."
    return f"{about}, at {time_text(action.due_at)} UTC." if action.due_at else f"{about}."


def verdicts_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """One check a key, as ``tasks.check_drift`` reports it, the loudest first."""
    made = table("Model key", ">v", "Candles up to", ">Score", "Severity", "Outcome")
    for one in sorted(reports, key=lambda one: -one.get("score", -1.0)):
        checked = one["state"] == "checked"
        as_of = datetime.fromisoformat(one["as_of"]) if one.get("as_of") else None
        action = (one.get("action") or {}).get("action", "")
        made.add_row(
            one["key"],
            str(one.get("version", "")),
            time_text(as_of),
            number_text(one.get("score")),
            severity_text(one["severity"]) if checked else Text("-"),
            action.replace("_", " ") if checked else one.get("detail", one["state"]),
        )
    return made


def unchecked_text(report: Mapping[str, Any]) -> str:
    """Why a key was not checked."""
    state = str(report["state"]).replace("_", " ")
    return f"{report['key']} was not checked: {state}: {report.get('detail', '')}".rstrip(": ")


def limits_text(limits: Mapping[str, Any]) -> str:
    """``low over 0.1, medium over 0.15, …``."""
    names = [name for name in ("low", "medium", "high", "critical") if name in limits]
    return ", ".join(f"{name} over {limits[name]:.3g}" for name in names) or "no limits are known"


def alert_json(alert: DriftAlert, details: Sequence[DriftDetail] = ()) -> dict[str, Any]:
    """A check as plain values, with its features, the first by importance x excess."""
    top = sorted(details, key=_contribution, reverse=True)
    return _columns(alert) | {"key": str(alert.key), "features": [_columns(one) for one in top]}


def action_json(action: DriftAction) -> dict[str, Any]:
    """An action as plain values."""
    return _columns(action) | {"key": str(action.key)}


def threshold_json(row: DriftThreshold) -> dict[str, Any]:
    """A row of limits as plain values."""
    return _columns(row)


def whose(row: DriftThreshold) -> str:
    """``BTCUSDT 1h trending``, or ``every key``; ``any`` for what is not given."""
    parts = (row.symbol, row.interval, row.regime)
    return "every key" if set(parts) == {ANY} else " ".join("any" if part == ANY else part for part in parts)


def in_order(alerts: Sequence[DriftAlert]) -> list[DriftAlert]:
    """By kind, features first."""
    return sorted(alerts, key=lambda alert: KINDS.index(alert.kind))


def severity_text(severity: str) -> Text:
    """In its colour."""
    return Text(severity, SEVERITY_STYLES.get(severity, ""))


def probability_text(p: float | None) -> str:
    """``< 0.001`` rather than 0.000."""
    return "< 0.001" if p is not None and p < 0.001 else number_text(p)


def _score(summary: KeySummary, kind: str) -> Text:
    one = summary.newest.get(kind)
    return Text("-") if one is None else Text(f"{one.score:.2f}", SEVERITY_STYLES.get(one.severity, ""))


def _counts(summary: KeySummary) -> Text:
    """Checks by severity, in the colour of the worst."""
    loud = ("critical", "high", "medium", "low")
    text = "/".join(str(summary.alerts.get(name, 0)) for name in loud) if summary.checks else "-"
    return Text(text, SEVERITY_STYLES.get(summary.worst, ""))


def _open(summary: KeySummary) -> str:
    parts = [] if summary.calibrated else ["no calibration: train again"]
    if summary.open_action is not None:
        due = f" {time_text(summary.due_at)}" if summary.due_at else ""
        parts.append(summary.open_action.replace("_", " ") + due)
    if summary.snoozed_until is not None:
        parts.append(f"snoozed to {time_text(summary.snoozed_until)}")
    return "; ".join(parts)


def _contribution(detail: DriftDetail) -> float:
    return detail.importance * float(detail.details.get("excess") or 0.0)


def _columns(row: Any) -> dict[str, Any]:
    values = {column.key: getattr(row, column.key) for column in type(row).__mapper__.column_attrs}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value if isinstance(value, dict | list | str | int | float | None) else str(value)
