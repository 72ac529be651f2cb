"""Every command finds the home that `--home` or ECM_HOME names by a relative path, and leaves its records alone."""

import json
import os
import tempfile
from pathlib import Path
from uuid import uuid4

import click
import pytest
from click.testing import CliRunner

from config.local.home import lock_home, prepare_home
from config.local.postgres import start_postgres
from config.local.sockets import remove_outside_sockets
from config.settings import Settings, default_home, settings
from ingest.cli import main
from models.migrate import upgrade

# A name that no socket path has room for: the sockets are outside of the home, where `up` recorded them.
LONG = "x" * 120


def commands(group=main, *path):
    """Every command with an option --home: its words and itself. New commands are found, too."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        elif any("--home" in parameter.opts for parameter in command.params):
            yield (*path, name), command


# `up` starts servers, and so writes what the others read.
FOUND = {" ".join(words): command for words, command in commands() if words != ("up",)}


def value_for(parameter, file):
    """A value that an argument or option accepts, by its type and name."""
    kind = parameter.type
    if isinstance(kind, click.Path | click.File):
        return str(file)
    if isinstance(kind, click.Choice):
        return kind.choices[0]
    if isinstance(kind, click.types.IntParamType):
        return "12"
    return str(uuid4()) if parameter.name == "work_id" else "2024-01-01"


def words_for(command, file):
    """The arguments and options that the command requires."""
    words = ["--missing"] if command.name == "recalculate" else []  # it needs one of several options
    for parameter in command.params:
        if parameter.required:
            name = [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
            words += [*name, value_for(parameter, file)]
    return words


@pytest.fixture(scope="module", params=["x", LONG], ids=["inside", "outside"])
def home(tmp_path_factory, request):
    """A home whose server runs, as beneath an `up`."""
    home = prepare_home(tmp_path_factory.mktemp("parent") / request.param)
    server = start_postgres(home, durable=False)
    try:
        upgrade(server.url)
        with lock_home(home):
            yield home
    finally:
        server.stop()
        remove_outside_sockets(home)


@pytest.fixture(autouse=True)
def no_urls(monkeypatch):
    for name in ("DATABASE_URL", "REDIS_URL", "ECM_HOME"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture(autouse=True)
def no_new_sockets(monkeypatch):
    """No command creates a directory for sockets. (Other tests do, at the same time.)"""
    make = tempfile.mkdtemp

    def check(suffix=None, prefix=None, parent=None, *, dir=None):
        assert prefix != "ecm-"
        return make(suffix, prefix, dir or parent)

    monkeypatch.setattr(tempfile, "mkdtemp", check)


def test_there_are_commands():
    assert {"backup", "restore", "projects ls", "clients add", "doctor"} <= set(FOUND)


@pytest.mark.parametrize("by", ["option", "environment"])
@pytest.mark.parametrize("name", FOUND)
def test_a_relative_home(home, tmp_path, monkeypatch, name, by):
    monkeypatch.chdir(home.parent)
    file = tmp_path / "file"
    file.write_text("2^101-1\n")
    words = [*name.split(), *words_for(FOUND[name], file)]
    if by == "option":
        words += ["--home", home.name]
    else:
        monkeypatch.setenv("ECM_HOME", home.name)
    records, content = home / "servers.json", (home / "servers.json").read_bytes()
    about = records.stat()
    done = CliRunner().invoke(main, words, input="y\n", prog_name="ecm-coordinator")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code in (0, 1), done.output  # the command itself was understood
    for trouble in ("does not answer", "has no database", "never started"):
        assert trouble not in done.output
    assert records.read_bytes() == content
    assert (records.stat().st_ino, records.stat().st_mtime_ns) == (about.st_ino, about.st_mtime_ns)


@pytest.mark.parametrize("name", sorted(set(FOUND) - {"backup", "restore"}))
def test_a_home_that_is_none(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    words = [*name.split(), *words_for(FOUND[name], "file"), "--home", "nowhere"]
    done = CliRunner().invoke(main, words, input="y\n", prog_name="ecm-coordinator")
    assert done.exit_code == 1
    assert f"{Path(os.path.realpath(tmp_path))}/nowhere has no database" in done.output
    assert not (tmp_path / "nowhere").exists()


def test_a_home_whose_server_does_not_run_stays_as_it_is(tmp_path, monkeypatch):
    home = prepare_home(tmp_path / "x")
    (home / "postgres" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, ["projects", "ls", "--home", "x"]).output
    assert "servers.json does not name postgres" in said
    (home / "servers.json").write_text(json.dumps({"postgres": {"password": "secret"}}))
    before = sorted(path for path in home.rglob("*"))
    assert "does not answer" in CliRunner().invoke(main, ["projects", "ls", "--home", "x"]).output
    assert sorted(path for path in home.rglob("*")) == before


def test_the_settings_name_an_absolute_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECM_HOME", "some/../x")
    assert default_home() == Settings().ecm_home == Path(os.path.realpath(tmp_path)) / "x"
    assert Settings(ecm_home=Path("y")).ecm_home == Path(os.path.realpath(tmp_path)) / "y"
