"""The alert rules and the dashboard of docs/ops, and the metrics that their expressions name."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

OPS = Path(__file__).parents[2] / "docs" / "ops"
ALERTS: dict[str, Any] = yaml.safe_load((OPS / "alerts.yml").read_text())
RULES: list[dict[str, Any]] = ALERTS["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((OPS / "grafana.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


def expressions() -> list[str]:
    """Return every expression of the rules and the dashboard."""
    return [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]


def metrics_in(expression: str) -> set[str]:
    """Return the metrics that an expression names; `up` is Prometheus's own."""
    return set(re.findall(r"\b(?:ecm_\w+|up(?=\{))", expression))


def labels_in(expression: str) -> set[tuple[str, str]]:
    """Return (metric, label) for each label that an expression selects by."""
    chosen = re.findall(r"\b(ecm_\w+)\{([^}]*)\}", expression)
    return {(metric, label) for metric, labels in chosen for label in re.findall(r"(\w+)\s*(?:=|!)", labels)}
