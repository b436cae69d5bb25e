"""Asks the inference workers for answers, from threads or from asyncio; needs redis-py and `ml.errors`."""

from __future__ import annotations

from client.asynchronous import AsyncPredictionClient
from client.blocking import PredictionClient

__all__ = ["AsyncPredictionClient", "PredictionClient"]
