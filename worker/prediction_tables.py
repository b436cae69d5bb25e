"""How answers, predictions and their outcomes are shown: tables of at most 100 columns, and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from db.models import Prediction
from ml.evaluation import Estimate
from ml.inference import ABSTAIN_REASONS
from ml.keys import ALL_REGIMES, ModelKey
from ml.live_accuracy import LiveAccuracy
from ml.noise import REASONS
from tasks.detect import Detection
from tasks.remake import FromCandles, Remade, brings_own_confidence
from worker.tables import number_text, span_text, table, time_text

__all__ = [
    "ADVICE",
    "abstention_text",
    "accuracy_tables",
    "answer_line",
    "answers_table",
    "detection_json",
    "features_table",
    "no_signal_text",
    "outcome_text",
    "prediction_json",
    "predictions_table",
    "remade_table",
    "remade_text",
    "side_text",
]

DECISION_STYLES = {"accept": "green", "reject": "yellow", "abstain": "magenta"}
OUTCOME_STYLES = {"hit": "green", "miss": "red"}
ID_CHARACTERS = 8
"""Of a prediction's id, in a table: `alphaplus replay` takes them for the whole."""

BROUGHT = {"inline": "candles", "features": "features"}
"""What the caller sent along, by the ``source`` of a record."""

ADVICE = {
    "stale_signal": "`alphaplus candles sync` fetches what is missing; the limit is a setting",
    "no_candle": "`alphaplus candles sync` fetches it",
    "too_few_candles": "`alphaplus candles sync --since DATE` reads further back",
    "noisy_candle": "nothing to do: the next candle will be answered",
    "no_regime": "`alphaplus candles gaps {symbol}` shows what is missing",
    "no_pattern": "name its patterns with --pattern, or leave --direction out",
    "no_model": "`alphaplus train {symbol} all` makes one that answers in every regime",
    "store_unavailable": "see that PostgreSQL runs, and ask again",
    "artifact_corrupt": "restore ml_model_artifacts from a backup, or `alphaplus train` the key again",
    "model_mismatch": "`alphaplus train` the key again",
    "fallback_unfit": "`alphaplus train {symbol} {regime}` gives the regime a model of its own",
    "model_too_old": "`alphaplus train {symbol} {regime}` makes a new one",
    "out_of_distribution": "do not lean on the model here; if it lasts, train again",
}
"""What to do about each of ``ml.inference.ABSTAIN_REASONS``."""


def answers_table(answers: Sequence[Mapping[str, Any]]) -> Table:
    """Answers of ``tasks.predict`` to signals of one series, with what to do about each abstention."""
    made = table("Side", "Patterns", "Decision", ">Confidence", ">Alone", ">Net ATR", "Model", ">Age")
    made.columns[1].no_wrap = False
    made.columns[1].ratio = 1
    for one in answers:
        made.add_row(
            side_text(one["direction"]),
            _short_names(one["patterns"]),
            _decision(one["decision"]),
            number_text(one["confidence"]),
            number_text(one["pattern_confidence"]),
            _signed(one["expected_net_return_atr"]),
            _model(one),
            span_text(one["model_age_seconds"]),
        )
    notes = [
        f"{side_text(one['direction'])}: abstains, {abstention_text(one)}"
        for one in answers
        if one["abstain_reason"]
    ]
    notes.append("Alone: the patterns' own hit rate. Net ATR: expected return after fees, in ATR.")
    made.caption, made.caption_justify = "\n".join(notes), "left"
    return made


def answer_line(answer: Mapping[str, Any]) -> Text:
    """One answer as one line of a log."""
    text = Text(f"{_minute(answer['time'])}  {answer['symbol']} {answer['interval']} ")
    text.append(f"{side_text(answer['direction']):<5}  ")
    text.append(f"{answer['decision']:<7}", DECISION_STYLES[answer["decision"]])
    if answer["abstain_reason"]:
        text.append(f"  {abstention_text(answer)}")
    else:
        text.append(f"  {answer['confidence']:.3f}")
        if answer["pattern_confidence"] is not None:
            text.append(f" (patterns alone {answer['pattern_confidence']:.3f})")
        text.append(f"  {_signed(answer['expected_net_return_atr'])} ATR  {_model(answer)}")
    return text.append(f"  {_short_names(answer['patterns'])}" if answer["patterns"] else "")


def abstention_text(answer: Mapping[str, Any]) -> str:
    """Why the system abstains, and what to do about it."""
    code = answer["abstain_reason"]
    why = ABSTAIN_REASONS.get(code, code)
    advice = ADVICE.get(code, "").format(symbol=answer["symbol"], regime=answer.get("regime") or ALL_REGIMES)
    return f"{why}: {advice}" if advice else why


def no_signal_text(found: Detection) -> str:
    """Which candle was looked at, and why it gives no signal."""
    series = f"{found.symbol} {found.interval}"
    if found.close_time is None:
        return f"{series}: no candle is known yet: {ADVICE['no_candle']}."
    candle = f"{series}: the newest candle closed {time_text(found.close_time)} UTC"
    if found.reason == "noisy_candle":
        return f"{candle} and is noise: {REASONS[found.noise or '']}."
    if found.reason == "stale_signal":
        return f"{candle}, too long ago to act on: {ADVICE['stale_signal']}."
    return f"{candle} and has no pattern."


