"""Bodies of results as clients send them, and a check of problem answers."""

import random

from traffic import random_number

# A client may have this name; pages must show it as text.
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
    """Return a result without a factor that no other test sends."""
    return {
        "client_id": "alice",
        "composite": composite or random_number().value,
        "parameters": {"b1": 50_000, "curves": 100, "sigma": f"1:{random.randrange(10**18)}"},
        **fields,
    }


def claiming(body, *factors, **parameters):
    """Return `body` with claims of these factors."""
    return body | {
        "results": {"factors_found": [{"factor": str(factor)} for factor in factors]},
        "parameters": body["parameters"] | parameters,
    }


def problem(answer, status, reason):
    """Check that an answer is a problem with this status and reason; returns its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"]
    body = answer.json()
    assert set(body) >= PROBLEM_FIELDS
    assert (body["status"], body["reason"]) == (status, reason)
    return body
