"""The admin key of requests: 401 without a key, 403 with a wrong one."""

import hmac

from flask import request

from ingest.problems import ProblemError
from ingest.view_context import settings

HEADER = "X-Admin-Key"


def require_key() -> None:
    """Raise a 401 or 403 problem unless this request has the admin key."""
    require_administration()
    given = request.headers.get(HEADER)
    if given is None:
        raise ProblemError(401, "unauthorized", f"Send the admin key in the header {HEADER}.")
    if not is_key(given):
        raise ProblemError(403, "forbidden", f"The key in {HEADER} is not this server's admin key.")


def require_administration() -> None:
    """Raise a 403 problem if this server has no admin key."""
    if not settings().admin_api_key.get_secret_value():
        detail = "This server has no admin key, so nobody may do this; set ADMIN_API_KEY and restart the server."
        raise ProblemError(403, "forbidden", detail)


def is_key(given: str) -> bool:
    """Return whether `given` is the admin key, by a comparison in constant time."""
    expected = settings().admin_api_key.get_secret_value()
    return bool(expected) and hmac.compare_digest(given.encode(), expected.encode())
