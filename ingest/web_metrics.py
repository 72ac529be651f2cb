"""Prometheus metrics of the web processes; multi-process safe when PROMETHEUS_MULTIPROC_DIR is set."""

from prometheus_client import Counter, Histogram

RESULTS = Counter("ecm_results_received_total", "Results received", ["outcome"])
REQUEST_SECONDS = Histogram(
    "ecm_request_seconds",
    "Time to answer a request",
    ["endpoint", "status"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20),
)
