"""/metrics answers without its servers, and reports which of them answer."""

import pytest

from config.settings import Settings
from ingest.app import create_app
from models.engine import make_engine
from tasks import publishing


@pytest.fixture
def read_samples(monkeypatch):
    """Returns the samples of /metrics with a database engine and no broker, by name and labels."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr("ingest.app.configure_logging", lambda *_: None)
    monkeypatch.setattr(publishing, "use_short_timeouts", lambda: None)

    def answer(engine):
        monkeypatch.setattr("ingest.app.process_engine", lambda *_: engine)
        client = create_app(Settings(redis_url="redis://127.0.0.1:1/0")).test_client()
        response = client.get("/metrics")
        assert response.status_code == 200
        lines = [line for line in response.text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    return answer


def test_without_servers_it_reports_them_as_down_and_leaves_their_metrics_out(read_samples):
    samples = read_samples(make_engine("postgresql://nobody@127.0.0.1:1/none"))
    assert (samples["ecm_database_up"], samples["ecm_broker_up"]) == (0, 0)
    assert {"ecm_dead_letters", "ecm_leases_overdue"}.isdisjoint(samples)
    assert not any(name.startswith("ecm_queue") for name in samples)
    assert 'ecm_results_settled_total{state="applied"}' in samples


def test_with_the_database_alone_it_has_the_metrics_of_the_database(read_samples, engine):
    samples = read_samples(engine)
    assert (samples["ecm_database_up"], samples["ecm_broker_up"]) == (1, 0)
    assert samples["ecm_dead_letters"] == samples["ecm_submissions_waiting"] == samples["ecm_leases_overdue"] == 0


def test_without_its_directory_it_still_reports_the_servers(read_samples, engine, monkeypatch, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "gone"))
    samples = read_samples(engine)
    assert samples["ecm_database_up"] == 1
    assert 'ecm_results_settled_total{state="applied"}' not in samples
