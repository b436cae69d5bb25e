"""What trials come to on real rows: luck is kept within its budget, a better model comes through in weeks.

The rows are those of BTC trending that no tree of the champion's has seen; a trial a day is judged on the
180 days before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t

from ml.candles import to_datetime64
from ml.comparison import Answers, Comparison, compare_slices, occupied_blocks, paired_gains
from ml.config import GateConfig, TrainingConfig
from ml.dataset import label_signals, read_market
from ml.evaluation import Evaluation, block_multiplicities, evaluate
from ml.keys import ModelKey
from ml.noise import clean
from ml.patterns import PATTERN_NAMES
from ml.promotion import Trial, decide, next_trial
from ml.rows import SignalRows
from ml.training import bootstrap_block, fit_booster, fit_key, own_rows
from tests.real_candles import real_candles

Floats = NDArray[np.float64]

pytestmark = pytest.mark.drift

KEY = ModelKey("BTCUSDT", "1h", "trending")
CONFIG = TrainingConfig.from_mapping({"bootstrap_samples": 200, "fit": {"n_estimators": 100, "threads": 1}})
END = datetime(2019, 9, 25, tzinfo=UTC)
SPAN = timedelta(days=180)
BLOCK, SAMPLES, SEED = bootstrap_block(KEY, CONFIG), 200, 7
RUNS = 50
LEVEL = 0.1
GATES = GateConfig(promotion_alpha=LEVEL, alpha_days=90)
EVERY = GATES.model_copy(update={"alpha_days": 0.0})
"""A trial may spend all: what happens to who does not count them."""


@dataclass(frozen=True, slots=True)
class Market:
    """Labelled rows (n,), the odds that a real model gives them, and its threshold."""

    rows: SignalRows
    log_odds: Floats
    threshold: float

    def window(self, cut: datetime) -> NDArray[np.bool_]:
        """(n,) which rows a trial with this cut is judged on."""
        until = to_datetime64(cut)
        return (self.rows.label_end <= until) & (self.rows.close_time >= until - np.timedelta64(SPAN))


@pytest.fixture(scope="module")
def market() -> Market:
    raw = real_candles()
    rows = label_signals(read_market(clean(raw).candles), symbol="BTCUSDT", config=CONFIG.labels, traded=raw)
    fitted = fit_booster(rows, CONFIG, interval="1h")
    challenger = fit_key(KEY, rows, fitted, CONFIG, as_of=END)
    own = own_rows(KEY, rows)
    unseen = own.take(own.labelled & (own.close_time >= np.datetime64(fitted.times.calibrate_start)))
    log_odds = logit(challenger.predictor.confidence(unseen.features))
    return Market(unseen, log_odds, float(np.quantile(expit(log_odds), 0.4)))


@dataclass(frozen=True, slots=True)
class Day:
    """One trial's rows, with the resamples that every challenger of that day is judged in."""

    cut: datetime
    inside: NDArray[np.bool_]
    rows: SignalRows
    weights: Floats
    """(B, m)."""


@pytest.fixture(scope="module")
def days(market: Market) -> list[Day]:
    """90 trials, one a day; the champion's cut is the day before the first."""
    made = []
    for day in range(90):
        cut = END - timedelta(days=89 - day)
        inside = market.window(cut)
        rows = market.rows.take(inside)
        drawn = block_multiplicities(rows.close_time, block=BLOCK, samples=SAMPLES, seed=SEED)
        made.append(Day(cut, inside, rows, np.concatenate(list(drawn))))
    return made


class Copies:
    """Models that know what the real one knows, each with its own errors: none is better than another."""

    def __init__(self, market: Market, *, spread: float, lasting: float, seed: int) -> None:
        self._market, self._spread, self._lasting = market, spread, lasting
        self._draw = np.random.default_rng(seed)
        features = np.nan_to_num(market.rows.features.astype(np.float64))
        spreads = features.std(axis=0)
        self._features = (features - features.mean(axis=0))[:, spreads > 0] / spreads[spreads > 0]

    def make(self) -> Floats:
        """(RUNS, n) confidences. A share of an error's variance, ``lasting``, is a random direction in the
        features, as of trees grown on other rows, and goes on for days as they do; the rest is each row's."""
        n, width = self._features.shape
        direction = self._features @ self._draw.normal(size=(width, RUNS))
        direction /= direction.std(axis=0)
        own = self._draw.normal(size=(RUNS, n))
        errors = np.sqrt(self._lasting) * direction.T + np.sqrt(1 - self._lasting) * own
        return np.asarray(expit(self._market.log_odds + self._spread * errors))


def first_promotions(
    market: Market,
    days: list[Day],
    champions: Floats,
    challengers: Callable[[], Floats],
    gates: GateConfig,
    labels: Floats,
) -> list[int | None]:
    """Of each run the day on which a challenger first passed the gate; a new one is tried every day.

    Args:
        market: whose threshold counts.
        days: the trials.
        champions: (RUNS, n) confidences, one champion a run.
        challengers: gives (RUNS, n) confidences a day.
        gates: how trials spend.
        labels: (RUNS, n) what came of each row.
    """
    found: list[int | None] = [None] * RUNS
    cuts = [days[0].cut - timedelta(days=1)]
    for number, day in enumerate(days):
        trial = next_trial(cuts, champion_cut=cuts[0], cut=day.cut, gates=gates)
        cuts.append(day.cut)
        new, old = challengers()[:, day.inside], champions[:, day.inside]
        label = labels[:, day.inside]
        for run in np.flatnonzero(_may_pass(day, new, old, label, market.threshold, trial.alpha)).tolist():
            if found[run] is not None:
                continue
            there = replace(day, rows=replace(day.rows, label=label[run]))
            if _passes(there, new[run], old[run], market.threshold, trial, gates):
                found[run] = number
    return found


