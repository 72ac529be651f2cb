"""Garbage collection, which costs a quarter of the time that a process takes to start."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage meanwhile, and afterwards never again look at what exists by then.

    Imports make hundreds of thousands of objects that stay, and every collection goes through them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
