"""A web process after its start: the garbage collector skips the objects that were created before."""

import gc

import pytest


@pytest.fixture
def unfrozen():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_the_garbage_collector_skips_the_objects_of_the_start(unfrozen, monkeypatch, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    from ingest import gunicorn_settings

    before = len(gc.get_objects())
    gunicorn_settings.post_worker_init(None)
    assert gc.get_freeze_count() > before / 2
    assert len(gc.get_objects()) < before / 2
