"""The dashboard and the alert rules are whole; that /metrics has what they ask for is for test_watching_http.py."""

import re
from itertools import combinations

import pytest
from ops_files import ALERTS, DASHBOARD, OPS, PANELS, RULES, expressions, metrics_in


def test_the_rules_have_what_prometheus_asks_for():
    assert [group["name"] for group in ALERTS["groups"]] == ["ecm-coordinator"]
    for rule in RULES:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert re.fullmatch("Ecm[A-Za-z]+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("page", "warn")
        assert all(rule["annotations"][part] for part in ("summary", "description"))
        # Templates name labels that the expression leaves.
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            assert label == "instance" or re.search(rf"by \([^)]*\b{label}\b", rule["expr"]), rule["alert"]
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_panels_are_told_apart_and_cover_nobody():
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["description"]
        assert panel["targets"]
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above


def test_whoever_imports_the_dashboard_chooses_the_data_source():
    assert [variable["type"] for variable in DASHBOARD["templating"]["list"]] == ["datasource"]
    asked = [part["datasource"] for panel in PANELS for part in (panel, *panel["targets"])]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in asked)


@pytest.mark.parametrize("expression", expressions())
def test_expressions_are_balanced_and_ask_for_metrics(expression):
    assert metrics_in(expression)
    for left, right in ("()", "[]", "{}"):
        assert expression.count(left) == expression.count(right)
    # A counter alone only grows: what one asks of it is a rate.
    for counter in re.findall(r"ecm_\w+_(?:total|count|bucket|sum)\b(?:\{[^}]*\})?(.?)", expression):
        assert counter == "["


def test_every_metric_that_is_documented_is_asked_for_or_explained():
    table = (OPS / "README.md").read_text()
    documented = set(re.findall(r"`(ecm_\w+)", table))
    asked = {re.sub("_(bucket|count|sum)$", "", name) for text in expressions() for name in metrics_in(text)} - {"up"}
    assert asked <= documented
