"""Champions in memory: bounded, shared trees, and nothing forgotten that still answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from db.session import create_engine, transaction
from ml.errors import StoreUnavailable
from ml.inference import Served
from ml.keys import ModelKey
from tasks.model_cache import MAX_ABSENT, ModelCache
from tests.trained import CHAMPIONS

pytestmark = pytest.mark.inference

NOBODYS = ModelKey("BTCUSDT", "1h", "consolidation")


class Store:
    """Transactions that can be made to fail, and are counted."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.away = False
        self.asked = 0

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        with transaction(self._engine) as session:
            yield session


@pytest.fixture
def store(trained_database_url: str) -> Iterator[Store]:
    engine = create_engine(trained_database_url, application_name="tests")
    yield Store(engine)
    engine.dispose()


def cache(store: Store, *, max_bytes: int = 2**30, check_seconds: float = 3600.0) -> ModelCache:
    return ModelCache(store.transaction, max_bytes=max_bytes, check_seconds=check_seconds)


def versions(found: ModelCache) -> list[object]:
    return [one.version if isinstance(one := found.find(key), Served) else one for key in CHAMPIONS]


def test_each_champion_is_loaded_once_and_shares_the_trees_it_can(store: Store) -> None:
    models = cache(store)
    assert versions(models) == versions(models) == [1, 1, 1, 1]
    assert (models.loads, store.asked) == (4, 4)
    boosters = {id(one.predictor.booster) for key in CHAMPIONS if isinstance(one := models.find(key), Served)}
    assert len(boosters) == 1
    trees = next(iter(models._held())).predictor.booster_bytes
    assert models.size_bytes == trees + sum(one.predictor.model_bytes for one in models._held())


def test_over_its_bound_the_least_recently_asked_goes(store: Store) -> None:
    whole = cache(store)
    assert versions(whole) == [1, 1, 1, 1]
    one = whole._held()[0].predictor
    models = cache(store, max_bytes=one.booster_bytes + 3 * one.model_bytes)
    assert versions(models) == [1, 1, 1, 1]
    assert models.size_bytes <= one.booster_bytes + 3 * one.model_bytes
    assert len(models) < 4
    loads = models.loads
    models.find(CHAMPIONS[-1])  # the newest is there
    assert models.loads == loads
    models.find(CHAMPIONS[0])
    assert models.loads == loads + 1

    # The one asked for stays, however small the bound.
    smallest = cache(store, max_bytes=1)
    assert versions(smallest) == [1, 1, 1, 1]
    assert len(smallest) == 1


def test_made_up_keys_push_out_no_model_and_only_so_many_are_kept(store: Store) -> None:
    models = cache(store)
    assert versions(models) == [1, 1, 1, 1]
    store.away = True
    for number in range(MAX_ABSENT + 10):
        models.find(ModelKey(f"MADEUP{number}", "1h", "all"))
    store.away = False
    assert len(models._absent) == MAX_ABSENT
    asked = store.asked
    assert versions(models) == [1, 1, 1, 1]
    assert store.asked == asked


def test_what_was_known_holds_while_the_database_is_away(store: Store) -> None:
    models = cache(store, check_seconds=0.0)
    assert versions(models) == [1, 1, 1, 1]
    assert models.find(NOBODYS) == "no_model"
    store.away = True
    assert versions(models) == [1, 1, 1, 1]
    # So its signals still go to the fallback.
    assert models.find(NOBODYS) == "no_model"
    assert models.find(ModelKey("ETHUSDT", "1h", "all")) == "store_unavailable"


def test_a_key_that_was_announced_is_looked_up_before_its_next_answer(store: Store) -> None:
    models = cache(store)
    assert versions(models) == [1, 1, 1, 1]
    models.forget(CHAMPIONS[0])
    models.forget(NOBODYS)  # unknown here: nothing to forget
    assert versions(models) == [1, 1, 1, 1]
    assert (store.asked, models.loads) == (5, 4)
