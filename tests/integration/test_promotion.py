"""A challenger's fate on a real database: in shadow, held by a frozen key, counted as a trial."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from db import audit, evaluations, jobs, keys, references, registry
from db.drift_models import DriftNull, ReferenceFeature
from db.models import AuditEntry, EvaluationRow, ModelRow
from db.session import transaction
from ml.artifact import Predictor, attach
from ml.dataset import ROW_FEATURE_NAMES, label_signals
from ml.drift import CONFIDENCE
from ml.errors import ArtifactCorrupt
from tasks.base import Resources
from tasks.candidates import HELD_AGAINST
from tests.trained import CHAMPIONS, CUT, TRAINING, resources_of, train
from worker.tables import outcome_text

pytestmark = pytest.mark.drift

KEY = CHAMPIONS[1]
"""BTC trending, with a champion as of ``CUT``."""
LENIENT = TRAINING["gates"]
SHADOW: dict[str, Any] = {"shadow": {"signals": 50, "days": 7}}
STATES = sa.select(ModelRow.version, ModelRow.state).where(*ModelRow.of_key(KEY)).order_by(ModelRow.version)


@pytest.fixture
def resources(trained_database_url: str) -> Resources:
    return resources_of(trained_database_url, CUT + timedelta(days=20))


def again(resources: Resources, days: float, seed: int = 7, **options: Any) -> dict[str, Any]:
    """Retrain the key so long after its champion's cut; with another seed it is another model."""
    cut = CUT + timedelta(days=days)
    return train(resources, KEY, cut, fit=TRAINING["fit"] | {"seed": seed}, **options)


def states(resources: Resources) -> list[tuple[int, str]]:
    with resources.transaction() as session:
        return [(version, state) for version, state in session.execute(STATES)]


