"""How jobs, models and gates are shown: tables of at most 100 columns, and the same as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from db.models import ModelRow, TrainingJob

__all__ = [
    "console",
    "estimate_text",
    "gates_table",
    "has_edge",
    "job_json",
    "jobs_table",
    "metrics_table",
    "model_json",
    "models_table",
    "outcome_text",
    "sources_of",
    "span_text",
    "table",
    "time_text",
]

WIDTH = 100
OUTCOME_CHARACTERS = 160
STATE_STYLES = {
    "succeeded": "green",
    "champion": "green",
    "running": "cyan",
    "refused": "yellow",
    "rejected": "yellow",
    "failed": "red",
}


def console(*, stderr: bool = False) -> Console:
    """A console of the terminal's width, 100 columns where there is none."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=WIDTH)


def table(*columns: str) -> Table:
    """An empty table in the house's form; a column that begins with ``>`` is set to the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        # Only text that is a sentence may be wrapped.
        made.add_column(
            column.removeprefix(">"), justify=justify, no_wrap=column not in {"Outcome", "Source", "Why"}
        )
    return made


def jobs_table(jobs: Sequence[TrainingJob], models: Mapping[int, ModelRow]) -> Table:
    """Jobs with what came of them; ``models`` by id, those that the jobs made."""
    made = table("Job", "Model key", "State", ">Took", "Outcome")
    for job in jobs:
        model = models.get(job.model_id) if job.model_id is not None else None
        made.add_row(
            job.id[:8], str(job.key), _state(job.state), span_text(_took(job)), outcome_text(job, model)
        )
    return made


def models_table(models: Sequence[ModelRow], sources: Mapping[tuple[str, str], str]) -> Table:
    """Models with how good they are on rows they never saw, beside the base rate; then whose candles."""
    made = table("Model key", ">v", "State", ">Rows", ">Base", ">AUC [90 %]", ">F1 [90 %]")
    for model in models:
        made.add_row(
            str(model.key),
            str(model.version),
            _state(model.state),
            str(model.metrics.get("rows", "")),
            number_text(model.metrics.get("base_rate")),
            estimate_text(model.metrics.get("auc")),
            estimate_text(model.metrics.get("f1")),
        )
    series = sorted({(model.symbol, model.interval) for model in models})
    notes = [
        f"Candles of {symbol} {interval}: {sources.get((symbol, interval), 'no longer stored')}"
        for symbol, interval in series
    ]
    without = [f"{model.key} v{model.version}" for model in models if not has_edge(model)]
    if without:
        whose = "any model here" if len(without) == len(models) else ", ".join(without)
        notes.append(f"No edge: no confidence of {whose} is expected to earn its fees and slippage.")
    made.caption = "\n".join(notes)
    made.caption_justify = "left"
    return made


def has_edge(model: ModelRow) -> bool:
    """Whether any confidence of the model is expected to earn more than its fees and slippage."""
    return bool(model.details.get("has_edge", False))


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Every metric that has an interval."""
    made = table("Metric", ">Value", ">90 % interval")
    for name, value in metrics.items():
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            bounds = f"{number_text(value['low'])} to {number_text(value['high'])}"
            made.add_row(name.replace("_", " "), number_text(value["value"]), bounds)
    return made


def gates_table(decision: Mapping[str, Any]) -> Table:
    """The gates of a promotion decision, each with its sentence."""
    made = table("Gate", "Passed", "Why")
    for gate in decision.get("gates", ()):
        passed = Text("yes", "green") if gate["passed"] else Text("no", "red")
        made.add_row(gate["name"], passed, gate["detail"])
    return made


def outcome_text(job: TrainingJob, model: ModelRow | None) -> str:
    """A line or two on what came of a job; `alphaplus model show` and --json say it in full."""
    outcome = job.outcome or {}
    if job.state == "running":
        return f"{job.stage or 'starting'}, {job.progress:.0%}"
    if model is not None:
        if model.decision.get("promote"):
            edge = "" if has_edge(model) else ", no edge"
            fate = "in shadow" if outcome.get("result") == "shadow" else "promoted"
            return f"version {model.version} {fate}, AUC {estimate_text(model.metrics.get('auc'))}{edge}"
        failed = [gate["name"] for gate in model.decision.get("gates", ()) if not gate["passed"]]
        why = f" by {', '.join(failed)}" if failed else ": " + "; ".join(model.decision.get("reasons", ()))
        return f"version {model.version} rejected{why}"
    if job.superseded_by is not None:
        return f"job {job.superseded_by[:8]} trains this key"
    named = outcome.get("refused") or outcome.get("error") or outcome.get("reason")
    text = ": ".join(str(part) for part in (named, outcome.get("detail")) if part)
    return text if len(text) <= OUTCOME_CHARACTERS else text[: OUTCOME_CHARACTERS - 1] + "…"


def job_json(job: TrainingJob, model: ModelRow | None) -> dict[str, Any]:
    """A job as plain values."""
    columns = {column.key: getattr(job, column.key) for column in TrainingJob.__mapper__.column_attrs}
    return _plain(columns) | {"key": str(job.key), "model": None if model is None else model_json(model)}


def model_json(model: ModelRow, sources: Mapping[tuple[str, str], str] | None = None) -> dict[str, Any]:
    """A model as plain values; with ``sources``, where its candles come from."""
    columns = {column.key: getattr(model, column.key) for column in ModelRow.__mapper__.column_attrs}
    made = _plain(columns) | {"key": str(model.key)}
    return made if sources is None else made | {"candles_source": sources.get((model.symbol, model.interval))}


def estimate_text(estimate: Any) -> str:
    """``0.558 [0.534, 0.581]``; empty where there is none."""
    if not isinstance(estimate, Mapping) or estimate.get("value") is None:
        return ""
    return f"{estimate['value']:.3f} [{number_text(estimate['low'])}, {number_text(estimate['high'])}]"


def number_text(number: float | None) -> str:
    """Three decimals; a dash for what could not be computed."""
    return "-" if number is None else f"{number:.3f}"


def span_text(seconds: float | None) -> str:
    """``0.8 s``, ``42 s``, ``5 min``, ``3 h``, ``2 days``; empty for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, unit, name in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"


def time_text(moment: datetime | None) -> str:
    """``2026-11-23 13:05``, UTC; empty for None."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _took(job: TrainingJob) -> float | None:
    if job.started_at is None:
        return None
    end = job.finished_at or datetime.now(UTC)
    return max(0.0, (end - job.started_at).total_seconds())


def _state(state: str) -> Text:
    return Text(state, STATE_STYLES.get(state, ""))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def sources_of(series: Iterable[Any]) -> dict[tuple[str, str], str]:
    """``db.candles.series`` -> (symbol, interval) -> where the candles come from."""
    return {(one.symbol, one.interval): one.source for one in series}
