"""A web process that has been made."""

import gc

import pytest


@pytest.fixture
def unfrozen():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_requests_do_not_wait_for_a_look_through_what_the_process_began_with(unfrozen, monkeypatch, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    from ingest import gunicorn_settings

    before = len(gc.get_objects())
    gunicorn_settings.post_worker_init(None)
    assert gc.get_freeze_count() > before / 2
    assert len(gc.get_objects()) < before / 2
