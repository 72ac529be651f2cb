"""The demo's numbers are what their comments say."""

import re
from types import SimpleNamespace

import click
import gmpy2
import pytest

from ingest.commands import demo
from ingest.commands.demo import as_table, read_composites

FORMS = (
    (r"2\^(\d+)-1", lambda n: 2**n - 1),
    (r"2\^(\d+)\+1", lambda n: 2**n + 1),
    (r"F\((\d+)\)", gmpy2.fib),
)


def value(source):
    for form, of in FORMS:
        if match := re.fullmatch(form, source):
            return of(int(match[1]))
    raise ValueError(source)


def test_there_are_a_dozen_numbers():
    sources = [source for _, source in read_composites()]
    assert len(sources) == len(set(sources)) == 12


@pytest.mark.parametrize(("number", "source"), read_composites(), ids=[source for _, source in read_composites()])
def test_a_composite_cofactor_without_small_factors(number, source):
    assert 60 <= len(number) <= 105, "smaller ones are the server's own job, larger ones take too long"
    assert value(source) % int(number) == 0
    assert not gmpy2.is_prime(int(number))
    assert gmpy2.gcd(int(number), gmpy2.primorial(10**6)) == 1


def test_the_table_says_what_became_of_each():
    finished = {
        "status": "fully_factored",
        "factors_found": ["11", "13"],
        "current_t_level": 12.5,
        "target_t_level": 19,
    }
    waiting = finished | {"status": "composite"}
    work = {"ecm_work": {"total_curves": 3}}
    table = as_table([("143", "F(1)"), ("9" * 60, "F(2)")], [finished | work, waiting | work])
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells == [
        ("F(1)", "3", "3", "12.50", "19.0", "p2 * p2"),
        ("F(2)", "60", "3", "12.50", "19.0", "not finished"),
    ]


def test_an_agent_that_ends_ends_the_demo_with_its_last_line(tmp_path, monkeypatch):
    waiting = SimpleNamespace(json=lambda: {"status": "composite"})
    monkeypatch.setattr(demo.requests, "get", lambda *_, **__: waiting)
    log = tmp_path / "ada.log"
    log.write_text("starting\nError: GMP-ECM is not installed\n")
    agents = {log: SimpleNamespace(poll=lambda: 1)}
    with pytest.raises(click.ClickException, match="GMP-ECM is not installed"):
        demo.watch("http://nowhere", [("143", "F(1)")], agents)
