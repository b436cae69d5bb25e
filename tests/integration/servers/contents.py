"""What tests put into both servers, and how they start them as another terminal would."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psycopg2
import redis
from sqlalchemy.engine import make_url

from runtime.server_record import ServerRecord
from tests.processes import RunningProcess, script


def connect(record: ServerRecord) -> psycopg2.extensions.connection:
    url = make_url(record.database_url)
    connection = psycopg2.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database
    )
    connection.autocommit = True
    return connection


def store(record: ServerRecord, value: str) -> None:
    connection = connect(record)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        cursor.execute("INSERT INTO kept VALUES (%s)", (value,))
    connection.close()
    with redis.Redis.from_url(record.redis_url) as client:
        client.rpush("kept", value)


def stored(record: ServerRecord) -> tuple[list[str], list[str]]:
    connection = connect(record)
    with connection.cursor() as cursor:
        cursor.execute("SELECT value FROM kept ORDER BY value")
        rows = [value for (value,) in cursor.fetchall()]
    connection.close()
    with redis.Redis.from_url(record.redis_url, decode_responses=True) as client:
        return rows, client.lrange("kept", 0, -1)


def gone(record: ServerRecord) -> bool:
    return not record.postgres.alive and not record.valkey.alive


def start_in_another_process(
    processes: Callable[..., RunningProcess], data_dir: Path
) -> tuple[RunningProcess, ServerRecord]:
    env = {"PATH": os.environ["PATH"], "HOME": str(data_dir.parent), "ALPHAPLUS_DATA_DIR": str(data_dir)}
    process = processes([script("alphaplus"), "servers", "start"], env)
    process.wait_for_line("Ctrl-C stops them")
    record = ServerRecord.read(data_dir)
    assert record is not None
    return process, record
