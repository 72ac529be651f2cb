"""The wheel, built and installed, and run in a directory whose modules have the names of our packages."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import requests
from stacks import wait_until

from config.local.ports import free_port
from config.local.postgres import start_postgres
from config.local.procfile import read_procfile
from config.local.valkey import start_valkey
from ingest.commands.private_stack import FOREIGN_SETTINGS

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
OURS = {"agent", "celeryconfig.py", "config", "coordinator", "ingest", "models", "tasks"}
FOREIGN = "raise RuntimeError('a foreign module was imported: ' + __file__)\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the checkout: builds leave directories behind."""
    source, wheels = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("wheels")
    unneeded = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "screenshots")
    shutil.copytree(ROOT, source, ignore=unneeded)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", wheels, source], check=True)
    (built,) = wheels.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A virtual environment with the wheel; requirements come from the environment of these tests."""
    prefix = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    (packages,) = prefix.glob("lib/python*/site-packages")
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(prefix / "bin" / "python")
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], check=True)
    return prefix


@pytest.fixture(scope="module")
def variables(environment):
    """The environment variables of somebody who uses the installed copy."""
    kept = {name: value for name, value in os.environ.items() if name not in {*FOREIGN_SETTINGS, "PYTHONPATH"}}
    return kept | {"PATH": f"{environment}/bin:{os.environ['PATH']}"}


@pytest.fixture
def elsewhere(tmp_path):
    """A working directory whose modules are called like our packages."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    for name in OURS:
        (directory / name).with_suffix(".py").write_text(FOREIGN)
    return directory


def test_the_wheel_has_our_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.startswith("ecm_coordinator-")} == OURS
    tests = [name for name in names if "test" in Path(name).name]
    assert tests == []
    assert "ingest/commands/demo_composites.txt" in names


def test_the_demo_of_an_installed_copy(environment, variables, elsewhere):
    done = subprocess.run(
        [environment / "bin" / "ecm-coordinator", "demo"],
        cwd=elsewhere,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 numbers are fully factored" in done.stdout


def is_ok(url):
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def test_the_lines_of_the_procfile(environment, variables, elsewhere, tmp_path):
    port, flower_port = free_port(), free_port()
    database, broker = start_postgres(tmp_path / "home", durable=False), start_valkey(tmp_path / "home")
    settings = {"DATABASE_URL": database.url, "REDIS_URL": broker.url, "ECM_HOME": "x", "LOG_FORMAT": "json"}
    settings |= {"PORT": str(port), "FLOWER_PORT": str(flower_port), "FLOWER_UNAUTHENTICATED_API": "true"}
    run = {"cwd": elsewhere, "env": variables | settings}
    programs = {}
    try:
        subprocess.run([environment / "bin" / "ecm-coordinator", "migrate"], check=True, **run)
        for name, line in read_procfile(environment / "share" / "ecm-coordinator" / "Procfile").items():
            with (tmp_path / f"{name}.log").open("wb") as log:
                command = ["sh", "-c", f"exec {line}"]
                programs[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **run)
        try:
            wait_until(lambda: is_ok(f"http://127.0.0.1:{port}/status"), 60)
            wait_until(lambda: is_ok(f"http://127.0.0.1:{flower_port}/healthcheck"), 60)
        finally:
            logs = {name: (tmp_path / f"{name}.log").read_text() for name in programs}
            print(logs)
        assert [name for name, program in programs.items() if program.poll() is not None] == []
    finally:
        for program in programs.values():
            program.send_signal(signal.SIGTERM)
        for program in programs.values():
            try:
                program.wait(30)
            finally:
                program.kill()
        broker.stop()
        database.stop()
    # What Celery, gunicorn and Flower log themselves has the same form, too.
    assert [line for text in logs.values() for line in text.splitlines() if not line.startswith("{")] == []
