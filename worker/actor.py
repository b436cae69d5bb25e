"""Who acts at the command line, and why, for the audit log."""

from __future__ import annotations

import getpass
import os

from ml.errors import InputRejected
from ml.keys import check_note

__all__ = ["check_reason", "cli_actor"]


def cli_actor() -> str:
    """``cli:ada``; ``cli:uid 1000`` where the system knows no name for the user."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # Python before 3.13 raises KeyError
        return f"cli:uid {os.getuid()}"


def check_reason(reason: str) -> str:
    """Return it if it says something. Raises InputRejected."""
    if not reason.strip():
        raise InputRejected("reason", reason, "a few words: the audit log keeps them")
    return check_note("reason", reason)
