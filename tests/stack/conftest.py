"""Coordinators to test against: one that all flows of a pytest process share, and private ones to break."""

import pytest
from stacks import Stack
from traffic import Traffic


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """A running coordinator, shared: tests use numbers of their own and leave it as whole as they found it."""
    running = Stack(tmp_path_factory.mktemp("stack") / "home", FLOWER_UNAUTHENTICATED_API="true")
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture(scope="session")
def ending():
    """Coordinators that were told to stop: they take seconds, in which other tests can begin."""
    stacks: list[Stack] = []
    yield stacks
    for stack in stacks:
        stack.stop()


@pytest.fixture(scope="module")
def make_stack(tmp_path_factory, ending):
    """Starts private coordinators, stopped when the module is done."""
    made = []

    def make(*arguments: str, **settings: str) -> Stack:
        made.append(Stack(tmp_path_factory.mktemp("private") / "home", *arguments, **settings))
        return made[-1].start()

    yield make
    for running in made:
        running.end()
    ending.extend(made)


@pytest.fixture
def traffic(stack):
    """Clients that know what must come of what they send."""
    return Traffic(stack)
