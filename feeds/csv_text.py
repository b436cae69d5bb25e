"""The text of a CSV file into ``Candles``: all at once where it is as it should be, else line by line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from feeds.arrow import to_floats, to_integers, to_times
from feeds.columns import find_columns
from feeds.limits import Limits
from feeds.times import TimeRejected, epoch_times, has_zone, is_epoch, parse_time
from ml.candles import OHLCV, Candles
from ml.errors import CandlesRejected

if TYPE_CHECKING:
    import pyarrow as pa


__all__ = ["parse_csv"]

_BOM: Final = b"\xef\xbb\xbf"
_HEADER = re.compile(rb"(?P<blank>\s*+)(?P<names>[^\r\n]+)(?P<end>\r\n|\r|\n|\Z)")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def parse_csv(text: bytes, interval: str, *, now: datetime, assume_utc: bool, limits: Limits) -> Candles:
    """All candles of a comma-separated text in UTF-8 whose first line holds the columns' names.

    Raises:
        CandlesRejected: names the first bad line (counted from 1, as an editor shows it), its column, the
            value as it is written there, and what would be accepted.
    """
    limits.check_rows(text.count(b"\n"))
    table = _Table.of(text.removeprefix(_BOM))
    candles = _convert(table, interval, assume_utc=assume_utc)
    unreadable = None
    if candles is None:
        candles, unreadable = _walk(table, interval, assume_utc=assume_utc)
    fault = candles.first_fault(now=now)
    if fault is not None:
        line, cells = table.row(fault.row)
        raise table.rejected(line, cells, fault.field, fault.limit)
    if unreadable is not None:
        raise unreadable
    if not len(candles):
        raise CandlesRejected("file", "no candles", "at least one row below the header")
    return candles


@dataclass(frozen=True, slots=True)
class _Table:
    """A CSV text with its header read."""

    text: bytes
    header: list[str]
    columns: dict[str, int]
    """Index into ``header`` of each column that a candle needs."""
    start: int
    """Where in ``text`` the rows begin."""
    lines_before: int
    """Lines above them."""

    @classmethod
    def of(cls, text: bytes) -> _Table:
        match = _HEADER.match(text)
        if match is None:
            raise CandlesRejected("file", "empty", "a line of column names and a row for each candle")
        line = 1 + len(_LINE_END.findall(match["blank"]))
        _check_utf8(text)
        try:
            header = next(csv.reader([match["names"].decode()], strict=True))
        except csv.Error as error:
            raise CandlesRejected(f"line {line}", str(error), "comma-separated column names") from error
        return cls(text, header, find_columns(header, where=f"line {line}"), match.end(), line)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line number, cells) of every row that is not blank. Raises CandlesRejected at what is no row."""
        stream = io.BytesIO(self.text)
        stream.seek(self.start)
        reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8", newline=""), strict=True)
        while True:
            line = self.lines_before + reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise CandlesRejected(f"line {line}", str(error), "comma-separated values") from error
            if cells is None:
                return
            if cells and len(cells) != len(self.header):
                limit = f"{len(self.header)} values, one for each column"
                raise CandlesRejected(f"line {line}", f"{len(cells)} values", limit)
            if cells:
                yield line, cells

    def row(self, index: int) -> tuple[int, list[str]]:
        """Row ``index``, counted from 0."""
        return next(islice(self.rows(), index, None))

    def rejected(self, line: int, cells: list[str], column: str, limit: str) -> CandlesRejected:
        """The error that names a cell, its column as the file's header does."""
        index = self.columns[column]
        return CandlesRejected(f"line {line}, column {self.header[index].strip()}", cells[index], limit)


def _check_utf8(text: bytes) -> None:
    if text.isascii():
        return
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + len(_LINE_END.findall(text[: error.start]))
        raise CandlesRejected(f"line {line}", f"byte 0x{text[error.start]:02x}", "text in UTF-8") from error


def _convert(table: _Table, interval: str, *, assume_utc: bool) -> Candles | None:
    """The whole text at once; None where a row is not spelt as ``_walk`` asks, or only ``_walk`` can tell.

    Quotes are left to ``_walk``: the two readers do not agree on misplaced ones.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    time_type = _time_type(table, assume_utc=assume_utc)
    if time_type is None or table.text.find(b'"', table.start) >= 0:
        return None
    names = [str(index) for index in range(len(table.header))]
    types = {names[table.columns["open_time"]]: time_type}
    types |= {names[table.columns[name]]: pa.float64() for name in OHLCV}
    try:
        read = arrow_csv.read_csv(
            pa.py_buffer(memoryview(table.text)[table.start :]),
            read_options=arrow_csv.ReadOptions(column_names=names),
            convert_options=arrow_csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[], strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    time_column, *value_columns = read.columns
    times = epoch_times(to_integers(time_column)) if time_type == pa.int64() else to_times(time_column)
    if np.isnat(times).any():
        return None
    return Candles(interval, times, *(to_floats(column) for column in value_columns))


def _time_type(table: _Table, *, assume_utc: bool) -> pa.DataType | None:
    """How the first row spells its time; None where there is no first row, or its time lacks a zone."""
    import pyarrow as pa

    try:
        _, cells = next(table.rows())
    except (StopIteration, CandlesRejected):
        return None
    time = cells[table.columns["open_time"]]
    if is_epoch(time):
        return pa.int64()
    if has_zone(time):
        return pa.timestamp("us", "UTC")
    return pa.timestamp("us") if assume_utc else None


def _walk(table: _Table, interval: str, *, assume_utc: bool) -> tuple[Candles, CandlesRejected | None]:
    """Row by row up to the first that cannot be read: the candles above it, and what is wrong with it."""
    times: list[int] = []
    numbers: list[list[float]] = []
    unreadable = None
    try:
        for line, cells in table.rows():
            time, values = _read_row(table, line, cells, assume_utc=assume_utc)
            times.append(time)
            numbers.append(values)
    except CandlesRejected as error:
        unreadable = error
    columns = np.array(numbers, dtype=np.float64).reshape(len(numbers), len(OHLCV)).T
    return Candles(interval, np.array(times, dtype="datetime64[us]"), *columns), unreadable


def _read_row(table: _Table, line: int, cells: list[str], *, assume_utc: bool) -> tuple[int, list[float]]:
    try:
        time = parse_time(cells[table.columns["open_time"]], assume_utc=assume_utc)
    except TimeRejected as error:
        raise table.rejected(line, cells, "open_time", str(error)) from error
    values = []
    for name in OHLCV:
        cell = cells[table.columns[name]]
        if _NUMBER.fullmatch(cell.strip()) is None:
            raise table.rejected(line, cells, name, "a finite number")
        values.append(float(cell))
    return time, values