def detection_json(found: Detection) -> dict[str, Any]:
    """A candle without a signal as plain values, named as in an answer."""
    closed = None if found.close_time is None else found.close_time.isoformat()
    return {"symbol": found.symbol, "interval": found.interval, "time": closed, "reason": found.reason}


def predictions_table(rows: Sequence[Prediction], *, now: datetime) -> Table:
    """Answers given, with what became of them; with the year, where they are not all of this one."""
    this_year = all(row.signal_time.astimezone(UTC).year == now.astimezone(UTC).year for row in rows)
    made = table("Id", "Closed", "Signal", "Regime", "Said", ">Conf.", ">Alone", "Outcome")
    made.columns[2].no_wrap = False
    for row in rows:
        made.add_row(
            str(row.id)[:ID_CHARACTERS],
            time_text(row.signal_time).removeprefix(f"{now.astimezone(UTC):%Y}-" if this_year else ""),
            f"{row.symbol} {row.interval} {side_text(row.direction)}",
            row.regime if row.served_regime in {None, row.regime} else f"{row.regime}*",
            _decision(row.decision),
            number_text(row.confidence),
            number_text(row.pattern_confidence),
            _outcome(row),
        )
    notes = ["Outcome: net return in ATR, after fees. `alphaplus replay ID` makes a prediction again."]
    if any(row.served_regime not in {None, row.regime} for row in rows):
        notes.insert(0, "* answered by the symbol's model of all regimes.")
    made.caption, made.caption_justify = "\n".join(notes), "left"
    return made


def outcome_text(row: Prediction) -> str:
    """``hit +0.73``, ``miss -2.11``, ``open to 10-01 13:00`` of the year of its candle or the next, or why it
    has none."""
    if row.label is not None:
        return f"{'hit' if row.label else 'miss'} {_signed(row.net_return_atr)}".rstrip(" -")
    if row.resolved_at is None:
        return f"open to {row.horizon_end.astimezone(UTC):%m-%d %H:%M}"
    return f"unknown: {row.details.get('unresolved') or 'no outcome in the candles'}"


def prediction_json(row: Prediction) -> dict[str, Any]:
    """A prediction as plain values, without its features."""
    columns = {
        column.key: getattr(row, column.key)
        for column in Prediction.__mapper__.column_attrs
        if column.key != "features"
    }
    plain = {
        name: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        for name, value in columns.items()
    }
    return plain | {"id": str(row.id)}


def accuracy_tables(judged: Sequence[tuple[ModelKey, LiveAccuracy]]) -> tuple[Table, Table, Table]:
    """How right the answers were, the two figures that the system is there for, and what of these the model
    adds to the patterns alone; market by market, whichever model answered."""
    plain = table(
        "Market", ">Signals", ">Answered", ">Base", ">Precision [90 %]", ">Brier", ">Alone", ">Net ATR"
    )
    gains = table("Market", ">Accuracy gained [90 %]", ">False removed [90 %]", ">Hits kept [90 %]")
    added = table("Market", ">Compared", ">Gained over alone [90 %]", ">Removed over alone [90 %]")
    for one_of_three in (plain, gains, added):
        one_of_three.columns[0].no_wrap = False
    for key, one in judged:
        plain.add_row(
            _market(key),
            str(one.resolved),
            str(one.answered),
            number_text(one.base_rate),
            _share(one.precision),
            number_text(one.brier.value),
            number_text(one.pattern_brier.value),
            _signed(one.net_return_accepted_atr.value),
        )
        gains.add_row(
            _market(key),
            _share(one.accuracy_gained),
            _share(one.false_signals_removed),
            _share(one.hits_kept),
        )
        added.add_row(
            _market(key),
            str(one.compared),
            _share(one.accuracy_gained_over_pattern),
            _share(one.false_removed_over_pattern),
        )
    _explain(plain, gains, added, judged)
    return plain, gains, added


def _explain(
    plain: Table, gains: Table, added: Table, judged: Sequence[tuple[ModelKey, LiveAccuracy]]
) -> None:
    plain.caption = (
        "Signals: resolved ones. Base: hit rate of all the answered. Brier: smaller is better; Alone: the "
        "patterns' own. Net ATR: mean return of the accepted, after fees."
    )
    gains.caption = "Accuracy gained: precision over base, less 1. No skill: false removed + hits kept = 1."
    notes = [
        "Over alone: beyond what as many signals of the highest pattern confidence gain and remove, "
        "which is what the model adds. Under 0 the patterns alone do better.",
    ]
    few = [_market(key) for key, one in judged if one.answered and one.precision.low is None]
    if few:
        notes.append(
            "No bounds where there are too few signals, or too few days of them: "
            + ("all of these." if len(few) == len(judged) else f"{', '.join(few)}.")
        )
    added.caption = "\n".join(notes)
    plain.caption_justify = gains.caption_justify = added.caption_justify = "left"


