"""What counting requests does while the broker takes no notice; what it counts is tested over HTTP."""

import socket
from time import monotonic

import pytest

from config.settings import Settings
from ingest.rate_limits import TIMEOUT, Counters
from tasks import broker_circuit, publishing


@pytest.fixture
def frozen():
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def test_a_request_that_waited_for_the_broker_to_be_counted_does_not_wait_again_to_ring(frozen, monkeypatch):
    monkeypatch.setattr(broker_circuit, "_open_until", 0.0)
    monkeypatch.setattr(publishing.app, "send_task", lambda *_, **__: pytest.fail("the broker was asked again"))
    counters = Counters(Settings(redis_url=frozen))
    began = monotonic()
    assert counters.count("address", "127.0.0.1") is None
    assert monotonic() - began >= TIMEOUT
    assert not publishing.publish_submission(1, "alice", "15")
    began = monotonic()
    assert counters.count("client", "alice") is None
    assert monotonic() - began < TIMEOUT
