"""Bodies as clients send them, and what every refusal of one has."""

import random

from traffic import number

# What a client may call itself; as text it does no harm.
SCRIPT = "<script>alert(1)</script>"
FIELDS = {
    "status",
    "submission_id",
    "attempt_id",
    "composite_id",
    "factor_status",
    "message",
    "current_t_level",
    "target_t_level",
}
PROBLEM_FIELDS = {"type", "title", "status", "detail", "reason", "instance"}


def plain(composite=None, **fields):
    """A result without a factor, unlike any other."""
    return {
        "client_id": "alice",
        "composite": composite or number().value,
        "parameters": {"b1": 50_000, "curves": 100, "sigma": f"1:{random.randrange(10**18)}"},
        **fields,
    }


def claiming(body, *factors, **parameters):
    """`body` with these factors claimed."""
    return body | {
        "results": {"factors_found": [{"factor": str(factor)} for factor in factors]},
        "parameters": body["parameters"] | parameters,
    }


def problem(answer, status, reason):
    """The body of a problem answer, checked for what every problem has."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"]
    body = answer.json()
    assert set(body) >= PROBLEM_FIELDS
    assert (body["status"], body["reason"]) == (status, reason)
    return body
