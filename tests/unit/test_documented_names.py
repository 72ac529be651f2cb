"""Files and functions that the documents for developers name exist, so that a rename cannot leave them behind."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "docs/architecture.md",
    "docs/decisions.md",
    "docs/operations.md",
    "docs/effort.md",
    "CONTRIBUTING.md",
    "README.md",
)
PACKAGES = ("agent", "bench", "config", "coordinator", "ingest", "models", "tasks", "tests")
PATH = re.compile(r"`((?:[a-z_]+/)+[a-z_0-9]*(?:\.py)?)(?:`|:)")
REFERENCE = re.compile(r"`(?:[a-z_]+\.)*?([a-z_0-9]+)\.([A-Za-z_]\w*)(?:\(\))?`")


# Files such as `admin.key` and keys of JSON documents such as `inbox.failed`: not names in modules of ours.
NO_NAMES = ("py", "key", "json", "txt", "failed", "waiting", "ok", "new", "old", "dump", "oldest_waiting_seconds")


def has_name(module: str, name: str) -> bool:
    return any(
        name in defined(path) or (path.parent / f"{name}.py").exists() or (path.parent / name).is_dir()
        for path in modules()[module]
    )


def code_paths(text: str) -> list[str]:
    return [path for path in PATH.findall(text) if path.split("/")[0] in PACKAGES]


@cache
def modules() -> dict[str, list[Path]]:
    """The files of the packages, by the module's own name."""
    found: dict[str, list[Path]] = {"celeryconfig": [ROOT / "celeryconfig.py"]}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = path.parent.name if path.name == "__init__.py" else path.stem
            found.setdefault(name, []).append(path)
    return found


@cache
def defined(path: Path) -> frozenset[str]:
    """The names of a module's functions, classes and assigned names."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    return frozenset(names)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_and_directory_named_exists(document):
    paths = code_paths((ROOT / document).read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_function_named_exists(document):
    references = REFERENCE.findall((ROOT / document).read_text())
    missing = [
        f"{module}.{name}"
        for module, name in references
        if module in modules() and name not in NO_NAMES and not has_name(module, name)
    ]
    assert missing == []


def test_the_search_finds_what_documents_name():
    text = (ROOT / "docs/architecture.md").read_text()
    assert len(code_paths(text)) > 5
    assert ("eligibility", "compute_eligibility") in REFERENCE.findall(text)
