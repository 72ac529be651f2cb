"""Coordinators for tests: one that all tests of a pytest process share, and private ones that tests may break."""

from pathlib import Path

import pytest
from stacks import Stack
from traffic import Traffic

HERE = Path(__file__).parent
SHARED = pytest.StashKey[Stack]()


@pytest.fixture(scope="session")
def stack(request, tmp_path_factory):
    """A running coordinator that tests share: each test uses its own numbers and breaks nothing."""
    running = Stack(tmp_path_factory.mktemp("stack") / "home", FLOWER_UNAUTHENTICATED_API="true")
    request.session.stash[SHARED] = running
    try:
        yield running.start()
    finally:
        running.stop()


def pytest_runtest_teardown(item, nextitem):
    """Stop the shared coordinator after the last test here: idle, it takes a tenth of a core from all that follow."""
    shared = item.session.stash.get(SHARED, None)
    if shared is not None and (nextitem is None or HERE not in nextitem.path.parents):
        shared.begin_stop()


@pytest.fixture(scope="session")
def stopping():
    """Coordinators that are stopping. That takes seconds, in which other tests can begin."""
    stacks: list[Stack] = []
    yield stacks
    for stack in stacks:
        stack.stop()


@pytest.fixture(scope="module")
def make_stack(tmp_path_factory, stopping):
    """Starts private coordinators; they stop after the module's last test."""
    made = []

    def make(*arguments: str, **settings: str) -> Stack:
        made.append(Stack(tmp_path_factory.mktemp("private") / "home", *arguments, **settings))
        return made[-1].start()

    yield make
    for running in made:
        running.begin_stop()
    stopping.extend(made)


@pytest.fixture
def traffic(stack):
    """Clients that know the expected outcome of every result that they send."""
    return Traffic(stack)