def _market(key: ModelKey) -> str:
    """Where the signals were: ``BTCUSDT 1h trending``. A record's ``all`` is no model's but a regime that
    could not be told."""
    return f"{key.symbol} {key.interval} {'unknown' if key.regime == ALL_REGIMES else key.regime}"


def remade_text(remade: Remade) -> list[str]:
    """What a past prediction was made of, line by line."""
    row, model_row, again = remade.row, remade.model_row, remade.candles
    lines = [
        f"{row.symbol} {row.interval} {side_text(row.direction)}, candle closed {time_text(row.signal_time)} "
        f"UTC, answered {time_text(row.as_of)}: {row.decision}"
    ]
    if row.abstain_reason is not None:
        lines.append(f"  abstained   {ABSTAIN_REASONS.get(row.abstain_reason, row.abstain_reason)}")
    if row.patterns:
        own = " (the caller's)" if brings_own_confidence(remade) else ""
        lines.append(
            f"  patterns    {_short_names(row.patterns)}; alone {number_text(row.pattern_confidence)}{own}"
        )
    if model_row is None or remade.model is None:
        lines.append("  model       none was used: there are no numbers to make again")
    else:
        lines += [
            f"  model       {model_row.key}, version {model_row.version}, now {model_row.state}",
            f"  artifact    {model_row.artifact_sha256}",
            f"  booster     {model_row.booster_sha256}",
            f"  libraries   {_libraries(remade.model.libraries, remade.libraries)}",
        ]
    if remade.features is not None and again is not None:
        lines.append(f"  features    {len(remade.features)}, as recorded with the answer")
        brought = BROUGHT.get(row.details.get("source", ""))
        lines.append(f"  candles     {_candles_text(again, time_text(row.as_of), brought)}")
    return lines


def remade_table(remade: Remade) -> Table:
    """Each value as recorded and as made again, with every digit."""
    made = table("Value", ">Recorded", ">Again", "Same")
    for one in remade.compared:
        same = Text("yes", "green") if one.same else Text("no", "red")
        made.add_row(one.name, str(one.recorded), str(one.again), same)
    return made


def features_table(remade: Remade) -> Table:
    """The recorded features, beside those of the candles."""
    made = table("Feature", ">Recorded", ">From the candles")
    features = [] if remade.features is None else remade.features.tolist()
    again = remade.candles.features if remade.candles is not None else None
    others = ["-"] * len(features) if again is None else [str(value) for value in again]
    for name, value, other in zip(remade.feature_names, features, others, strict=True):
        made.add_row(name, str(np.float32(value)), other)
    return made


def _libraries(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = [
        f"{name} {old}, now {now.get(name, 'none')}" for name, old in then.items() if now.get(name) != old
    ]
    if changed:
        return f"others than the model was trained with: {'; '.join(changed)}"
    return "as the model was trained with: " + ", ".join(
        f"{name} {version}" for name, version in then.items()
    )


def _candles_text(again: FromCandles, as_of: str, brought: str | None) -> str:
    """``brought``: what of the market the caller sent along, where the stored candles were not asked."""
    if again.state == "equal":
        them = "they give" if brought is None else f"the caller brought its own {brought}; those stored give"
        return f"as known at {as_of}, {them} the same features, bit for bit"
    if again.state == "not_made":
        why = f"no features from those stored: {ABSTAIN_REASONS.get(again.reason or '', again.reason)}"
        return why if brought is None else f"the caller brought its own {brought}; {why}"
    off = f"{again.largest} is off by {again.difference:.3g}"
    if brought is None:
        return f"as known at {as_of}, they give other features: {off}"
    return f"the caller brought its own {brought}; those stored, as known at {as_of}, give others: {off}"


def _share(estimate: Estimate) -> str:
    """``0.612 [0.571, 0.650]``; the value alone where there are too few for bounds."""
    if estimate.value is None:
        return "-"
    bounds = "" if estimate.low is None else f" [{number_text(estimate.low)}, {number_text(estimate.high)}]"
    return f"{estimate.value:.3f}{bounds}"


def side_text(direction: int) -> str:
    """``long`` or ``short``."""
    return "long" if direction > 0 else "short"


def _outcome(row: Prediction) -> Text:
    text = outcome_text(row)
    return Text(text, OUTCOME_STYLES.get(text.partition(" ")[0], ""))


def _decision(decision: str) -> Text:
    return Text(decision, DECISION_STYLES[decision])


def _model(answer: Mapping[str, Any]) -> str:
    """``trending v3``; the fallback says for which regime it stands in."""
    if answer["model"] is None:
        return "none"
    regime = answer["model"].rpartition(" ")[2]
    version = f"{regime} v{answer['model_version']}"
    return f"{version} for {answer['regime']}" if answer["fallback"] else version


def _short_names(patterns: Sequence[str]) -> str:
    """Without TA-Lib's prefix, which all of them have."""
    return ", ".join(name.removeprefix("CDL") for name in patterns)


def _signed(number: float | None) -> str:
    return "-" if number is None else f"{number:+.2f}"


def _minute(moment: str) -> str:
    return time_text(datetime.fromisoformat(moment))
