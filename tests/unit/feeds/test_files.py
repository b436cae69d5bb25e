"""Candle files of every format: what is taken, which files are refused, how large they may be."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feeds.files import read
from feeds.limits import Limits
from ml.candles import OHLCV, Candles
from ml.errors import KeyRejected
from tests.unit.feeds.candle_files import NOW, Cells, assert_same, refusal, sample_path, text_of

pytestmark = pytest.mark.candles


def test_csv_is_read_as_pandas_reads_it(bitcoin: Candles) -> None:
    frame = pd.read_csv(sample_path("BTC"), parse_dates=["Date"])
    assert len(bitcoin) == len(frame) == 35_019
    np.testing.assert_array_equal(bitcoin.open_time, frame["Date"].to_numpy("datetime64[us]"))
    for name in OHLCV:
        np.testing.assert_array_equal(getattr(bitcoin, name), frame[f"BTC.{name}"].to_numpy())


def test_columns_may_come_in_any_order_and_case_among_others(
    csv_file: Callable[[str | bytes], Path], day: Candles, day_cells: Cells
) -> None:
    order = [5, 1, 4, 0, 2, 3]
    header = ["Volume", "OPEN", " close ", "Date", "btc.High", "Low"]
    rows = [[*(row[index] for index in order), "x y"] for row in day_cells[1:]]
    assert_same(read(csv_file(text_of([[*header, "note"], *rows])), "30m", now=NOW), day)


def test_first_known_name_of_several_time_columns_is_taken(
    csv_file: Callable[[str | bytes], Path], day: Candles, day_cells: Cells
) -> None:
    rows = [["nonsense", *row] for row in day_cells[1:]]
    assert_same(read(csv_file(text_of([["date", *day_cells[0]], *rows])), "30m", now=NOW), day)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n", "\r\n"),
        ("\n", "\r"),
        ("\n", "\n\n"),
        ("open_time", "\ufeffopen_time"),
        ("open_time", "\n\nopen_time"),
    ],
)
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(
    csv_file: Callable[[str | bytes], Path], day: Candles, day_cells: Cells, old: str, new: str
) -> None:
    assert_same(read(csv_file(text_of(day_cells).replace(old, new)), "30m", now=NOW), day)


def test_quoted_cells_plus_signs_and_exponents_are_numbers(
    csv_file: Callable[[str | bytes], Path], day: Candles, day_cells: Cells
) -> None:
    rows = [[f'"{row[0]}"', f"+{row[1]}", f" {row[2]}e0", *row[3:]] for row in day_cells[1:]]
    assert_same(read(csv_file(text_of([day_cells[0], *rows])), "30m", now=NOW), day)


@pytest.mark.parametrize("per_second", [1, 1_000, 1_000_000])
def test_epoch_times_of_every_unit_are_read(
    csv_file: Callable[[str | bytes], Path], day: Candles, day_cells: Cells, per_second: int
) -> None:
    seconds = day.open_time.astype("datetime64[s]").astype(np.int64)
    rows = [[str(time * per_second), *row[1:]] for time, row in zip(seconds, day_cells[1:], strict=True)]
    assert_same(read(csv_file(text_of([day_cells[0], *rows])), "30m", now=NOW), day)


def test_times_with_another_zone_are_turned_into_utc(
    csv_file: Callable[[str | bytes], Path], day: Candles, day_cells: Cells
) -> None:
    local = day.open_time + np.timedelta64(2, "h")
    rows = [[f"{time}+02:00", *row[1:]] for time, row in zip(local, day_cells[1:], strict=True)]
    assert_same(read(csv_file(text_of([day_cells[0], *rows])), "30m", now=NOW), day)


def test_gzip_and_parquet_hold_the_same_candles(tmp_path: Path, day: Candles, day_cells: Cells) -> None:
    packed = tmp_path / "candles.CSV.GZ"
    packed.write_bytes(gzip.compress(text_of(day_cells).encode()))
    assert_same(read(packed, "30m", now=NOW), day)
    parquet = tmp_path / "candles.parquet"
    day.to_frame().to_parquet(parquet)
    assert_same(read(parquet, "30m", now=NOW), day)


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_parquet_times_may_be_whole_numbers_and_prices_may_be_float32(
    tmp_path: Path, day: Candles, unit: str
) -> None:
    frame = day.to_frame().astype(dict.fromkeys(OHLCV, "float32"))
    frame["open_time"] = day.open_time.astype(f"datetime64[{unit}]").astype(np.int64)
    path = tmp_path / "candles.parquet"
    frame.rename(columns={"open_time": "Timestamp", "open": "BTC.Open"}).to_parquet(path)
    found = read(path, "30m", now=NOW)
    np.testing.assert_array_equal(found.open_time, day.open_time)
    np.testing.assert_array_equal(found.open, day.open.astype(np.float32).astype(np.float64))


def test_naive_parquet_times_need_to_be_declared_utc(tmp_path: Path, day: Candles) -> None:
    frame = day.to_frame()
    frame["open_time"] = frame["open_time"].dt.tz_localize(None)
    path = tmp_path / "candles.parquet"
    frame.to_parquet(path)
    assert refusal(path).field == "column open_time"
    assert_same(read(path, "30m", now=NOW, assume_utc=True), day)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_file_is_refused(csv_file: Callable[[str | bytes], Path], content: bytes) -> None:
    error = refusal(csv_file(content))
    assert (error.field, error.value) == ("file", "empty")


def test_header_without_rows_is_refused(csv_file: Callable[[str | bytes], Path]) -> None:
    error = refusal(csv_file("open_time,open,high,low,close,volume\n\n"))
    assert (error.field, error.value) == ("file", "no candles")


@pytest.mark.parametrize("missing", ["open_time", *OHLCV])
def test_missing_column_is_named(
    csv_file: Callable[[str | bytes], Path], day_cells: Cells, missing: str
) -> None:
    cells = [["other" if name == missing else name for name in day_cells[0]], *day_cells[1:]]
    assert refusal(csv_file(text_of(cells))).field == f"line 1, column {missing}"


def test_column_that_is_there_twice_is_refused(
    csv_file: Callable[[str | bytes], Path], day_cells: Cells
) -> None:
    cells = [[*row, row[4]] for row in day_cells]
    assert refusal(csv_file(text_of(cells))).field == "line 1, column close"


def test_text_that_is_not_utf8_is_named_by_its_line(
    csv_file: Callable[[str | bytes], Path], day_cells: Cells
) -> None:
    lines = text_of(day_cells).encode().splitlines(keepends=True)
    lines[6] = lines[6].replace(b"Z", b"\xff")
    error = refusal(csv_file(b"".join(lines)))
    assert (error.field, error.value) == ("line 7", "byte 0xff")


@pytest.mark.parametrize("name", ["candles.txt", "candles", "candles.csv.zip", "candles.xlsx", "csv"])
def test_unknown_extension_is_refused(tmp_path: Path, name: str) -> None:
    error = refusal(tmp_path / name)
    assert error.limit == "a name that ends in .csv, .csv.gz, .parquet"


def test_directory_pipe_and_missing_file_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    assert refusal(folder).limit == refusal(pipe).limit == "a regular file, no directory, pipe or device"
    assert refusal(tmp_path / "absent.parquet").limit.endswith("No such file or directory")


def test_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.csv"
    path.write_text("open_time,open,high,low,close,volume\n")
    path.chmod(0)
    if os.geteuid() != 0:
        assert refusal(path).limit.endswith("Permission denied")
        return
    # Root may read everything, so `nobody` looks.
    code = (
        "import os, sys, datetime, pathlib; from feeds import files; os.setuid(65534)\n"
        "try: files.read(pathlib.Path(sys.argv[1]), '1h', now=datetime.datetime.now(datetime.UTC))\n"
        "except files.CandlesRejected as error: print(error.limit)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("Permission denied")


@pytest.mark.parametrize("name", ["cut.csv.gz", "noise.csv.gz", "cut.parquet", "noise.parquet"])
def test_damaged_file_is_refused(tmp_path: Path, day: Candles, day_cells: Cells, name: str) -> None:
    path = tmp_path / name
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(text_of(day_cells).encode()))
    else:
        day.to_frame().to_parquet(path)
    path.write_bytes(path.read_bytes()[:-40] if name.startswith("cut") else b"noise" * 100)
    error = refusal(path)
    assert error.field == "file"
    assert error.limit.startswith("a whole ")


def test_unknown_interval_is_refused_before_the_file_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(KeyRejected):
        read(tmp_path / "absent.csv", "7m", now=NOW)


def test_file_over_the_limit_of_bytes_or_rows_is_refused_in_every_format(
    tmp_path: Path, day: Candles, day_cells: Cells
) -> None:
    plain, packed, parquet = (tmp_path / f"candles{end}" for end in (".csv", ".csv.gz", ".parquet"))
    plain.write_text(text_of(day_cells))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    day.to_frame().to_parquet(parquet)
    size = plain.stat().st_size
    for path in (plain, packed):
        assert refusal(path, limits=Limits(bytes=size - 1)).field == "file size"
        assert_same(read(path, "30m", now=NOW, limits=Limits(bytes=size, rows=49)), day)
    assert refusal(parquet, limits=Limits(bytes=1000)).field == "file size"
    for path in (plain, packed, parquet):
        assert refusal(path, limits=Limits(rows=47)).field == "file rows"


@pytest.mark.parametrize("content", [b"\0", b"\n", b"2017-10-01T00:00:00Z,1,1,1,1,1\n"])
def test_gzip_bomb_is_refused_without_being_held_in_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bomb.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(content * ((1 << 20) // len(content)))
    tracemalloc.start()
    error = refusal(path, limits=Limits(bytes=32 << 20, rows=1_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.field in {"file size", "file rows"}
    assert peak < 8 << 20


def test_many_bad_rows_cost_no_more_than_one(csv_file: Callable[[str | bytes], Path]) -> None:
    path = csv_file("open_time,open,high,low,close,volume\n" + "x,1,1,1,1,1\n" * 200_000)
    assert refusal(path).field == "line 2, column open_time"


def test_large_file_read_at_once_equals_the_same_file_walked_line_by_line(
    tmp_path: Path, bitcoin: Candles
) -> None:
    plain = sample_path("BTC").read_text()
    quoted = tmp_path / "quoted.csv"  # quotes are left to the walk
    head, first, rest = plain.split("\n", 2)
    quoted.write_text("\n".join([head, '"' + first.replace(",", '",', 1), rest]))
    assert_same(read(quoted, "30m", now=NOW, assume_utc=True), bitcoin)
