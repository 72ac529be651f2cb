"""Settings that belong together fit together, whatever an operator sets."""

from hypothesis import given
from hypothesis import strategies as st

from config.local.postgres import prepare_postgres
from config.settings import Settings


@given(st.integers(4, 512), st.integers(0, 1000))
def test_some_threads_are_always_left_to_take_results_in(threads, most):
    settings = Settings(web_threads=threads, max_waiters=most)
    assert 0 <= settings.waiters <= most
    assert threads - settings.waiters >= 2
    assert 3 <= settings.web_pool_size <= threads - settings.waiters + 1


def test_the_defaults_keep_what_is_documented():
    settings = Settings()
    assert settings.waiters == settings.max_waiters == 40
    assert settings.connections < 200


def test_the_embedded_database_takes_every_connection_that_the_settings_allow(tmp_path, monkeypatch):
    monkeypatch.setenv("WEB_PROCESSES", "64")
    monkeypatch.setenv("WORKER_CONCURRENCY", "100")
    argv = prepare_postgres(tmp_path, durable=False).argv
    (most,) = (int(word.split("=")[1]) for word in argv if word.startswith("--max_connections="))
    assert most >= 64 * Settings().web_pool_size + 2 * 100
