"""`ecm-coordinator backup FILE` and `restore FILE`: the database and the residue files, in one file.

A backup is a tar of

    manifest.json    format, version, the schema's revision, when it was made
    database.dump    pg_dump's custom format; pg_restore reads it alone, too
    residues/        the residue files, byte for byte
"""

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from config.local.home import HomeError, lock_home, prepare_home
from config.local.procfile import find_procfile, read_procfile
from config.local.strays import stop_strays
from config.settings import default_home, settings
from ingest.commands.database import describe_fault
from ingest.commands.home import HOME_OPTION

FORMAT = 1


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@HOME_OPTION
def backup(file: Path, home: Path | None) -> None:
    """Write the database and the residue files to FILE. The coordinator may be running.

    \b
    Exit status:
      0  FILE is written
      1  something failed; no FILE was written
    """
    with _errors():
        home = prepare_home(home or default_home())
        with _database(home, while_running=True) as url, tempfile.TemporaryDirectory(dir=_beside(file)) as scratch:
            dump = Path(scratch, "database.dump")
            # The dump comes first: a residue uploaded meanwhile is then a file without a row, not a row without a file.
            _run(_tool("pg_dump", url), "--format=custom", f"--file={dump}", url=url)
            manifest = _manifest(url)
            part = Path(scratch, "backup")
            with part.open("wb") as output:
                with tarfile.open(fileobj=output, mode="w") as tar:
                    Path(scratch, "manifest.json").write_text(json.dumps(manifest, indent=1))
                    tar.add(Path(scratch, "manifest.json"), "manifest.json")
                    tar.add(dump, "database.dump")
                    _add_residues(tar, home / "residues")
                output.flush()
                os.fsync(output.fileno())
            part.chmod(0o600)
            part.replace(file)
        click.echo(f"{file}: {file.stat().st_size:,} bytes, schema {manifest['schema']}")
        if elsewhere := settings().residue_storage_url:
            click.echo(f"the residue files at {elsewhere} are not in the backup: back them up afterwards", err=True)


