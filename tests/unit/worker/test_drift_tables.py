"""How drift is shown: what fits, what is said in words, and what a program gets."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console, RenderableType

from db.drift_history import DriftDay
from db.drift_models import DriftAction, DriftAlert, DriftDetail, DriftThreshold
from ml.keys import ModelKey
from tasks.regret import RegretEntry
from worker.drift_summary import sparkline, summarise
from worker.drift_tables import (
    action_text,
    actions_table,
    alert_json,
    checks_table,
    features_table,
    outcome_text,
    summary_table,
    thresholds_table,
    unchecked_text,
    verdicts_table,
)
from worker.regret_tables import entry_json, regret_rates, regret_table, regret_text

pytestmark = pytest.mark.drift

NOW = datetime(2019, 10, 1, 12, 0, tzinfo=UTC)
KEY = ModelKey("BTCUSDT", "1h", "consolidation")
LIMITS = {"ks": 0.15, "psi": 0.25, "low": 0.1, "medium": 0.15, "high": 0.2, "critical": 0.3}
WIDTH = 100


def shown(what: RenderableType) -> str:
    """As a terminal of 100 columns, without colours; nothing is cut off."""
    out = io.StringIO()
    Console(file=out, width=WIDTH, highlight=False).print(what)
    assert "…" not in out.getvalue()
    return out.getvalue()


def cells(what: RenderableType) -> list[list[str]]:
    """The words of each line under the heading."""
    lines = [line.split() for line in shown(what).splitlines()]
    rule = next(index for index, line in enumerate(lines) if line and set(line[0]) == {"─"})
    return lines[rule + 1 :]


def alert(kind: str = "features", *, key: ModelKey = KEY, **changes: Any) -> DriftAlert:
    values: dict[str, Any] = {
        "id": UUID(int=7),
        "model_id": 3,
        "as_of": NOW,
        "severity": "high",
        "drift_score": 0.234,
        "p_value": 0.0004,
        "reference_rows": 12_345,
        "current_rows": 250,
        "limits": LIMITS,
        "snoozed_until": None,
        "details": {},
        "recorded_at": NOW,
    }
    return DriftAlert(
        symbol=key.symbol, interval=key.interval, regime=key.regime, kind=kind, **values | changes
    )


def detail(feature: str, importance: float, excess: float, *, drifted: bool) -> DriftDetail:
    return DriftDetail(
        alert_id=UUID(int=7),
        feature=feature,
        as_of=NOW,
        ks=0.31,
        p_value=0.02,
        population_stability_index=0.4,
        importance=importance,
        details={"excess": excess, "drifted": drifted},
    )


def action(*, key: ModelKey = KEY, **changes: Any) -> DriftAction:
    values: dict[str, Any] = {
        "id": 4,
        "alert_id": UUID(int=7),
        "alert_as_of": NOW,
        "model_id": 3,
        "severity": "critical",
        "action": "retrain_now",
        "state": "open",
        "job_id": None,
        "due_at": None,
        "as_of": NOW,
        "closed_at": None,
        "snoozed_until": None,
        "outcome": None,
    }
    return DriftAction(symbol=key.symbol, interval=key.interval, regime=key.regime, **values | changes)


def test_checks_are_listed_by_kind_with_their_limits_and_a_small_p_is_no_zero() -> None:
    alerts = [alert("accuracy", severity="none", drift_score=0.02, p_value=None), alert("features")]
    rows = cells(checks_table(alerts))
    assert rows[0] == ["features", "0.234", "high", "<", "0.001", "12,345", "250"]
    assert rows[1] == ["accuracy", "0.020", "none", "-", "12,345", "250"]
    told = " ".join(word for row in rows[2:] for word in row)
    assert told.startswith("low over 0.1, medium over 0.15, high over 0.2, critical over 0.3. 0.20 is")


def test_features_come_by_importance_times_excess_and_only_the_first_are_shown() -> None:
    details = [detail(f"small_{number}", 0.01, 0.1, drifted=False) for number in range(40)]
    details += [
        detail("leaned_on", 0.30, 1.0, drifted=True),
        detail("moved_most", 0.005, 20.0, drifted=False),
        detail("both", 0.05, 8.0, drifted=True),
    ]
    rows = cells(features_table(details, LIMITS))
    assert [row[0] for row in rows[:3]] == ["both", "leaned_on", "moved_most"]
    assert rows[0] == ["both", "5.0%", "0.310", "0.400", "0.020", "8.000", "yes"]
    told = " ".join(word for row in rows[8:] for word in row)
    assert told.startswith("8 of 43 features, by importance x excess; 2 drifted: p at most 0.05 over all")
    assert "KS over 0.15 or PSI over 0.25" in told


def test_check_as_plain_values_has_every_feature_and_survives_json() -> None:
    found = alert_json(alert(), [detail("b", 0.1, 1.0, drifted=False), detail("a", 0.2, 1.0, drifted=True)])
    assert json.loads(json.dumps(found)) == found
    assert (found["key"], found["as_of"], found["kind"]) == (str(KEY), NOW.isoformat(), "features")
    assert [one["feature"] for one in found["features"]] == ["a", "b"]
    assert found["features"][0]["details"] == {"excess": 1.0, "drifted": True}


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ((None, 0.0, 0.15, 0.299, 0.3, 7.0), 14, "·▁▅███"),
        ((0.0, 0.3, None, None, 0.0, 0.15), 3, "█·▅"),  # each bar the largest of its two
        ((), 14, ""),
    ],
)
def test_sparkline_is_full_at_the_limit_and_keeps_each_spans_largest(
    values: tuple[float | None, ...], width: int, drawn: str
) -> None:
    assert sparkline(values, top=0.3, width=width) == drawn


def test_summary_has_the_newest_models_scores_and_every_days_largest() -> None:
    other = ModelKey("ETHUSDT", "1h", "all")
    newest = [
        alert("features", drift_score=0.4, severity="critical"),
        alert("scores", drift_score=0.1, severity="none", as_of=NOW - timedelta(hours=5)),
        # Of the model before: it says nothing about the one that answers now.
        alert("accuracy", drift_score=9.0, model_id=2, as_of=NOW - timedelta(days=2)),
    ]
    days = [
        DriftDay(key=KEY, days_back=0, severity="critical", checks=2, largest_score=0.4),
        DriftDay(key=KEY, days_back=0, severity="none", checks=40, largest_score=0.05),
        DriftDay(key=KEY, days_back=2, severity="low", checks=1, largest_score=0.12),
    ]
    actions = [action(due_at=NOW + timedelta(hours=3)), action(state="snoozed", snoozed_until=NOW)]
    first, second = summarise([other, KEY], newest, days, actions, now=NOW, span_days=3)
    assert (first.key, second.key) == (KEY, other)
    assert {kind: one.score for kind, one in first.newest.items()} == {"features": 0.4, "scores": 0.1}
    assert (first.worst, first.alerts, first.checks) == ("critical", {"critical": 2, "low": 1}, 43)
    assert first.trend == (0.12, None, 0.4)
    assert (first.open_action, first.due_at) == ("retrain_now", NOW + timedelta(hours=3))
    assert first.snoozed_until is None  # it ends now
    assert (second.newest, second.worst, second.trend, second.open_action) == ({}, "none", (None,) * 3, None)
    made = first.to_json()
    assert json.loads(json.dumps(made)) == made
    assert made["newest"]["features"] == {
        "score": 0.4, "severity": "critical", "as_of": NOW.isoformat(),
    }  # fmt: skip


def test_champion_that_cannot_be_checked_comes_first_and_says_so() -> None:
    bare = ModelKey("ETHUSDT", "1h", "all")
    newest = [alert("features", drift_score=0.4, severity="critical")]
    found = summarise([KEY, bare], newest, [], [], now=NOW, span_days=3, uncalibrated=[bare])
    assert [(one.key, one.calibrated) for one in found] == [(bare, False), (KEY, True)]
    assert found[0].to_json()["calibrated"] is False
    text = shown(summary_table(found, days=3))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert " ".join(text.split()).count("no calibration: train again") == 1


def test_summary_of_the_longest_key_fits_a_terminal() -> None:
    days = [
        DriftDay(key=KEY, days_back=back, severity="critical", checks=24, largest_score=0.4)
        for back in range(30)
    ]
    kinds = [alert(kind, drift_score=12.345) for kind in ("features", "scores", "calibration", "accuracy")]
    actions = [
        action(action="schedule_retraining", due_at=NOW),
        action(state="snoozed", snoozed_until=NOW + timedelta(days=1)),
    ]
    found = summarise([KEY], kinds, days, actions, now=NOW, span_days=30)
    text = shown(summary_table(found, days=30))
    assert max(map(len, text.splitlines())) <= WIDTH
    for part in (str(KEY), "12.35", "720/0/0/0", "█" * 10, "checks of the last 30 days called"):
        assert part in " ".join(text.split())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"job_id": "0123456789ab"}, "job 01234567 trains"),
        ({"due_at": NOW}, "due 2019-10-01 12:00"),
        (
            {"due_at": NOW, "outcome": {"waits": "48 retrainings of drift in 24 hours"}},
            "due 2019-10-01 12:00, 48 retrainings of drift in 24 hours",
        ),
        (
            {"state": "snoozed", "outcome": {"result": "rejected", "says": "version 4 was rejected: auc"}},
            "version 4 was rejected: auc",
        ),
        (
            {
                "state": "done",
                "outcome": {"says": "version 4 took over", "regret": {"verdict": "did_not_pay"}},
            },
            "version 4 took over; did not pay",
        ),
        ({"state": "cancelled"}, "cancelled"),
    ],
)
def test_outcome_of_an_action_says_what_became_of_it(changes: dict[str, Any], told: str) -> None:
    assert outcome_text(action(**changes)) == told
    assert told.rsplit(maxsplit=1)[-1] in shown(actions_table([action(**changes)]))


@pytest.mark.parametrize(
    ("done", "snoozed_until", "told"),
    [
        (None, None, "Nothing is to be done."),
        (None, NOW, "snoozed until 2019-10-01 12:00 UTC: alerts start nothing"),
        (action(job_id="01ab"), None, "Action 4: the key retrains now, by job 01ab."),
        (
            action(action="schedule_retraining", due_at=NOW),
            None,
            "Action 4: the key retrains at its next slot, at 2019-10-01 12:00 UTC.",
        ),
    ],
)
def test_after_a_check_a_sentence_says_what_is_done(
    done: DriftAction | None, snoozed_until: datetime | None, told: str
) -> None:
    assert told in action_text(done, snoozed_until)


def test_thresholds_say_whose_they_are_and_who_set_them_why() -> None:
    def row(symbol: str, interval: str, regime: str) -> DriftThreshold:
        return DriftThreshold(
            id=1, symbol=symbol, interval=interval, regime=regime, ks=0.15, population_stability_index=0.25,
            low=0.1, medium=0.15, high=0.25, critical=0.3, valid_from=NOW, valid_until=None,
            changed_by="cli:somebody", why="the summer was calm " * 3, details={},
        )  # fmt: skip

    text = shown(
        thresholds_table([row("*", "*", "*"), row("BTCUSDT", "*", "*"), row("BTCUSDT", "1h", "all")])
    )
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.split().count("0.25") == 6  # PSI and high, three times
    for part in ("every key", "BTCUSDT any any", "BTCUSDT 1h all"):
        assert part in text


def entry(verdict: str, *, reason: str = "drift", final: bool = True) -> RegretEntry:
    difference = {"value": -0.012, "low": -0.021, "high": -0.003}
    return RegretEntry(
        key=KEY,
        promoted_at=NOW,
        version=13,
        replaced_version=12,
        reason=reason,
        verdict=verdict,
        numbers={
            "rows": 4_120,
            "base_rate": 0.5712,
            "brier_difference": difference,
            "auc_difference": {"value": 0.004, "low": None, "high": None},
            "net_return_difference": {"value": None, "low": None, "high": None},
        },
        until=NOW,
        final=final,
        ended="span" if final else None,
    )


def test_regret_shows_each_difference_with_its_interval_and_what_has_none() -> None:
    text = shown(regret_table([entry("did_not_pay", reason="schedule", final=False)]))
    assert max(map(len, text.splitlines())) <= WIDTH
    for part in (str(KEY), "v13 for v12", "schedule", "-0.012", "[-0.021,", "-0.003]", "+0.004"):
        assert part in text
    for part in ("did not pay so far", "4,120 signals", "base 0.571"):
        assert part in text


def test_base_rate_counts_what_is_known_and_final_with_an_exact_interval() -> None:
    entries = [entry("paid"), entry("paid"), entry("did_not_pay"), entry("not_known")]
    entries += [entry("did_not_pay", reason="schedule"), entry("paid", final=False)]
    rates = regret_rates(entries)
    assert list(rates) == ["all", "drift", "schedule"]
    every = rates["all"]
    assert (every["paid"], every["did_not_pay"], every["not_known"], every["share"]) == (2, 2, 1, 0.5)
    # Of n = 1 without a success the 90 % upper bound solves (1 - p) = 0.05.
    assert rates["schedule"]["low"] == 0
    assert rates["schedule"]["high"] == pytest.approx(0.95)
    assert regret_text(rates) == [
        "Of all: 2 of 4 paid, 50% [10%, 90%]; of 1 it is not known",
        "For drift: 2 of 3 paid, 67% [14%, 98%]; of 1 it is not known",
        "For schedule: 0 of 1 paid, 0% [0%, 95%]",
    ]
    assert json.loads(json.dumps(rates)) == rates


def test_whether_any_retraining_paid_may_be_unknown() -> None:
    assert regret_text(regret_rates([])) == ["Of all: whether any paid is not known"]
    made = entry_json(entry("not_known"))
    assert json.loads(json.dumps(made)) == made
    assert (made["key"], made["verdict"], made["promoted_at"]) == (str(KEY), "not_known", NOW.isoformat())


def test_checks_of_many_keys_are_listed_loudest_first_and_say_why_one_was_not_made() -> None:
    reports: list[dict[str, Any]] = [
        {"key": str(KEY), "state": "too_few_rows", "detail": "12 signals, at least 200 are needed"},
        {
            "key": "ETHUSDT 1h all",
            "state": "checked",
            "version": 3,
            "as_of": NOW.isoformat(),
            "score": 0.31,
            "severity": "critical",
            "action": {"action": "retrain_now"},
        },
    ]
    rows = cells(verdicts_table(reports))
    assert " ".join(rows[0]) == "ETHUSDT 1h all 3 2019-10-01 12:00 0.310 critical retrain now"
    assert " ".join(word for row in rows[1:] for word in row) == f"{KEY} - - {reports[0]['detail']}"
    assert unchecked_text(reports[0]) == (
        f"{KEY} was not checked: too few rows: 12 signals, at least 200 are needed"
    )
