"""How large a file may be."""

from __future__ import annotations

from dataclasses import dataclass

from ml.errors import CandlesRejected

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a file may be; both are checked before a file is held in memory as a whole."""

    bytes: int = 512 << 20
    """Of the text after decompression."""
    rows: int = 5_000_000
    """Nine and a half years of minutes."""

    def check_bytes(self, size: int) -> None:
        """Raises CandlesRejected."""
        if size > self.bytes:
            raise CandlesRejected("file size", size, f"at most {self.bytes} bytes of text", "split the file")

    def check_rows(self, rows: int) -> None:
        """Raises CandlesRejected."""
        if rows > self.rows:
            raise CandlesRejected("file rows", rows, f"at most {self.rows} rows", "split the file")