def _add_residues(tar: tarfile.TarFile, directory: Path) -> None:
    tar.add(directory, "residues", recursive=False)
    for file in sorted(directory.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # its stage 2 has just been done
            tar.add(file, f"residues/{file.name}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace the data in the database and in the home directory.")
@HOME_OPTION
def restore(file: Path, force: bool, home: Path | None) -> None:
    """Restore the database and the residue files from FILE: all of it, or nothing.

    \b
    Exit status:
      0  everything is restored
      1  something failed; nothing was changed
    """
    with _errors():
        home = prepare_home(home or default_home())
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            manifest = _unpack(file, Path(scratch))
            with _database(home, while_running=False) as url:
                if not force and (held := _holds(url, home)):
                    raise HomeError(f"there is data already ({held}); --force replaces it by the backup's")
                _replace_database(url, Path(scratch))
            _replace_residues(home, Path(scratch))
        click.echo(
            f"restored {file}, made {manifest['made']} by version {manifest['version']}; `up` migrates it if need be"
        )


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """End the command with one sentence and exit status 1 on an expected error."""
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except HomeError as error:
        raise click.ClickException(str(error)) from error
    except OperationalError as error:
        raise click.ClickException(describe_fault(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.strerror}: {error.filename}") from error


def _beside(file: Path) -> Path:
    """Return the directory of `file`: a temporary file beside it can replace it in one step."""
    if not file.absolute().parent.is_dir():
        raise HomeError(f"{file.absolute().parent} is not a directory")
    return file.absolute().parent


@contextlib.contextmanager
def _database(home: Path, *, while_running: bool) -> Iterator[str]:
    """Yield the URL of the database: DATABASE_URL, or that of the embedded one, started here unless `up` runs it."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    from config.local import postgres

    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock_home(home))
        except HomeError:
            if not while_running:
                raise HomeError(f"`up` is running on {home}, and would go on writing; stop it first") from None
            yield postgres.postgres_url(home)
            return
        stop_strays(home, list(read_procfile(find_procfile())))
        server = postgres.start_postgres(home)
        held.callback(server.stop)
        yield server.url


def _rows(url: str, *statements: str) -> list[Any]:
    from sqlalchemy import text

    from models.engine import make_engine

    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            return [connection.execute(text(statement)).scalar() for statement in statements]
    finally:
        engine.dispose()


def _manifest(url: str) -> dict[str, Any]:
    """Return the manifest of a backup: what a person or a later version has to know before reading all of it."""
    (migrated,) = _rows(url, "SELECT to_regclass('public.alembic_version') IS NOT NULL")
    schema = _rows(url, "SELECT version_num FROM public.alembic_version")[0] if migrated else None
    return {
        "format": FORMAT,
        "version": metadata.version("ecm-coordinator") if _is_installed() else "a checkout",
        "schema": schema,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _is_installed() -> bool:
    try:
        metadata.version("ecm-coordinator")
    except metadata.PackageNotFoundError:
        return False
    return True


def _tool(name: str, url: str) -> Path:
    """Return the client program that fits the server at `url`."""
    from config.local.binaries import client_tool

    (number,) = _rows(url, "SHOW server_version_num")
    return client_tool(name, int(number) // 10_000)


def _run(program: Path, *arguments: str, url: str | None = None) -> None:
    """Run a client program; it gets the URL in the environment, so that no list of processes shows the password.

    Raises HomeError with the last lines of the program.
    """
    environment = {**os.environ, "PGOPTIONS": "--client-min-messages=warning"}
    if url is not None:
        environment.update(_libpq_environment(url))
    done = subprocess.run(
        [str(program), *arguments], env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        raise HomeError(f"{program.name} failed, and nothing was changed: {done.stderr.strip()[-2000:]}")


def _libpq_environment(url: str) -> dict[str, str]:
    """Return a SQLAlchemy URL as libpq's environment variables."""
    from sqlalchemy import make_url

    parts = make_url(url)
    query = {name: value for name, value in parts.query.items() if isinstance(value, str)}
    values = {
        "PGHOST": parts.host or query.pop("host", None),
        "PGPORT": parts.port or query.pop("port", None),
        "PGUSER": parts.username,
        "PGPASSWORD": parts.password,
        "PGDATABASE": parts.database,
        "PGSSLMODE": query.pop("sslmode", None),
        "PGSSLROOTCERT": query.pop("sslrootcert", None),
    }
    return {name: str(value) for name, value in values.items() if value}


def _extract(tar: tarfile.TarFile, scratch: Path) -> None:
    """Write the archive's files and directories beneath `scratch`; raises TarError for anything else in it.

    Does what `extractall(filter="data")` does; Debian 12's Python 3.11.2 lacks it.
    """
    for member in tar:
        path = scratch / member.name
        if ".." in path.parts or not path.is_relative_to(scratch) or not (member.isfile() or member.isdir()):
            raise tarfile.ExtractError(f"{member.name!r} is neither a file nor a directory of a backup")
        (path if member.isdir() else path.parent).mkdir(mode=0o700, parents=True, exist_ok=True)
        if (content := tar.extractfile(member)) is not None:
            with content, path.open("wb") as target:
                shutil.copyfileobj(content, target)


def _unpack(file: Path, scratch: Path) -> dict[str, Any]:
    """Unpack a backup into `scratch`; returns its manifest. Raises HomeError for anything that is not one of ours."""
    try:
        with tarfile.open(file, mode="r:") as tar:
            _extract(tar, scratch)
        manifest: dict[str, Any] = json.loads((scratch / "manifest.json").read_text())
        if manifest["format"] != FORMAT or not (scratch / "database.dump").is_file():
            raise HomeError(f"{file} has format {manifest['format']}; this version reads format {FORMAT}")
    except (tarfile.TarError, ValueError, KeyError, FileNotFoundError) as error:
        raise HomeError(f"{file} is not a backup made by `ecm-coordinator backup` ({error})") from error
    return manifest


def _holds(url: str, home: Path) -> str:
    """Return in words what a restore would replace; empty if there is nothing."""
    names = ("composites", "submissions", "ecm_attempts", "projects")
    existing = _rows(url, *(f"SELECT to_regclass('public.{name}') IS NOT NULL" for name in names))
    for name, exists in zip(names, existing, strict=True):
        if exists and _rows(url, f"SELECT EXISTS (SELECT FROM public.{name})")[0]:
            return f"rows in {name}"
    return "residue files" if any((home / "residues").iterdir()) else ""


def _replace_database(url: str, scratch: Path) -> None:
    """Replace everything in the schema `public` by the dump, in one transaction.

    The dump becomes a script first: a dump that breaks off half-way, read directly into psql, would look complete.
    """
    script = scratch / "database.sql"
    _run(_tool("pg_restore", url), "--no-owner", "--no-privileges", f"--file={script}", str(scratch / "database.dump"))
    begin = scratch / "begin.sql"
    begin.write_text("DROP SCHEMA IF EXISTS public CASCADE;\nCREATE SCHEMA public;\n")
    _run(
        _tool("psql", url),
        *("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction"),
        *(f"--file={begin}", f"--file={script}"),
        url=url,
    )


def _replace_residues(home: Path, scratch: Path) -> None:
    """Put the backup's residue files in the place of those in `home`."""
    new, current, old = scratch / "residues", home / "residues", scratch / "residues.old"
    new.mkdir(exist_ok=True)
    new.chmod(0o700)
    current.rename(old)
    new.rename(current)
    shutil.rmtree(old)
