"""`ecm-coordinator up`: the whole coordinator on one machine, supervised until a signal stops it."""

import http.client
import json
import math
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import click

from config.local.home import HomeError, admin_key, lock_home, prepare_home
from config.local.ports import is_free
from config.local.procfile import child_environment, find_procfile, read_procfile
from config.local.sockets import remove_outside_sockets
from config.local.strays import stop_strays
from config.local.supervisord import Supervisor
from config.logging import configure_logging
from config.settings import default_home, settings
from ingest.commands.home import HOME_OPTION
from ingest.commands.migrate_command import print_progress
from ingest.plurals import counted

# Seconds. Workers and beat send heartbeats every few seconds. A program without one for this long, while the broker
# answers, is frozen; a worker that only stopped consuming notices that sooner and exits by itself.
FROZEN_AFTER = 30.0
# Seconds in which a restarted program may send its first heartbeat before it is restarted again.
GRACE = 60.0
WATCH_EVERY = 5.0
# Seconds that an external database may take to answer at the start; an embedded one may recover for any time.
DATABASE_TIMEOUT = 30.0

PORT_RANGE = click.IntRange(1, 65535)


@click.command()
@HOME_OPTION
@click.option("--host", envvar="HOST", default="127.0.0.1", show_default=True, help="Address of the web process.")
@click.option(
    "--port",
    envvar="PORT",
    default=8000,
    show_default=True,
    type=PORT_RANGE,
    help="Port of the web process.",
)
@click.option(
    "--flower-port",
    envvar="FLOWER_PORT",
    default=5555,
    show_default=True,
    type=PORT_RANGE,
    help="Port of Flower.",
)
@click.option("--no-flower", is_flag=True, help="Do not run Flower.")
@click.option(
    "--workers",
    envvar="WORKER_CONCURRENCY",
    default=2,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Worker processes.",
)
@click.option("--procfile", type=click.Path(path_type=Path, exists=True, dir_okay=False), hidden=True)
def up(
    *, home: Path | None, host: str, port: int, flower_port: int, no_flower: bool, workers: int, procfile: Path | None
) -> None:
    """Run the whole coordinator on this machine: web, workers, beat, Flower and, unless DATABASE_URL and REDIS_URL
    name others, a PostgreSQL and a Valkey of its own."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        home = prepare_home(home or default_home())
        with lock_home(home):
            programs = read_procfile(procfile or find_procfile())
            if killed := stop_strays(home, list(programs)):
                left = counted(killed, "process", "processes")
                click.echo(f"stopped {left} that an earlier run left behind", err=True)
            if no_flower:
                programs.pop("flower", None)
            _check_port("--port", host, port)
            if not no_flower:
                _check_port("--flower-port", os.environ.get("FLOWER_ADDRESS", "127.0.0.1"), flower_port)
            _run(home, programs, host=host, port=port, flower_port=flower_port, workers=workers)
    except HomeError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        sys.exit(0)  # told to stop before anything ran


def _interrupt(_signum: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _check_port(option: str, host: str, port: int) -> None:
    """Raise HomeError if another program listens on the port."""
    if not is_free(host, port):
        raise HomeError(f"cannot listen on port {port} of {host}: it is in use; choose another with {option}")


def _run(home: Path, programs: dict[str, str], *, host: str, port: int, flower_port: int, workers: int) -> None:
    """Start everything, print `ready`, and keep it running until a signal comes; then stop it in order."""
    environment = child_environment()
    servers = _prepare_servers(home, environment)
    key_place = "$ADMIN_API_KEY" if environment.get("ADMIN_API_KEY") else str(home / "admin.key")
    environment.setdefault("ADMIN_API_KEY", "")
    environment["ADMIN_API_KEY"] = environment["ADMIN_API_KEY"] or admin_key(home)
    environment.update(
        ECM_HOME=str(home), HOST=host, PORT=str(port), FLOWER_PORT=str(flower_port), WORKER_CONCURRENCY=str(workers)
    )
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(_empty(home / "run" / "metrics"))
    supervisor = Supervisor(home, programs, servers, environment)
    try:
        _bring_up(supervisor)
        _keep(supervisor, host, port, key_place)
    except KeyboardInterrupt:
        pass
    finally:
        # A second Ctrl-C would leave programs running.
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        supervisor.stop()
        remove_outside_sockets(home)
    click.echo("stopped", err=True)


def _empty(directory: Path) -> Path:
    """Replace `directory` by an empty one."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    return directory


def _prepare_servers(home: Path, environment: dict[str, str]) -> tuple[str, ...]:
    """Prepare the embedded servers that no URL replaces, and put their URLs into `environment`; returns their names."""
    servers = []
    if not environment.get("DATABASE_URL"):
        from config.local import postgres

        postgres.prepare_postgres(home)  # reports faults of the cluster here instead of in a log
        environment["DATABASE_URL"] = postgres.postgres_url(home)
        servers.append("postgres")
    if not environment.get("REDIS_URL"):
        from config.local import valkey

        valkey.change_occupied_port(home)
        valkey.prepare_valkey(home)
        environment["REDIS_URL"] = valkey.valkey_url(home)
        servers.append("valkey")
    return tuple(servers)