def _may_pass(
    day: Day, new: Floats, old: Floats, label: Floats, threshold: float, alpha: float
) -> NDArray[np.bool_]:
    """(RUNS,) who is worth a whole comparison: F1 is up enough, or the Brier score is better for sure."""
    gain = ((old - label) ** 2 - (new - label) ** 2).T
    resampled = (day.weights @ gain) / day.weights.sum(axis=1, keepdims=True)
    blocks = occupied_blocks(day.rows.close_time, BLOCK)
    tail = t.sf(gain.mean(axis=0) / resampled.std(axis=0), blocks - 1)
    shown = (1 + (resampled <= 0).sum(axis=0)) / (SAMPLES + 1)
    chance = shown if alpha / 2 >= 1 / (SAMPLES + 1) else tail
    return np.asarray((f1(new, label, threshold) >= 1.03 * f1(old, label, threshold)) | (chance <= alpha / 2))


def f1(confidence: Floats, label: Floats, threshold: float) -> Floats:
    """(RUNS,) of confidences and outcomes (RUNS, m)."""
    positive = confidence >= threshold
    return np.asarray(2 * (positive * label).sum(axis=1) / (positive.sum(axis=1) + label.sum(axis=1)))


def _passes(day: Day, new: Floats, old: Floats, threshold: float, trial: Trial, gates: GateConfig) -> bool:
    """The gate itself, on the same resamples."""
    compared = Comparison(
        baseline="champion",
        challenger=judged(day, new, threshold),
        champion=judged(day, old, threshold),
        gains=paired_gains(
            day.rows,
            Answers(new, threshold),
            Answers(old, threshold),
            block=BLOCK,
            samples=SAMPLES,
            seed=SEED,
        ),
    )
    assert compared.challenger is not None
    decision = decide(compared.challenger, compared, 0.0, gates, trial=trial, probes=())
    (gate,) = (gate for gate in decision.gates if gate.name == "better_than_champion")
    return gate.passed


def judged(day: Day, confidence: Floats, threshold: float) -> Evaluation:
    """Its intervals are not needed."""
    return evaluate(
        day.rows,
        confidence=confidence,
        threshold=threshold,
        expected_net_return_atr=np.zeros(len(confidence)),
        known_base_rate=0.57,
        block=BLOCK,
        samples=2,
        seed=SEED,
    )


def shares(market: Market, days: list[Day], copies: Copies, labels: Floats) -> tuple[float, float]:
    """Of runs with a promotion in 90 days: as trials spend, and where each may spend all."""
    champions = copies.make()
    found = [
        first_promotions(market, days, champions, copies.make, gates, labels) for gates in (GATES, EVERY)
    ]
    spent, gambled = (sum(day is not None for day in one) / RUNS for one in found)
    return spent, gambled


@pytest.mark.parametrize("spread", [0.03, 0.06])
def test_copies_of_the_champion_tried_daily_are_promoted_no_oftener_than_the_budget(
    market: Market, days: list[Day], spread: float
) -> None:
    """Nobody is better than anybody here. In 90 days the budget is 0.1; uncounted, luck comes through."""
    copies = Copies(market, spread=spread, lasting=0.0, seed=11)

    spent, gambled = shares(market, days, copies, np.tile(market.rows.label, (RUNS, 1)))

    assert spent <= LEVEL
    assert gambled > 3 * LEVEL


def test_a_better_model_is_promoted_within_weeks(market: Market, days: list[Day]) -> None:
    """Its confidences are moved toward the truth by 0.2 % of the way, under errors like the champion's: a
    Brier score 0.4 % lower, a tenth of what the real model gains over a constant."""
    copies = Copies(market, spread=0.03, lasting=0.5, seed=12)
    champions = copies.make()

    def better() -> Floats:
        made = copies.make()
        return made + 0.002 * (market.rows.label - made)

    found = first_promotions(market, days, champions, better, GATES, np.tile(market.rows.label, (RUNS, 1)))

    assert sum(day is not None and day < 28 for day in found) >= 0.9 * RUNS


def test_a_model_that_lost_one_pattern_is_caught_by_its_slice(market: Market, days: list[Day]) -> None:
    """Better everywhere else, and so better on the whole; on one pattern's rows its odds are turned round."""
    day = days[-1]
    old = expit(market.log_odds)[day.inside]
    new = old + 0.02 * (day.rows.label - old)
    fired = [(int((day.rows.patterns >> np.uint64(bit) & np.uint64(1)).sum()), bit) for bit in range(61)]
    size, bit = min(entry for entry in fired if entry[0] >= GATES.min_slice_rows)
    lost = (day.rows.patterns >> np.uint64(bit) & np.uint64(1)) == 1
    new[lost] = 1 - 1.3 * old[lost]
    assert ((new - day.rows.label) ** 2).mean() < ((old - day.rows.label) ** 2).mean() + 0.01

    slices = compare_slices(
        day.rows, new, old, least_rows=GATES.min_slice_rows, block=BLOCK, samples=1000, seed=SEED
    )

    compared = Comparison(
        baseline="champion", challenger=judged(day, new, market.threshold), champion=None, slices=slices
    )
    assert compared.challenger is not None
    decision = decide(compared.challenger, compared, 0.0, GATES, trial=None, probes=())
    (gate,) = (gate for gate in decision.gates if gate.name == "slices")
    assert not gate.passed
    worst = {one["pattern"] for one in gate.data["slices"] if one["worse"]}
    assert PATTERN_NAMES[bit] in worst
    assert f"{size} rows" in gate.detail
