"""The table of signals: selecting and joining keep every column together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from ml.rows import SignalRows

pytestmark = pytest.mark.training

MakeRows = Callable[..., SignalRows]


def test_take_selects_the_same_rows_of_every_column_in_the_given_order(make_rows: MakeRows) -> None:
    rows = make_rows(20)
    chosen = rows.take(np.array([7, 3, 3]))
    assert len(chosen) == 3
    for field in fields(SignalRows):
        column, taken = getattr(rows, field.name), getattr(chosen, field.name)
        if isinstance(column, np.ndarray):
            np.testing.assert_array_equal(taken, column[[7, 3, 3]], err_msg=field.name)
        else:
            assert taken == column


def test_labelled_rows_are_those_whose_outcome_is_known(make_rows: MakeRows) -> None:
    rows = make_rows(4)
    rows = replace(rows, label=np.array([0.0, np.nan, 1.0, np.nan]))
    assert rows.labelled.tolist() == [True, False, True, False]
    assert rows.take(rows.labelled).label.tolist() == [0.0, 1.0]


def test_concatenated_tables_are_sorted_and_every_row_keeps_its_symbol(make_rows: MakeRows) -> None:
    btc, eth = make_rows(30, seed=1), make_rows(20, seed=2, symbol="ETHUSDT")
    both = SignalRows.concatenate([eth, btc])
    assert both.symbols == ("ETHUSDT", "BTCUSDT")
    order = list(
        zip(both.close_time.tolist(), both.symbol_code.tolist(), both.direction.tolist(), strict=True)
    )
    assert order == sorted(order)
    for code, single in enumerate((eth, btc)):
        own = both.take(both.symbol_code == code)
        in_order = single.take(np.lexsort((single.direction, single.close_time)))
        np.testing.assert_array_equal(own.features, in_order.features)
        np.testing.assert_array_equal(own.label_end, in_order.label_end)


def test_concatenating_tables_of_several_symbols_renumbers_their_codes(make_rows: MakeRows) -> None:
    pair = SignalRows.concatenate([make_rows(5, seed=1), make_rows(5, seed=2, symbol="ETHUSDT")])
    whole = SignalRows.concatenate([make_rows(5, seed=3, symbol="ETHUSDT"), pair])
    assert whole.symbols == ("ETHUSDT", "BTCUSDT")
    assert np.bincount(whole.symbol_code).tolist() == [10, 5]


def test_concatenating_one_table_gives_its_rows_and_none_is_refused(make_rows: MakeRows) -> None:
    rows = make_rows(10)
    np.testing.assert_array_equal(SignalRows.concatenate([rows]).features, rows.features)
    with pytest.raises(ValueError, match="at least one"):
        SignalRows.concatenate([])


def test_tables_of_different_features_do_not_mix(make_rows: MakeRows) -> None:
    rows = make_rows(3)
    other = replace(rows, feature_names=("another", *rows.feature_names[1:]))
    with pytest.raises(ValueError, match="feature_names"):
        SignalRows.concatenate([rows, other])
