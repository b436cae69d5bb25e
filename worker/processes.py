"""The command line and environment of each kind of process, in one place.

`alphaplus worker|beat|flower` become these by exec; docker-compose.yml, `alphaplus up` and the tests
start those same commands.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ml.errors import ConfigRejected
from runtime.queues import DRIFT, INFERENCE, MAINTENANCE, QUEUES, TRAINING
from runtime.server_record import write_private

__all__ = [
    "SOFT_SHUTDOWN_SECONDS",
    "beat_argv",
    "become",
    "flower_argv",
    "flower_environment",
    "flower_login",
    "worker_argv",
    "worker_environment",
]

SOFT_SHUTDOWN_SECONDS = 20
"""What a task gets to end after its worker was told to stop; then it goes back to its queue."""
MAX_CONCURRENCY = 64
FLOWER_USER = "alphaplus"
# -P keeps the current folder off the import path: it may hold a tasks.py of its own.
CELERY = (sys.executable, "-P", "-m", "celery", "--app", "worker", "--quiet")


@dataclass(frozen=True, slots=True)
class _Pool:
    kind: str
    concurrency: int
    options: tuple[str, ...]


# In the order in which a worker of several queues takes its pool: what one of them cannot do without.
POOLS: dict[str, _Pool] = {
    # Only a process can be stopped at its hard time limit. A child is replaced after 20 trainings, which
    # bounds what its memory grows to. One at a time: XGBoost's threads fill the cores.
    TRAINING: _Pool("prefork", 1, ("--prefetch-multiplier=1", "--max-tasks-per-child=20", "--task-events")),
    DRIFT: _Pool("prefork", 1, ("--prefetch-multiplier=1", "--max-tasks-per-child=200", "--task-events")),
    # Short, and mostly waiting for the database or an exchange.
    MAINTENANCE: _Pool("threads", 4, ("--prefetch-multiplier=1", "--task-events")),
    # Events would halve the answers per second; scale by processes.
    INFERENCE: _Pool("solo", 1, ("--prefetch-multiplier=8",)),
}


def worker_argv(*queues: str, concurrency: int | None = None, name: str | None = None) -> list[str]:
    """The command of a worker that serves one queue or more.

    Args:
        queues: of ``runtime.queues.QUEUES``.
        concurrency: children or threads, 1 to 64; by default what suits the queue.
        name: the node's name before ``@host``, unique on its host; by default the queues'.

    Raises:
        ConfigRejected: no such queue, or a concurrency out of its range.
    """
    for queue in queues:
        if queue not in POOLS:
            raise ConfigRejected("queue", queue, "one of " + ", ".join(QUEUES))
    pool = next(pool for queue, pool in POOLS.items() if queue in queues)
    concurrency = pool.concurrency if concurrency is None else concurrency
    limit = 1 if pool.kind == "solo" else MAX_CONCURRENCY
    if not 1 <= concurrency <= limit:
        hint = "start more workers instead" if limit == 1 else ""
        raise ConfigRejected("concurrency", concurrency, f"1 to {limit} in a {pool.kind} pool", hint)
    return [
        *CELERY,
        "worker",
        f"--queues={','.join(queues)}",
        f"--hostname={name or '-'.join(queues)}@%h",
        f"--pool={pool.kind}",
        f"--concurrency={concurrency}",
        # Neither is needed, and mingling loses the first message after a broken connection.
        "--without-mingle",
        "--without-gossip",
        *pool.options,
    ]


def worker_environment(environment: Mapping[str, str], *queues: str) -> dict[str, str]:
    """A worker's environment: SIGTERM means Celery's soft shutdown, after which tasks are handed back.

    Not where it only answers predictions: a task in the solo pool is frozen by that shutdown, for all its
    seconds, and then fails; Celery's warm shutdown lets it end, which takes milliseconds.
    """
    if queues == (INFERENCE,):
        return dict(environment)
    return {"REMAP_SIGTERM": "SIGQUIT", **environment}


def beat_argv() -> list[str]:
    """The command of beat; its scheduler is in the application's configuration."""
    return [*CELERY, "beat"]


def flower_argv() -> list[str]:
    """The command of Flower; its options are in the environment, where `ps` does not show the password."""
    return [*CELERY, "flower"]


def flower_environment(environment: Mapping[str, str], data_dir: Path) -> dict[str, str]:
    """Flower's environment: FLOWER_* as given, else this machine only, a password, a file for its history.

    Flower would open its API to everybody if FLOWER_UNAUTHENTICATED_API were set: it is taken out.
    """
    given = {name: value for name, value in environment.items() if name != "FLOWER_UNAUTHENTICATED_API"}
    defaults = {
        "FLOWER_ADDRESS": "127.0.0.1",
        "FLOWER_PORT": "5555",
        "FLOWER_PERSISTENT": "true",
        "FLOWER_DB": str(data_dir / "flower"),
        "FLOWER_STATE_SAVE_INTERVAL": "60000",
    }
    return defaults | given | {"FLOWER_BASIC_AUTH": flower_login(environment, data_dir)}


def flower_login(environment: Mapping[str, str], data_dir: Path) -> str:
    """``user:password``: FLOWER_BASIC_AUTH, else one made once and kept in the data folder, mode 0600.

    Raises:
        ConfigRejected: FLOWER_BASIC_AUTH has no user or no password.
    """
    given = environment.get("FLOWER_BASIC_AUTH")
    if given:
        if not all(all(login.partition(":")[::2]) for login in given.split(",")):
            raise ConfigRejected("FLOWER_BASIC_AUTH", "…", "user:password")
        return given
    kept = data_dir / "flower-login"
    if not kept.exists():
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(kept, f"{FLOWER_USER}:{secrets.token_urlsafe(18)}")
    return kept.read_text(encoding="utf-8")


def become(argv: list[str], environment: Mapping[str, str]) -> None:
    """Replace this process by ``argv``; does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(argv[0], argv, dict(environment))
