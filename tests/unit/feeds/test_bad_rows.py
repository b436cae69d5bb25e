"""One bad row rejects a file, and is named exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from feeds.files import read
from ml.candles import OHLCV, Candles
from ml.errors import CandlesRejected
from tests.unit.feeds.candle_files import NOW, Cells, changed, refusal, text_of

pytestmark = pytest.mark.candles


@pytest.mark.parametrize(
    ("line", "column", "value", "limit"),
    [
        (20, "close", "nan", "a finite number"),
        (20, "close", "NaN", "a finite number"),
        (20, "close", "inf", "a finite number"),
        (20, "high", "-Infinity", "a finite number"),
        (20, "open", "1e999", "a finite number"),
        (20, "open", "", "a finite number"),
        (20, "open", "null", "a finite number"),
        (20, "open", "1_000", "a finite number"),
        (20, "open", "0x1p3", "a finite number"),
        (20, "open", "٤٣٦٧", "a finite number"),
        (20, "low", "-1.5", "a price over 0"),
        (20, "low", "0", "a price over 0"),
        (20, "volume", "-0.1", "0 or more"),
        (20, "high", "1", "at least the row's low"),
        (2, "open_time", "2017-10-01T00:00:01Z", "a whole number of 30m since 1970-01-01T00:00Z"),
        (49, "open_time", "2017-10-01T00:00:00Z", "a time after the row before: sorted, without duplicates"),
        (30, "open_time", "2017-10-01T13:30:00Z", "a time after the row before: sorted, without duplicates"),
        (49, "open_time", "2026-01-01T00:00:00Z", "a candle closed by 2026-01-01T00:00:00.000000Z"),
        (49, "open_time", "2999-01-01T00:00:00Z", "a candle closed by 2026-01-01T00:00:00.000000Z"),
        (30, "open_time", "2017-10-01 14:00:00", "a time with its zone"),
        (30, "open_time", "tomorrow", "ISO 8601 with a zone"),
        (30, "open_time", "12345", "ISO 8601 with a zone"),
    ],
)
def test_one_bad_cell_is_named_by_line_column_value_and_limit(
    csv_file: Callable[[str | bytes], Path], day_cells: Cells, line: int, column: str, value: str, limit: str
) -> None:
    error = refusal(csv_file(text_of(changed(day_cells, line, column, value))))
    assert (error.field, error.value) == (f"line {line}, column {column}", value)
    assert error.limit.startswith(limit)


def test_line_is_counted_as_an_editor_does_past_blank_lines_and_line_ends(
    csv_file: Callable[[str | bytes], Path], day_cells: Cells
) -> None:
    lines = text_of(changed(day_cells, 10, "close", "0")).splitlines()
    lines[5:5] = ["", ""]
    assert refusal(csv_file("\n\r\n" + "\r\n".join(lines))).field == "line 14, column close"


def test_column_is_named_as_the_header_names_it(
    csv_file: Callable[[str | bytes], Path], day_cells: Cells
) -> None:
    cells = changed(day_cells, 3, "close", "-1")
    cells[0] = ["Date", "BTC.open", "BTC.high", "BTC.low", " BTC.close", "BTC.volume"]
    assert refusal(csv_file(text_of(cells))).field == "line 3, column BTC.close"


@pytest.mark.parametrize("early", ["0", "text"])
@pytest.mark.parametrize("late", ["0", "text"])
def test_of_two_bad_rows_the_first_is_named_whatever_their_kinds(
    csv_file: Callable[[str | bytes], Path], day_cells: Cells, early: str, late: str
) -> None:
    cells = changed(changed(day_cells, 30, "open", late), 12, "close", early)
    error = refusal(csv_file(text_of(cells)))
    assert (error.field, error.value) == ("line 12, column close", early)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("2017-10-01T00:00:00Z,1,2", "line 2"),
        ("2017-10-01T00:00:00Z,4,367,4400,4300,4350,1", "line 2"),
        ('2017-10-01T00:00:00Z,"1,2,3,4,5', "line 2"),
        ("2017-10-01T00:00:00Z,1,2,1,1,5,6", "line 2"),
        (f"2017-10-01T00:00:00Z,1,2,1,1,{'5' * 200_000}", "line 2"),
        ("   ", "line 2"),
    ],
)
def test_row_that_is_not_of_the_headers_shape_is_named_by_its_line(
    csv_file: Callable[[str | bytes], Path], row: str, field: str
) -> None:
    assert refusal(csv_file(f"open_time,open,high,low,close,volume\n{row}\n")).field == field


def test_parquet_row_is_named_counted_from_one(tmp_path: Path, day: Candles) -> None:
    frame = day.to_frame()
    frame.loc[16, "close"] = np.nan
    path = tmp_path / "candles.parquet"
    frame.to_parquet(path)
    error = refusal(path)
    assert (error.field, error.limit) == ("row 17, column close", "a finite number")
    frame = day.to_frame()
    frame.loc[16, "open_time"] = pd.NaT
    frame.to_parquet(path)
    assert refusal(path).field == "row 17, column open_time"


@st.composite
def garbage(draw: st.DrawFn) -> str:
    """Text for one cell: anything, or something that is nearly right."""
    nearly = st.sampled_from(
        [
            "nan", "inf", "-inf", "0", "-0.0", "-1", "1e400", "1e-400", "", " ", "\0", '"', '""', "1.5",
            "4400", "1e5",
            "2017-10-01T00:00:00Z", "2017-10-01T05:00:00Z", "2017-10-02T00:00:00Z", "2017-10-02T00:15:00Z",
            "2017-10-01 06:00", "2030-01-01T00:00:00Z", "1506816000", "1506816000000", "+7", ".5", "5.", "1d",
        ]
    )  # fmt: skip
    return draw(nearly | st.text(st.characters(codec="utf-8", exclude_characters=",\n\r"), max_size=12))


@given(line=st.integers(2, 49), column=st.sampled_from(["open_time", *OHLCV]), value=garbage())
@example(line=2, column="open", value='"')
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_corrupting_one_cell_is_refused_there_or_leaves_a_valid_file(
    csv_file: Callable[[str | bytes], Path], day: Candles, day_cells: Cells, line: int, column: str,
    value: str,
) -> None:  # fmt: skip
    path = csv_file(text_of(changed(day_cells, line, column, value)))
    try:
        found = read(path, "30m", now=NOW)
    except CandlesRejected as error:
        # A new time can be fine itself and put the next row out of order; a lone quote takes in what follows.
        lines = {line, line + 1} if column == "open_time" else {line}
        assert any(error.field.startswith(f"line {number}") for number in lines), error
        if '"' not in value and error.field.startswith(f"line {line},"):
            assert error.field == f"line {line}, column {expected_column(column, error)}"
            assert error.value == value or error.field.endswith("high")
        return
    found.validate(now=NOW)
    for name in ("open_time", *OHLCV):
        same = getattr(found, name) == getattr(day, name)
        if name == column:
            same[line - 2] = True
        assert same.all()


def expected_column(corrupted: str, error: CandlesRejected) -> str:
    """A low over the row's high is reported at the high, whose limit it breaks."""
    return "high" if corrupted == "low" and error.limit == "at least the row's low" else corrupted


@given(rows=st.lists(st.lists(garbage(), min_size=6, max_size=6), max_size=4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_candles_or_a_typed_refusal(
    csv_file: Callable[[str | bytes], Path], day_cells: Cells, rows: Cells
) -> None:
    path = csv_file(text_of([day_cells[0], *rows]))
    try:
        read(path, "30m", now=NOW).validate(now=NOW)
    except CandlesRejected as error:
        assert error.limit


@given(content=st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_typed_refusal_in_every_format(tmp_path: Path, content: bytes) -> None:
    for extension in (".csv", ".csv.gz", ".parquet"):
        path = tmp_path / f"any{extension}"
        path.write_bytes(content)
        refusal(path)
