"""A number that a request names is evaluated before the request takes a connection (E5): a process has few of them."""

from contextlib import suppress
from itertools import count

import pytest
from pipeline import SETTINGS, result, submit

from coordinator.administration import edits
from coordinator.administration.edits import Provenance
from coordinator.base.audit import OPERATOR
from coordinator.base.errors import NotFoundError
from coordinator.composites import registry
from coordinator.leases import claims, reservations
from coordinator.leases.work_request import WorkRequest
from coordinator.reading import batch_lookup, detail, factors, lookup, search

DIGITS = SETTINGS.max_digits
NOWHERE = Provenance(source="a test", found_at=None)
ADD = "add factors"

REQUESTS = {
    "claim": lambda engine, text: claims.claim(engine, WorkRequest("alice", composite=text), SETTINGS),
    "claim p1": lambda engine, text: claims.claim(engine, WorkRequest("alice", "p1", composite=text), SETTINGS),
    "stats": lambda engine, text: detail.composite_stats(engine, text, DIGITS),
    "list": lambda engine, text: search.list_composites(engine, search.CompositeFilters(text=text), max_digits=DIGITS),
    "factors": lambda engine, text: factors.list_factors(
        engine, factors.FactorListFilters(number=text), cursor=None, max_digits=DIGITS
    ),
    "find": lambda engine, text: lookup.find_composites(engine, text, DIGITS),
    "identify": lambda engine, text: lookup.identify_composite(engine, text, DIGITS),
    "reserve": lambda engine, text: reservations.reserve(
        engine, text, "carol", "snfs", 1, details=None, max_digits=DIGITS
    ),
    ADD: lambda engine, text: edits.add_known_factors(engine, OPERATOR, text, [text], NOWHERE, max_digits=DIGITS),
    "batch": lambda engine, text: batch_lookup.read_batch_status(engine, [text], DIGITS),
    "progress": lambda engine, text: batch_lookup.top_progress(
        engine, batch_lookup.ProgressFilters(numbers=[text]), limit=1, max_digits=DIGITS
    ),
}
NUMBERS = count(1000)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("known", [True, False])
def test_no_connection_is_held_while_an_expression_is_evaluated(engine, monkeypatch, name, known):
    exponent = next(NUMBERS)
    written = f"10^{exponent}+7"
    if known:
        submit(engine, result(str(10**exponent + 7)))
    held = []
    for module in (registry, batch_lookup, edits):
        evaluate_name = "evaluate" if module is edits else "evaluate_number"
        evaluate = getattr(module, evaluate_name)

        def watched(*given, evaluate=evaluate):
            held.append(engine.pool.checkedout())
            return evaluate(*given)

        monkeypatch.setattr(module, evaluate_name, watched)
    with suppress(NotFoundError, edits.InvalidClaimError):
        REQUESTS[name](engine, written)
    assert held == [0] * (2 if name == ADD else 1)
