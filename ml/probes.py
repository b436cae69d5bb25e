"""Probes: does a challenger answer from its stored bytes, and was it judged on what could be known?

Gates look at numbers, and a leak makes numbers better. So before a promotion the model is stored and loaded
as a worker would, and a sample of its test rows is made again by a worker's own code (``ml.sightings``): from
candles up to the signal, and with other candles after it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ml.artifact import Predictor, load, sha256_hex, to_bytes
from ml.candles import Candles, to_datetime
from ml.errors import ArtifactCorrupt
from ml.features import WINDOW
from ml.promotion import GateResult
from ml.rows import SignalRows
from ml.sightings import Sighting, Window
from ml.signals import SignalRequest

__all__ = ["ANSWERED", "LOOKED_AT", "TOLERANCE", "answers", "answers_alike", "no_look_ahead"]

ANSWERED = 16
"""Test rows that the loaded model answers."""
LOOKED_AT = 12
"""Test rows that are made again."""
LATER = 48
"""Candles after a signal that are made up."""
TOLERANCE = 1e-9
"""Of a feature's spread, where that is more than one step of float32, in which rows are kept."""

Bools = NDArray[np.bool_]


def answers(predictor: Predictor, booster: bytes, rows: SignalRows, *, seed: int) -> GateResult:
    """Give the model its stored form, load that, and let it answer, as ``answers_alike`` says.

    Args:
        predictor: the model as it was judged.
        booster: the stored form of its trees.
        rows: that it was judged on.
        seed: of the choice among them.
    """
    body = to_bytes(predictor.model)
    try:
        loaded = load(body, sha256_hex(body), booster)
    except ArtifactCorrupt as error:
        return GateResult("probe_answers", None, 0.0, False, f"the stored model does not load: {error}")
    return answers_alike(predictor, loaded, rows, seed=seed)


def answers_alike(predictor: Predictor, loaded: Predictor, rows: SignalRows, *, seed: int) -> GateResult:
    """Let a loaded model answer some rows one by one, as a worker does.

    Passes where each confidence is that of the judged model bit for bit, finite and inside (0, 1), and both
    say the same of positive and accepted.

    Args:
        predictor: the model as it was judged.
        loaded: the same, from what is stored of it.
        rows: that it was judged on.
        seed: of the choice among them.
    """
    name = "probe_answers"
    if not len(rows):
        return GateResult(name, None, 0.0, False, "no test row to answer; without data the gate fails")
    chosen = _sample(np.arange(len(rows)), ANSWERED, seed)
    features = rows.features[chosen]
    judged = predictor.confidence(features)
    answered = np.concatenate([loaded.confidence(row[None, :]) for row in features])
    wrong = (answered != judged) | ~np.isfinite(answered) | (answered <= 0) | (answered >= 1)
    wrong |= (_calls(predictor, judged) != _calls(loaded, answered)).any(axis=0)
    data = {"rows": len(chosen), "wrong": int(wrong.sum())}
    if not wrong.any():
        detail = f"stored and loaded, it answers {len(chosen)} test rows bit for bit as it was judged"
        return GateResult(name, 0.0, 0.0, True, detail, data)
    first = int(np.flatnonzero(wrong)[0])
    detail = (
        f"stored and loaded, it answers {answered[first].item()!r} where {judged[first].item()!r} was "
        f"judged, to the {_signal(rows, int(chosen[first]))} ({data['wrong']} of {len(chosen)} test rows)"
    )
    return GateResult(name, float(wrong.sum()), 0.0, False, detail, data)


