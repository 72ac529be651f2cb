"""The browser of this machine, if it has one."""

import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)


def skip_without_browser():
    """Skip all tests of the module that calls this while it is imported, if there is no browser."""
    if PROGRAM is None:
        pytest.skip("no browser: apt-get install chromium (then these tests run)", allow_module_level=True)
