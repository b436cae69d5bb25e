"""Candle files into ``Candles``: csv, csv.gz and parquet. One bad row rejects the whole file.

The whole of a file is converted and checked at once, in C. Only where that fails are its rows walked
through one by one, to name the first bad one by its line, column and value.
"""

from __future__ import annotations

import gzip
import stat
import zlib
from datetime import datetime
from pathlib import Path
from typing import Final

from feeds.limits import Limits
from ml.candles import Candles
from ml.errors import CandlesRejected
from ml.keys import interval_duration

__all__ = ["EXTENSIONS", "LIMITS", "read"]

EXTENSIONS: Final = (".csv", ".csv.gz", ".parquet")
_CHUNK_BYTES: Final = 1 << 20


LIMITS: Final = Limits()


def read(
    path: Path, interval: str, *, now: datetime, assume_utc: bool = False, limits: Limits = LIMITS
) -> Candles:
    """All candles of a file, checked.

    Args:
        path: ends in one of ``EXTENSIONS``, in any case.
        interval: the length of its candles; every open time must lie on that grid.
        now: no candle may close after it.
        assume_utc: take times without a zone as UTC instead of rejecting them.

    Raises:
        CandlesRejected: the file cannot be read, is too large, or a row breaks the contract of ``Candles``.
            Lines count from 1, as an editor shows them; so do the rows of a parquet file.
        KeyRejected: an unknown interval.
    """
    interval_duration(interval)
    extension = _extension(path)
    try:
        _check_file(path, limits)
        if extension == ".parquet":
            from feeds.parquet import read_parquet

            return read_parquet(path, interval, now=now, assume_utc=assume_utc, limits=limits)
        text = path.read_bytes() if extension == ".csv" else _decompress(path, limits)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CandlesRejected("file", str(path), f"a whole gzip file: {error}") from error
    except OSError as error:
        reason = error.strerror or error
        raise CandlesRejected("file", str(path), f"a file that can be read: {reason}") from error
    from feeds.csv_text import parse_csv

    return parse_csv(text, interval, now=now, assume_utc=assume_utc, limits=limits)


def _extension(path: Path) -> str:
    for extension in EXTENSIONS:
        if path.name.lower().endswith(extension):
            return extension
    raise CandlesRejected("file", str(path), "a name that ends in " + ", ".join(EXTENSIONS))


def _check_file(path: Path, limits: Limits) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever, a device never ends
        raise CandlesRejected("file", str(path), "a regular file, no directory, pipe or device")
    limits.check_bytes(status.st_size)


def _decompress(path: Path, limits: Limits) -> bytes:
    """A small gzip file can hold a huge one: it is measured first, a chunk at a time, and kept only then."""
    size = rows = 0
    with gzip.open(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            size += len(chunk)
            rows += chunk.count(b"\n")
            limits.check_bytes(size)
            limits.check_rows(rows)
        file.seek(0)
        return file.read(size)
