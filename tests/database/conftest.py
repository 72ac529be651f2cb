"""Silences the log: these tests provoke hundreds of errors, and logging them would take longer than the tests."""

import logging

import pytest
import structlog


@pytest.fixture(autouse=True, scope="session")
def _quiet():
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)
