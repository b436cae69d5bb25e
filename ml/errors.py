"""Every exception of the project, grouped by what the caller should do.

::

    AlphaPlusError
    ├── RetryLater                 a server or a network failed: the same call may work later
    │   ├── StoreUnavailable         PostgreSQL
    │   ├── BrokerUnavailable        Redis / Valkey
    │   ├── ExchangeUnavailable      an exchange's API
    │   ├── Busy                     the inference workers have more to do than they can
    │   └── AnswerTimeout            no answer came in time: the request may be lost
    ├── InputRejected              the input is wrong: change it (carries field, value, limit)
    │   ├── KeyRejected              symbol, interval or regime
    │   ├── CandlesRejected          a candle file or array (the field may name line and column)
    │   └── ConfigRejected           a setting or a training option
    ├── TrainingRefused            the input is well formed, the data cannot carry a model
    ├── TrainingTimeout            a training took too long: it failed
    ├── LeaseLost                  another worker took the job: write nothing, stop
    └── StopForOperator            a person must look: nothing is retried
        ├── ServersMissing           no server is configured or running
        ├── ArtifactCorrupt          bytes do not match their sha256
        ├── AuditChainBroken         the audit log was changed by hand
        ├── StoreFull                PostgreSQL has no disk or memory left
        └── SchemaOutdated           the database lacks a migration

All arguments are positional and JSON-able, so that Celery's JSON result backend can send an
exception to another process and build it again there.
"""

from __future__ import annotations

__all__ = [
    "AlphaPlusError",
    "AnswerTimeout",
    "ArtifactCorrupt",
    "AuditChainBroken",
    "BrokerUnavailable",
    "Busy",
    "CandlesRejected",
    "ConfigRejected",
    "ExchangeUnavailable",
    "InputRejected",
    "KeyRejected",
    "LeaseLost",
    "RetryLater",
    "SchemaOutdated",
    "ServersMissing",
    "StopForOperator",
    "StoreFull",
    "StoreUnavailable",
    "TrainingRefused",
    "TrainingTimeout",
]

VALUE_SHOWN_CHARACTERS = 80


class AlphaPlusError(Exception):
    """Root of the tree; never raised itself."""


class RetryLater(AlphaPlusError):
    """A transient failure of something outside: the same call may work later."""


class StoreUnavailable(RetryLater):
    """PostgreSQL did not answer."""


class BrokerUnavailable(RetryLater):
    """Redis or Valkey did not answer."""


class ExchangeUnavailable(RetryLater):
    """An exchange's API did not answer, or asked us to slow down."""


class Busy(RetryLater):
    """The inference workers shed this request instead of computing it late; nothing was written."""


class AnswerTimeout(RetryLater):
    """No answer came in time: no worker runs, or the one that had the request was killed."""


class InputRejected(AlphaPlusError):
    """The input is wrong. Nothing was written.

    Args:
        field: what was wrong, as the caller names it (``symbol``, ``line 17, column close``).
        value: what was given; long values are shortened in the message.
        limit: what would be accepted.
        hint: what to do next, where that is not plain from the limit.
    """

    def __init__(self, field: str, value: object, limit: str, hint: str = "") -> None:
        shown = value if isinstance(value, str | int | float | bool) or value is None else repr(value)
        super().__init__(field, shown, limit, hint)
        self.field = field
        self.value = shown
        self.limit = limit
        self.hint = hint

    def __str__(self) -> str:
        value = repr(self.value)
        if len(value) > VALUE_SHOWN_CHARACTERS:
            value = value[:VALUE_SHOWN_CHARACTERS] + "…"
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.field}: {value} is not accepted; expected {self.limit}{hint}"

    def as_json(self) -> dict[str, str]:
        """The error as the value that a caller over the wire gets."""
        value = str(self.value)[:VALUE_SHOWN_CHARACTERS]
        return {"type": type(self).__name__, "field": self.field, "value": value, "limit": self.limit}


class KeyRejected(InputRejected):
    """A symbol, interval or regime that cannot name a model."""


class CandlesRejected(InputRejected):
    """A candle file or array breaks the OHLCV contract."""


class ConfigRejected(InputRejected):
    """A setting or training option is unknown or out of its range."""


class TrainingRefused(AlphaPlusError):
    """The data cannot carry a model. Recorded on the job's row as its outcome; not retried.

    Args:
        reason: a stable code: ``too_few_rows``, ``one_class``, ``gaps``, ``constant_features``,
            ``missing_features``, ``no_candles``.
        detail: a sentence with the value and the limit.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class TrainingTimeout(AlphaPlusError):
    """A training passed its soft time limit. Its job has failed; not retried."""


class LeaseLost(AlphaPlusError):
    """This worker's lease on a job has passed to another: it must write nothing more."""


class StopForOperator(AlphaPlusError):
    """Only a person can mend this; the message says how."""


class ServersMissing(StopForOperator):
    """No database or broker is configured, and none of ours is running."""


class ArtifactCorrupt(StopForOperator):
    """Stored bytes do not match the sha256 they are stored under."""


class AuditChainBroken(StopForOperator):
    """A row of the audit log was changed, removed or inserted by hand."""


class StoreFull(StopForOperator):
    """PostgreSQL has no disk or memory left, or a limit of its own is passed."""


class SchemaOutdated(StopForOperator):
    """The database's schema is not the one that this code was written for."""
