"""What a trial may spend: days since the trial before it, each of them once."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta

import pytest

from ml.config import GateConfig
from ml.promotion import next_trial

pytestmark = pytest.mark.drift

GATES = GateConfig()
CUT = datetime(2020, 6, 1, tzinfo=UTC)
"""The champion's."""


def days(*numbers: float) -> list[datetime]:
    return [CUT + timedelta(days=number) for number in numbers]


@pytest.mark.parametrize(
    ("earlier", "cut", "number", "accrued", "alpha"),
    [
        # 0.1 in 90 days, from the champion's own cut (day 0).
        ((0,), 1, 1, 1, 0.1 / 90),
        ((0,), 30, 1, 30, 0.1 / 3),
        ((0,), 90, 1, 90, 0.1),
        ((0,), 400, 1, 400, 0.1),  # no more than all of it at once
        ((0, 7, 14), 21, 3, 7, 0.1 * 7 / 90),
        ((-40, -10, 0, 7), 9, 2, 2, 0.1 * 2 / 90),  # trials before the champion's cut are of no matter
        ((0, 7), 7, 2, 0, 0.0),  # again at the same cut
        ((0, 7, 7, 7), 7, 4, 0, 0.0),
        ((0, 14), 7, 2, 0, 0.0),  # a cut before the last one's: its days are spent
        ((0, 50), -5, 2, 0, 0.0),
    ],
)
def test_a_trial_may_spend_what_accrued_since_the_one_before(
    earlier: tuple[float, ...], cut: float, number: int, accrued: float, alpha: float
) -> None:
    found = next_trial(days(*earlier), champion_cut=CUT, cut=days(cut)[0], gates=GATES)

    assert (found.number, found.accrued_days) == (number, accrued)
    assert found.alpha == pytest.approx(alpha)


def test_a_rollback_to_an_old_champion_gives_no_day_back() -> None:
    """Trials at days 30 and 60, the latter promoted and rolled back: the next one has the days since."""
    found = next_trial(days(0, 30, 60), champion_cut=CUT, cut=days(61)[0], gates=GATES)

    assert found.accrued_days == 1
    assert found.alpha == pytest.approx(0.1 / 90)


def test_trials_spend_no_more_than_their_days_have_accrued() -> None:
    """However they come: from the champion's cut, or that of any trial that spent, at most the days since;
    and in no ``alpha_days`` at all more than what they accrue and what a spell of quiet had saved."""
    draw = random.Random(3)
    for _ in range(5):
        spent = [(0, 0.0)]
        for day in draw.choices(range(1, 400), k=draw.randint(1, 60)):
            known = days(*(cut for cut, _ in spent))
            spent.append((day, next_trial(known, champion_cut=CUT, cut=days(day)[0], gates=GATES).alpha))
        for begin, end in itertools.combinations(range(401), 2):
            within = sum(alpha for cut, alpha in spent if begin < cut <= end)
            accrued = 0.1 * (end - begin) / 90
            if any(cut == begin and (alpha > 0 or cut == 0) for cut, alpha in spent):
                assert within <= accrued + 1e-9
            assert within <= accrued + 0.1 + 1e-9


def test_without_alpha_days_every_trial_may_spend_all() -> None:
    every = GATES.model_copy(update={"alpha_days": 0.0})

    assert next_trial(days(0, 5), champion_cut=CUT, cut=days(5)[0], gates=every).alpha == 0.1
