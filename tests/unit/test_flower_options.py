"""Flower's options come from the settings, and what it loads at its start comes from nobody else."""

import os

import pytest

from config.settings import Settings
from tasks.flower import options


def given(home, environment=None, **more):
    return options(Settings(ecm_home=home, **more), environment or {})


def test_it_remembers_in_the_home_and_listens_to_this_machine_only(tmp_path):
    chosen = given(tmp_path, flower_port=5599)
    assert (chosen["FLOWER_ADDRESS"], chosen["FLOWER_PORT"]) == ("127.0.0.1", "5599")
    assert chosen["FLOWER_PERSISTENT"] == "true"
    assert chosen["FLOWER_DB"] == str(tmp_path / "flower" / "tasks")
    assert (tmp_path / "flower").stat().st_mode & 0o777 == 0o700
    assert "FLOWER_BASIC_AUTH" not in chosen
    assert given(tmp_path) | {"FLOWER_PORT": "5599"} == chosen


def test_what_the_environment_says_wins_unless_it_says_nothing(tmp_path):
    chosen = given(
        tmp_path, {"FLOWER_ADDRESS": "0.0.0.0", "FLOWER_BASIC_AUTH": "", "FLOWER_MAX_TASKS": "5", "HOME": "/"}
    )
    assert (chosen["FLOWER_ADDRESS"], chosen["FLOWER_MAX_TASKS"]) == ("0.0.0.0", "5")
    assert {"FLOWER_BASIC_AUTH", "HOME"}.isdisjoint(chosen)
    assert given(tmp_path, flower_basic_auth="ann:secret")["FLOWER_BASIC_AUTH"] == "ann:secret"


@pytest.mark.parametrize("home", ["missing", "a file", "open to others", "a link"])
def test_without_a_directory_of_its_own_it_runs_and_forgets(tmp_path, home):
    place = tmp_path / "home"
    if home == "a file":
        place.write_text("")
    elif home != "missing":
        place.mkdir()
    if home == "open to others":
        (place / "flower").mkdir()
        (place / "flower").chmod(0o777)
    if home == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o777)
        os.symlink(tmp_path / "elsewhere", place / "flower")
    chosen = given(place)
    assert {"FLOWER_PERSISTENT", "FLOWER_DB"}.isdisjoint(chosen)
    assert chosen["FLOWER_PORT"]
