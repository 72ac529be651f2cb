"""The browser that tests look with, if this machine has one."""

import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)


def need_one():
    """Called by a module as it is loaded: leave all of its tests out where there is none, with one line."""
    if PROGRAM is None:
        pytest.skip("no browser: apt-get install chromium (then these tests run)", allow_module_level=True)
