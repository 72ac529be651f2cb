"""`python -m docs [DIRECTORY]` builds the guide, by default where the web process looks for it.

Every warning is an error: a link that leads nowhere, an image that is missing, a document that no menu lists.
A directory that holds a guide already is replaced when the new one is complete, and stays as it is when that fails.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

import click

from docs import reference
from ingest.guide import GUIDE

HERE = Path(__file__).parent
ROOT = HERE.parent

# Files outside of docs/ that are pages or belong to pages, by their names in the guide.
FROM_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE",
}
# The menu: captions, and the pages beneath each, without the ending.
NAVIGATION = {
    "Ways in": ["start-an-effort", "join", "on-call"],
    "Running it": ["operations", "ops/README"],
    "How it works": ["effort", "architecture", "decisions", "glossary"],
    "Reference": ["reference/commands", "reference/settings", "reference/api"],
    "The project": ["contributing", "changelog", "security"],
}
DOCUMENTS = (".md", ".svg", ".png", ".json", ".yml")

_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=GUIDE)
def main(directory: Path) -> None:
    """Build the guide into DIRECTORY."""
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".guide-") as scratch:
        source, site = Path(scratch, "source"), Path(scratch, "site")
        collect(source)
        status = build(source, site)
        if status == 0:
            shutil.rmtree(directory, ignore_errors=True)
            site.rename(directory)
    if status:
        raise click.ClickException("The guide has mistakes (see above) and was not replaced.")
    click.echo(f"The guide is in {directory}: {len(list(directory.rglob('*.html')))} pages.")


def collect(source: Path) -> None:
    """Put everything that the guide is made of into the new directory `source`, under its name in the guide."""
    names = {ROOT / path: PurePosixPath(name) for path, name in FROM_ROOT.items()}
    for path in sorted(HERE.rglob("*")):
        if path.suffix in DOCUMENTS and "reference" not in path.relative_to(HERE).parts:
            names[path] = PurePosixPath(path.relative_to(HERE).as_posix())
    for path, name in names.items():
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            copy.write_text(_translate_links(path, name, names))
        else:
            shutil.copyfile(path, copy)
    with (source / "index.md").open("a") as index:
        for caption, pages in NAVIGATION.items():
            index.write(f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n")
    (source / "reference").mkdir()
    for page, text in reference.pages().items():
        (source / "reference" / page).write_text(text)


def _translate_links(path: Path, name: PurePosixPath, names: dict[Path, PurePosixPath]) -> str:
    """Return the text of the document at `path` with its relative links as they are in the guide."""

    def translate(match: re.Match[str]) -> str:
        target = names.get((path.parent / match[1]).resolve())
        return match[1] if target is None else os.path.relpath(target, name.parent)

    return _LINK.sub(translate, path.read_text())


def build(source: Path, site: Path) -> int:
    """Run Sphinx; returns 0 if it had nothing to complain about.

    It runs in a process of its own: docutils registers node classes for the life of the process, so that a second build
    in the same one would warn of every class.
    """
    options: list[str | Path] = ["--builder", "html", "--fail-on-warning", "--quiet"]
    options += ["--conf-dir", HERE, "--doctree-dir", source.parent / "doctrees"]
    command = [sys.executable, "-m", "sphinx", *options, source, site]
    status = subprocess.run(command, check=False).returncode
    # What Sphinx keeps for its own next run.
    for left_over in (".buildinfo", "objects.inv"):
        (site / left_over).unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    main()
