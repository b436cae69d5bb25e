"""The schedule that the system starts with. Data only."""

from __future__ import annotations