def no_look_ahead(rows: SignalRows, raw: Candles, *, seed: int) -> GateResult:
    """Make some rows again as a live worker would, and hold them against what the model was judged on.

    Twice each: from the ``WINDOW`` candles up to the signal, cleaned by themselves; and with up to ``LATER``
    candles after it, whose prices and volumes are made up. Regime, patterns and every feature must be the
    row's, features to one step of float32 or ``TOLERANCE`` of their spread over ``rows``; entry price and
    ATR to ``TOLERANCE`` of themselves.

    Args:
        rows: test rows of one symbol.
        raw: that symbol's candles, before the noise filter.
        seed: of the choice among the rows, and of the made-up candles.
    """
    name = "probe_no_look_ahead"
    ends = np.searchsorted(raw.close_time, rows.close_time, side="right")
    usable = np.flatnonzero(ends >= WINDOW)
    if not len(usable):
        detail = f"no test row has {WINDOW} candles up to its signal; without data the gate fails"
        return GateResult(name, None, 0.0, False, detail)
    draw = np.random.default_rng(seed)
    with np.errstate(invalid="ignore"):
        step = TOLERANCE * np.nan_to_num(np.nanstd(rows.features.astype(np.float64), axis=0))
    found: list[str] = []
    chosen = _sample(usable, LOOKED_AT, seed).tolist()
    for at in chosen:
        past = raw.slice(int(ends[at]) - WINDOW, int(ends[at]))
        looks = {
            "from the candles up to it": past,
            "with other candles after it": _with_other_future(past, raw, int(ends[at]), draw),
        }
        for how, candles in looks.items():
            apart = _apart(rows, at, _see(candles, rows, at), step)
            if apart is not None:
                found.append(f"{_signal(rows, at)}: {apart} {how}")
    data = {"rows": len(chosen), "looks": 2 * len(chosen), "apart": found}
    if not found:
        detail = f"{len(chosen)} test rows come out the same from candles up to them, whatever comes after"
        return GateResult(name, 0.0, 0.0, True, detail, data)
    detail = f"{len(found)} of {2 * len(chosen)} looks at test rows do not give what was judged: {found[0]}"
    return GateResult(name, float(len(found)), 0.0, False, detail, data)


def _sample(among: NDArray[np.intp], count: int, seed: int) -> NDArray[np.intp]:
    return np.sort(np.random.default_rng(seed).choice(among, min(count, len(among)), replace=False))


def _calls(predictor: Predictor, confidence: NDArray[np.float64]) -> Bools:
    """(2, n): positive, accepted."""
    positive = confidence >= predictor.model.threshold.value
    return np.stack([positive, positive & (predictor.model.return_bins.expected(confidence) > 0)])


def _with_other_future(past: Candles, raw: Candles, end: int, draw: np.random.Generator) -> Candles:
    """``past``, and after it candles on the times of the real ones, with other prices and volumes."""
    later = raw.slice(end, end + LATER)
    price, volume = np.exp(draw.normal(0, (0.05, 1.0), (len(later), 2))).T
    return Candles(
        raw.interval,
        np.concatenate([past.open_time, later.open_time]),
        np.concatenate([past.open, later.open * price]),
        np.concatenate([past.high, later.high * price]),
        np.concatenate([past.low, later.low * price]),
        np.concatenate([past.close, later.close * price]),
        np.concatenate([past.volume, later.volume * volume]),
    )


def _see(candles: Candles, rows: SignalRows, at: int) -> Sighting:
    time = to_datetime(rows.close_time[at])
    request = SignalRequest(
        symbol=rows.symbols[rows.symbol_code[at]],
        interval=candles.interval,
        time=time,
        direction=int(rows.direction[at]),
        patterns=None,
        confidence=None,
        signal_id=None,
        candles=None,
        features=None,
    )
    return Window(candles).see([request], [time])[0]


def _apart(rows: SignalRows, at: int, seen: Sighting, step: NDArray[np.float64]) -> str | None:
    """What of a row is not as seen; None where everything is."""
    if seen.features is None or seen.entry_price is None or seen.atr is None:
        return f"not seen ({seen.missing})"
    for name, kept, made in (
        ("regime", int(rows.regime[at]), seen.regime),
        ("patterns", int(rows.patterns[at]), seen.patterns),
    ):
        if kept != made:
            return f"{name} is {made}, not {kept},"
    expected, found = rows.features[at].astype(np.float64), seen.features.astype(np.float64)
    limit = np.fmax(np.abs(np.spacing(rows.features[at])).astype(np.float64), step)
    apart = (np.isnan(expected) != np.isnan(found)) | (np.abs(expected - found) > limit)
    if apart.any():
        first = int(np.flatnonzero(apart)[0])
        return f"{rows.feature_names[first]} is {found[first]:.9g}, not {expected[first]:.9g},"
    for name, judged, again in (
        ("entry price", float(rows.entry_price[at]), seen.entry_price),
        ("ATR", float(rows.atr[at]), seen.atr),
    ):
        if abs(again / judged - 1) > TOLERANCE:
            return f"{name} is {again!r}, not {judged!r},"
    return None


def _signal(rows: SignalRows, at: int) -> str:
    side = "long" if rows.direction[at] > 0 else "short"
    return f"{side} signal of {np.datetime_as_string(rows.close_time[at], unit='m')}"
