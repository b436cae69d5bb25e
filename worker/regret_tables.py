"""How the regret ledger is shown: which retrainings paid, and how many do at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from rich.table import Table
from rich.text import Text
from scipy.stats import binomtest

from tasks.regret import RegretEntry
from worker.tables import number_text, table, time_text

__all__ = ["entry_json", "regret_rates", "regret_table", "regret_text"]

CONFIDENCE: Final = 0.9
VERDICT_STYLES: Final = {"paid": "green", "did_not_pay": "red"}
DIFFERENCES: Final = ("brier_difference", "auc_difference", "net_return_difference")


def regret_table(entries: Sequence[RegretEntry]) -> Table:
    """Each promotion beside the model that it replaced, on the same signals."""
    made = table("Model key", "Promoted", ">Brier [90 %]", ">AUC [90 %]", ">Net ATR [90 %]", "It")
    for entry in entries:
        verdict = Text(entry.verdict.replace("_", " "), VERDICT_STYLES.get(entry.verdict, ""))
        base = number_text(entry.numbers.get("base_rate"))
        so_far = "" if entry.final else " so far"
        verdict.append(f"{so_far}\n{entry.numbers['rows']:,} signals\nbase {base}", "")
        made.add_row(
            f"{entry.key}\nv{entry.version} for v{entry.replaced_version}",
            f"{time_text(entry.promoted_at)[:10]}\n{entry.reason}",
            *(_difference(entry.numbers.get(name)) for name in DIFFERENCES),
            verdict,
        )
    made.caption = (
        "By how much the new model is better than the one it replaced, on the signals after the promotion "
        "that both answered; under 0 it is worse. Base: hit rate of these signals."
    )
    made.caption_justify = "left"
    return made


def regret_rates(entries: Iterable[RegretEntry]) -> dict[str, dict[str, Any]]:
    """How many paid: of ``all`` (the base rate), and by the reason of the training.

    Each has ``paid``, ``did_not_pay``, ``not_known``, and of those known ``share``, ``low`` and ``high``: an
    exact 90 % interval (Clopper & Pearson, Biometrika 1934), None where none is known. What is not final
    does not count.
    """
    final = [entry for entry in entries if entry.final]
    groups = {"all": final}
    for entry in final:
        groups.setdefault(entry.reason, []).append(entry)
    return {name: _rate([entry.verdict for entry in group]) for name, group in groups.items()}


def regret_text(rates: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for all, then one for each reason."""
    lines = []
    for name, rate in rates.items():
        known = rate["paid"] + rate["did_not_pay"]
        who = "Of all" if name == "all" else f"For {name}"
        if known:
            bounds = f" [{rate['low']:.0%}, {rate['high']:.0%}]"
            lines.append(f"{who}: {rate['paid']} of {known} paid, {rate['share']:.0%}{bounds}")
        else:
            lines.append(f"{who}: whether any paid is not known")
        if known and rate["not_known"]:
            lines[-1] += f"; of {rate['not_known']} it is not known"
    return lines


def entry_json(entry: RegretEntry) -> dict[str, Any]:
    """Plain values."""
    values = asdict(entry) | {"key": str(entry.key)}
    return {
        name: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def _rate(verdicts: Sequence[str]) -> dict[str, Any]:
    counts = {name: verdicts.count(name) for name in ("paid", "did_not_pay", "not_known")}
    known = counts["paid"] + counts["did_not_pay"]
    if not known:
        return {**counts, "share": None, "low": None, "high": None}
    bounds = binomtest(counts["paid"], known).proportion_ci(CONFIDENCE)
    return {**counts, "share": counts["paid"] / known, "low": float(bounds.low), "high": float(bounds.high)}


def _difference(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate.get("value") is None:
        return "-"
    bounds = f"\n[{_signed(estimate['low'])},\n{_signed(estimate['high'])}]"
    return _signed(estimate["value"]) + ("" if estimate["low"] is None else bounds)


def _signed(number: float | None) -> str:
    return number_text(number) if number is None else f"{number:+.3f}"