def _bring_up(supervisor: Supervisor) -> None:
    """Start the servers, bring the database up to date, and start the programs."""
    from alembic.util import CommandError
    from sqlalchemy.exc import ArgumentError, OperationalError

    from coordinator.housekeeping.schema_upgrade import bring_up_to_date
    from models.migrate import MigrationError
    from models.sessions import SharedSessionsError

    # Log lines of transactions must not mix with what `up` itself prints.
    configure_logging(settings().log_format, "WARNING")
    supervisor.start()
    began = reported = time.monotonic()
    while True:
        try:
            # Nothing starts before all that a migration owes is done, also one that was killed before.
            bring_up_to_date(supervisor.environment["DATABASE_URL"], print_progress())
            break
        except ArgumentError as error:
            raise HomeError("DATABASE_URL should be like postgresql://user:password@host/database") from error
        except MigrationError as error:
            raise HomeError(str(error)) from error
        except CommandError as error:
            raise HomeError(
                f"the database's schema is unknown to this version of ecm-coordinator ({error}); "
                "it was made by a newer one: install that, or restore an older backup"
            ) from error
        except OperationalError as error:
            if isinstance(error.orig, SharedSessionsError):
                raise HomeError(str(error.orig)) from error
            now = time.monotonic()
            if "postgres" not in supervisor.servers and now - began > DATABASE_TIMEOUT:
                raise HomeError(f"the database of DATABASE_URL does not answer: {error.orig}") from error
            if now - reported > 10:
                reported = now
                click.echo(f"waiting for the database: {str(error.orig).strip()}", err=True)
            supervisor.start_failed()
            time.sleep(0.1)
    supervisor.start_programs()


def _keep(supervisor: Supervisor, host: str, port: int, key_place: str) -> NoReturn:
    """Watch over everything for ever: supervisord itself, programs it gave up on, and frozen programs."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    status_url = f"http://{_bracketed(reachable)}:{port}/status"
    ready, began, next_watch = False, time.monotonic(), 0.0
    reported, pause = began, 1.0
    restarted: dict[str, float] = {}
    watch = HeartbeatWatch(socket.gethostname())
    while True:
        now = time.monotonic()
        if supervisor.has_ended():
            click.echo("supervisord ended; starting it again", err=True)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)
            stop_strays(supervisor.home, list(supervisor.programs))
            _bring_up(supervisor)
        if now >= next_watch:
            next_watch = now + WATCH_EVERY
            supervisor.start_failed()
            if ready:
                _, status = fetch_status(status_url)
                for name in watch.frozen_programs(status, now):
                    if name in supervisor.programs and now - restarted.get(name, -GRACE) >= GRACE:
                        restarted[name] = now
                        click.echo(
                            f"{name} has sent no heartbeat for over {FROZEN_AFTER:.0f} s; restarting it", err=True
                        )
                        supervisor.restart(name)
        if not ready:
            code, status = fetch_status(status_url)
            if code == 200:
                ready = True
                click.echo(f"admin key: {key_place}", err=True)
                click.echo(f"ready: http://{_bracketed(host)}:{port}")
            elif now - reported > 30:
                reported = now
                click.echo(f"not ready yet: {supervisor.states()}; logs are in {supervisor.home / 'logs'}", err=True)
        time.sleep(1.0 if ready else 0.1)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def fetch_status(url: str) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the JSON of GET /status; (0, {}) without an answer within 5 seconds."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            try:
                return error.code, json.load(error)
            except (OSError, ValueError):
                return error.code, {}
    except (OSError, ValueError, http.client.HTTPException):
        return 0, {}


class HeartbeatWatch:
    """Finds the frozen programs (worker, analysis, beat) of a `host` from the heartbeats in /status.

    Heartbeats pass through the broker. While it does not answer, and for FROZEN_AFTER seconds after it answers again,
    no program counts as frozen, because only heartbeats from before are known.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        # None: the broker did not answer last time. At first it is assumed to have always answered.
        self._answers_since: float | None = -math.inf

    def frozen_programs(self, status: dict[str, Any], now: float) -> list[str]:
        """Return the programs whose heartbeat is older than FROZEN_AFTER although the broker answered all that time."""
        if not status.get("broker", {}).get("ok"):
            self._answers_since = None
            return []
        if self._answers_since is None:
            self._answers_since = now
        if now - self._answers_since < FROZEN_AFTER:
            return []
        beats = [beat for part in ("workers", "beat") for beat in status.get(part, {}).get("heartbeats", [])]
        silent = {beat["name"]: beat["role"] for beat in beats if beat["age"] > FROZEN_AFTER}
        # Workers are named program@host, beat by its host alone; each host watches its own.
        here = {name: role for name, role in silent.items() if name.rpartition("@")[2] == self.host}
        return sorted(name.rpartition("@")[0] or role for name, role in here.items())
