"""These tests provoke hundreds of faults; their log lines, tracebacks included, would take longer than they do."""

import logging

import pytest
import structlog


@pytest.fixture(autouse=True, scope="session")
def _quiet():
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)
