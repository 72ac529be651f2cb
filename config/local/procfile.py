"""The Procfile: where it is, which programs it names, and the environment that they run in."""

import os
import re
import sys
import sysconfig
from pathlib import Path

from config.local.home import HomeError

# The directory of our packages: the root of a checkout, or site-packages.
_ROOT = Path(__file__).resolve().parents[2]


def find_procfile() -> Path:
    """Return the Procfile beside the packages (a checkout), or where the installation put it. Raises HomeError."""
    places = [
        _ROOT / "Procfile",
        Path(sys.prefix) / "share" / "ecm-coordinator" / "Procfile",
        Path(sysconfig.get_path("data")) / "share" / "ecm-coordinator" / "Procfile",
    ]
    for place in places:
        if place.is_file():
            return place
    raise HomeError(f"no Procfile in {', '.join(map(str, places))}; install ecm-coordinator again")


def read_procfile(path: Path) -> dict[str, str]:
    """Return the programs of a Procfile: name -> shell command. Raises HomeError for any other kind of line."""
    programs = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r"([A-Za-z0-9_-]+):\s*(.+)", line.strip())
        if not found:
            raise HomeError(f"{path}:{number} is not `name: command`: {line}")
        programs[found[1]] = found[2]
    return programs


def child_environment() -> dict[str, str]:
    """Return our environment, changed so that programs find this installation's commands and packages.

    Python adds no directory of its own choice to the search path of modules (PYTHONSAFEPATH): a `config.py` in a
    working directory would otherwise take the place of ours.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    # Not resolved: the python of a virtual environment is a link, and the environment's commands are beside the link.
    commands = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    environment["PATH"] = os.pathsep.join([*dict.fromkeys(commands), environment.get("PATH", os.defpath)])
    if (_ROOT / "setup.cfg").exists():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH", "")]))
    return environment