def gate(outcome: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (gate for gate in outcome["decision"]["gates"] if gate["name"] == name)
    return dict(found)


def test_with_a_shadow_phase_a_challenger_that_passes_answers_in_shadow_first(resources: Resources) -> None:
    outcome = again(resources, 7, **SHADOW)

    assert (outcome["result"], outcome["model_state"]) == ("shadow", "shadow")
    assert states(resources) == [(1, "champion"), (2, "shadow")]
    with resources.transaction() as session:
        row = registry.get(session, KEY, 2)
        assert row is not None
        assert (row.shadow_at, row.promoted_at) == (resources.clock.now(), None)
        first = registry.get(session, KEY, 1)
        assert first is not None
        assert (first.details[HELD_AGAINST], row.details[HELD_AGAINST]) == (None, first.id)
        assert references.load(session, row.id) is not None
        entry = audit.recent(session, 1)[0]
        assert (entry.action, entry.subject) == ("shadow", str(KEY))
        assert entry.why == "every gate passed; 50 matured outcomes or 7 days in shadow are asked for"
        (job,) = jobs.recent(session, 1)
        assert outcome_text(job, row).startswith("version 2 in shadow, AUC 0.")
        assert audit.names_artifact(session, subject=str(KEY), model_id=row.id, sha256=row.artifact_sha256)


def test_while_a_candidate_is_in_shadow_a_newer_one_is_held(
    resources: Resources, trained_database_url: str
) -> None:
    """A schedule would otherwise put the next one in its place before it is decided on, for ever."""
    again(resources, 7, **SHADOW)

    outcome = again(resources, 8, **SHADOW)

    assert outcome["result"] == "rejected"
    (reason,) = outcome["decision"]["reasons"]
    assert reason == "version 2 is in shadow until 2019-09-30 00:00 UTC at the latest: one at a time"
    assert states(resources) == [(1, "champion"), (2, "shadow"), (3, "rejected")]
    with resources.transaction() as session:
        assert audit.recent(session, 1)[0].why == reason
    day_after = resources_of(trained_database_url, CUT + timedelta(days=28, microseconds=-1))
    assert again(day_after, 9, **SHADOW)["result"] == "rejected"
    undecided = resources_of(trained_database_url, CUT + timedelta(days=28))
    assert again(undecided, 10, **SHADOW)["result"] == "shadow"


def test_one_that_asks_for_signals_only_is_not_waited_for_without_end(
    resources: Resources, trained_database_url: str
) -> None:
    again(resources, 7, shadow={"signals": 1000})
    later = resources_of(trained_database_url, CUT + timedelta(days=20 + 28))
    assert again(later, 8, shadow={"signals": 1000})["result"] == "rejected"
    later = resources_of(trained_database_url, CUT + timedelta(days=20 + 28 + 1))
    assert again(later, 9, shadow={"signals": 1000})["result"] == "shadow"


def test_without_a_shadow_phase_a_newer_candidate_takes_the_place_of_the_one_in_shadow(
    resources: Resources, trained_database_url: str
) -> None:
    again(resources, 7, **SHADOW)
    undecided = resources_of(trained_database_url, CUT + timedelta(days=28))
    again(undecided, 8, **SHADOW)
    assert states(resources) == [(1, "champion"), (2, "rejected"), (3, "shadow")]

    outcome = again(resources, 9)  # no shadow phase any more

    assert outcome["result"] == "promoted"
    assert states(resources) == [(1, "archived"), (2, "rejected"), (3, "rejected"), (4, "champion")]
    with resources.transaction() as session:
        entries = [(entry.action, entry.why) for entry in audit.recent(session, 5)]
    assert entries == [
        ("promote", "every gate passed"),
        ("reject", "version 4 passed its gates and took its place"),
        ("shadow", "every gate passed; 50 matured outcomes or 7 days in shadow are asked for"),
        ("reject", "version 3 passed its gates and took its place"),
        ("shadow", "every gate passed; 50 matured outcomes or 7 days in shadow are asked for"),
    ]


def test_a_rejected_challenger_leaves_the_one_in_shadow_where_it_is(resources: Resources) -> None:
    again(resources, 7, **SHADOW)

    outcome = again(resources, 8, **SHADOW, gates=LENIENT | {"min_f1": 1})

    assert outcome["result"] == "rejected"
    assert states(resources) == [(1, "champion"), (2, "shadow"), (3, "rejected")]


def test_a_frozen_key_keeps_its_champion_and_says_by_whom(resources: Resources) -> None:
    with resources.transaction() as session:
        keys.freeze(session, KEY, now=CUT, actor="cli:ann", why="twice rolled back")

    outcome = again(resources, 7)

    assert outcome["result"] == "rejected"
    assert all(gate["passed"] for gate in outcome["decision"]["gates"])
    (reason,) = outcome["decision"]["reasons"]
    assert reason.startswith(f"{KEY} is frozen since 2019-09-03 00:00 UTC by cli:ann (twice rolled back)")
    assert states(resources) == [(1, "champion"), (2, "rejected")]
    with resources.transaction() as session:
        row = registry.get(session, KEY, 2)
        assert row is not None
        assert (row.decision["promote"], row.decision["reasons"]) == (False, [reason])
        assert "version 2 rejected: BTCUSDT 1h trending is frozen" in outcome_text(
            jobs.recent(session, 1)[0], row
        )
        judged = evaluations.recent(session, KEY, 5)
        assert [one.promote for one in judged if one.model_id == row.id] == [False]
        assert audit.recent(session, 1)[0].why == reason
        keys.thaw(session, KEY, now=CUT, actor="cli:ann", why="looked into")

    assert again(resources, 8)["result"] == "promoted"


def test_trials_are_counted_and_their_numbers_kept(resources: Resources, trained_engine: Engine) -> None:
    """0.1 in 90 days: three trials, 6 and 3 days apart and the last one at the same cut."""
    spending = LENIENT | {"promotion_alpha": 0.1, "alpha_days": 90}

    trials = [again(resources, days, seed, gates=spending) for days, seed in ((6, 7), (9, 7), (9, 8))]

    gates = [gate(outcome, "better_than_champion") for outcome in trials]
    assert [one["limit"] for one in gates] == pytest.approx([0.1 * 6 / 90, 0.1 * 3 / 90, 0.0])
    assert [one["data"]["trial"]["number"] for one in gates] == [1, 2, 3]
    assert trials[2]["result"] == "rejected"
    with transaction(trained_engine) as session:
        kept = session.scalars(
            sa.select(EvaluationRow)
            .where(*EvaluationRow.of_key(KEY), EvaluationRow.kind == "challenger")
            .order_by(EvaluationRow.model_id)
        ).all()
        models = session.scalars(sa.select(ModelRow).where(*ModelRow.of_key(KEY)).order_by(ModelRow.id)).all()
        for row, model, outcome in zip(kept[1:], models[1:], trials, strict=True):
            assert row.decision == model.decision == outcome["decision"]
    data = gates[0]["data"]
    assert set(data["p_values"]) == set(data["gains"]) == {"f1", "auc", "brier"}
    assert data["gains"]["brier"]["low"] <= data["gains"]["brier"]["value"] <= data["gains"]["brier"]["high"]
    assert data["gains"]["brier"]["value"] == pytest.approx(data["brier"][1] - data["brier"][0])


def test_a_rollback_gives_back_no_day_that_was_spent(resources: Resources) -> None:
    spending = LENIENT | {"promotion_alpha": 1, "alpha_days": 10}
    promoted = again(resources, 10, gates=spending)
    assert promoted["result"] == "promoted"
    with resources.transaction() as session:
        registry.rollback(session, KEY, now=CUT, actor="cli:ann", why="test", details={})

    outcome = again(resources, 12, gates=spending)

    assert gate(outcome, "better_than_champion")["limit"] == pytest.approx(0.2)


def test_slices_and_probes_are_judged_for_a_first_model_too(resources: Resources) -> None:
    first = CHAMPIONS[0]
    with resources.transaction() as session:
        champion = registry.champion(session, first)
        assert champion is not None
        gates = {gate["name"]: gate for gate in champion.decision["gates"]}

    assert gates["better_than_champion"]["value"] is None
    assert gates["slices"]["data"]["baseline"] == "patterns"
    assert len(gates["slices"]["data"]["slices"]) > 5
    assert gates["probe_answers"]["data"] == {"rows": 16, "wrong": 0}
    assert gates["probe_no_look_ahead"]["data"] == {"rows": 12, "looks": 24, "apart": []}


def test_a_probe_that_fails_rejects_with_the_row_and_the_feature(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows made by code that looks one row ahead, under gates that let everything else pass."""

    def leaking(*args: Any, **options: Any) -> Any:
        rows = label_signals(*args, **options)
        rows.features[:-1, 0] = rows.features[1:, 0]
        return rows

    monkeypatch.setattr("tasks.pipeline.label_signals", leaking)

    outcome = again(resources, 7)

    assert outcome["result"] == "rejected"
    (reason,) = outcome["decision"]["reasons"]
    assert "signal of 2019-" in reason
    assert f": {ROW_FEATURE_NAMES[0]} is " in reason


@pytest.mark.parametrize("kind", ["booster", "model"])
@pytest.mark.parametrize("gates", [LENIENT, LENIENT | {"min_f1": 1}], ids=["passes", "fails its gates"])
def test_bytes_that_the_database_does_not_keep_as_they_were_register_nothing(
    resources: Resources, kind: str, gates: dict[str, Any]
) -> None:
    """One bit of what is written comes out another: the gates, which know the bytes in memory, pass."""
    damage = f"""
        CREATE FUNCTION damage() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            NEW.body := set_bit(NEW.body, 4000, 1 - get_bit(NEW.body, 4000));
            RETURN NEW;
        END $$;
        CREATE TRIGGER damage BEFORE INSERT ON ml_model_artifacts FOR EACH ROW
            WHEN (NEW.kind = '{kind}') EXECUTE FUNCTION damage();
    """
    with resources.transaction() as session:
        session.execute(sa.text(damage))
        before = audit.recent(session, 1)[0].id

    with pytest.raises(ArtifactCorrupt, match="restore ml_model_artifacts from a backup, or train again"):
        again(resources, 7, gates=gates)

    assert states(resources) == [(1, "champion")]
    with resources.transaction() as session:
        assert audit.recent(session, 1)[0].id == before


def test_a_stored_model_that_answers_otherwise_than_was_judged_registers_nothing(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sound bytes, read by code that makes something else of them: by the last bit of a confidence."""

    def otherwise(*args: Any, **options: Any) -> Predictor:
        found = attach(*args, **options)
        exact = found.confidence
        monkeypatch.setattr(found, "confidence", lambda features: np.nextafter(exact(features), 1))
        return found

    with monkeypatch.context() as patch:
        patch.setattr("tasks.promotion.attach", otherwise)
        with pytest.raises(ArtifactCorrupt, match="is not what was judged: stored and loaded, it answers 0"):
            again(resources, 7)

    assert states(resources) == [(1, "champion")]
    assert again(resources, 7)["result"] == "promoted"


def test_training_the_same_model_again_gives_it_the_drift_calibration_that_it_lacks(
    resources: Resources,
) -> None:
    """A model of the version before: its checks say "train again", and that must help."""
    with resources.transaction() as session:
        row = registry.champion(session, KEY)
        assert row is not None
        made = references.load_calibration(session, row.id)
        session.execute(sa.delete(DriftNull).where(DriftNull.model_id == row.id))
        nameless = sa.delete(ReferenceFeature).where(ReferenceFeature.model_id == row.id)
        session.execute(nameless.where(ReferenceFeature.feature == CONFIDENCE))
    assert made is not None

    for _ in range(2):
        outcome = train(resources, KEY)

        assert (outcome["result"], outcome["model_id"]) == ("unchanged", row.id)
        with resources.transaction() as session:
            found = references.load_calibration(session, row.id)
            reference = references.load(session, row.id)
        assert found is not None
        assert found.to_json() == made.to_json()
        assert reference is not None and reference.confidence is not None
    assert states(resources) == [(1, "champion")]


def test_a_change_that_is_undone_leaves_nothing_of_the_candidate(
    resources: Resources, trained_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last statement fails: one transaction, so no model, no evaluation, no audit row."""

    def fails(*_args: Any, **_options: Any) -> None:
        raise OSError("the server went away")

    def count() -> list[int | None]:
        tables = (ModelRow, EvaluationRow, AuditEntry)
        with transaction(trained_engine) as session:
            return [session.scalar(sa.select(sa.func.count()).select_from(table)) for table in tables]

    before = count()
    with monkeypatch.context() as patch:
        patch.setattr(registry, "promote", fails)
        with pytest.raises(OSError, match="went away"):
            again(resources, 7)

    assert count() == before
    assert again(resources, 7)["result"] == "promoted"
