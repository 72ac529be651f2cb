"""setup.cfg says what is really there: an installed copy has every package, and what those import."""

import ast
import re
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("agent", "config", "coordinator", "ingest", "models", "tasks")
# Imported where it is there, and said to be missing where it is not; and what pydantic requires in one exact version.
ELSEWHERE = {"cypari", "pillow", "pydantic-core"}


def lines(section: str, option: str) -> list[str]:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return [line for line in config[section][option].split("\n") if line and not line.startswith("#")]


def normal(name: str) -> str:
    """A distribution's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def sources() -> list[Path]:
    return [ROOT / "celeryconfig.py", *(path for package in OURS for path in (ROOT / package).rglob("*.py"))]


def test_every_package_is_listed():
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in sources()} - {""}
    assert sorted(lines("options", "packages")) == sorted(there)


def test_what_the_code_imports_is_required():
    imported = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {*OURS, "celeryconfig"}
    providers = packages_distributions()
    required = {normal(line) for line in lines("options", "install_requires")} | ELSEWHERE
    assert [name for name in sorted(foreign) if not {normal(each) for each in providers[name]} & required] == []


def test_every_requirement_is_pinned():
    pinned = {normal(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = [
        line
        for extra in ("embedded", "agent", "analysis", "plot", "docs", "test")
        for line in lines("options.extras_require", extra)
    ]
    required = {normal(line) for line in [*lines("options", "install_requires"), *extras]}
    assert required - pinned == set()
