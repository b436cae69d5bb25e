"""``alphaplus servers start | stop | status`` and ``alphaplus migrate``."""

from __future__ import annotations

import json
import signal

import click

from runtime.server_record import ServerRecord
from runtime.settings import PREFIX, Settings, load_settings, servers_configured

__all__ = ["migrate", "servers"]


@click.group()
def servers() -> None:
    """The system's own PostgreSQL and Valkey."""


@servers.command()
def start() -> None:
    """Run them in this terminal until Ctrl-C.

    `alphaplus up` does this too, with the workers. Where both servers are configured by variables,
    nothing is started.
    """
    from worker.local import local_servers

    settings = load_settings()
    if servers_configured():
        click.echo(f"{PREFIX}DATABASE_URL and {PREFIX}REDIS_URL name the servers: nothing to start.")
        return
    with local_servers(
        settings.data_dir, clock=settings.clock, replay_start=settings.replay_start
    ) as running:
        click.echo(_summary(running.record))
        if not running.owned:
            click.echo(
                f"They ran already: process {running.record.owner.pid} started them and will stop them."
            )
            return
        click.echo(f"Data in {running.home.state_dir}. Ctrl-C stops them.")
        # SIGTERM and SIGHUP raise out of this, and Ctrl-C does.
        while True:
            signal.pause()


@servers.command()
def stop() -> None:
    """Stop them, whoever started them: a living owner ends as by Ctrl-C."""
    from worker.local import stop_servers

    click.echo("Stopped." if stop_servers(load_settings().data_dir) else "None ran.")


@servers.command()
@click.option("--json", "as_json", is_flag=True, help="For programs; without the passwords.")
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """What runs, and where. Exit code 3 if nothing does."""
    settings = load_settings()
    record = ServerRecord.read(settings.data_dir)
    running = record is not None and record.alive
    if as_json:
        click.echo(json.dumps(_as_json(settings, record if running else None), indent=2))
    elif servers_configured():
        click.echo(f"Configured by {PREFIX}DATABASE_URL and {PREFIX}REDIS_URL.")
    elif record is not None and running:
        click.echo(_summary(record))
        gone = "" if record.owner.alive else ", which is gone: the next start takes them over"
        click.echo(f"Started by process {record.owner.pid}{gone}. Data in {settings.data_dir}.")
    else:
        click.echo(f"None runs under {settings.data_dir}. `alphaplus up` starts them.")
    if not running and not servers_configured():
        context.exit(3)


@click.command()
@click.option(
    "--down", "revision", metavar="REVISION", help="Take migrations back to this one, with their data."
)
@click.option("--yes", is_flag=True, help="Do not ask before --down.")
def migrate(revision: str | None, yes: bool) -> None:
    """Bring the database to this version's schema."""
    from db.schema import downgrade, upgrade

    url = load_settings().required_database_url
    if revision is None:
        upgrade(url)
        click.echo("The database is at the newest migration.")
        return
    if not yes:
        click.confirm(
            f"Take the database back to {revision}? Tables that came later go, with their data", abort=True
        )
    downgrade(url, revision=revision)
    click.echo(f"The database is at migration {revision}.")


def _as_json(settings: Settings, record: ServerRecord | None) -> dict[str, object]:
    return {
        "running": record is not None,
        "configured": servers_configured(),
        "data_dir": str(settings.data_dir),
        "postgres": _place(record.database_url, record.postgres.pid) if record else None,
        "valkey": _place(record.redis_url, record.valkey.pid) if record else None,
        "owner_pid": record.owner.pid if record and record.owner.alive else None,
        "clock": record.clock if record else None,
        "replay_start": record.replay_start.isoformat() if record and record.replay_start else None,
    }


def _place(url: str, pid: int) -> dict[str, object]:
    return {"address": url.rpartition("@")[2].partition("/")[0], "pid": pid}


def _summary(record: ServerRecord) -> str:
    postgres = _place(record.database_url, record.postgres.pid)
    valkey = _place(record.redis_url, record.valkey.pid)
    return (
        f"PostgreSQL on {postgres['address']} (process {postgres['pid']})\n"
        f"Valkey     on {valkey['address']} (process {valkey['pid']})"
    )
