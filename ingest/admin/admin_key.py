"""The admin key: 401 without one, 403 with a wrong one."""

import hmac

from flask import request

from ingest.problems import Problem
from ingest.view_context import settings

HEADER = "X-Admin-Key"


def require_key() -> None:
    """Raise a problem unless this request has the admin key."""
    require_administration()
    given = request.headers.get(HEADER)
    if given is None:
        raise Problem(401, "unauthorized", f"Send the admin key in the header {HEADER}.")
    if not is_key(given):
        raise Problem(403, "forbidden", f"The key in {HEADER} is not this server's admin key.")


def require_administration() -> None:
    """Raise a problem if this server has no admin key."""
    if not settings().admin_api_key.get_secret_value():
        detail = "This server has no admin key, so nobody may do this; set ADMIN_API_KEY and restart it."
        raise Problem(403, "forbidden", detail)


def is_key(given: str) -> bool:
    """Whether that is the admin key, in time that does not depend on how much of it is right."""
    expected = settings().admin_api_key.get_secret_value()
    return bool(expected) and hmac.compare_digest(given.encode(), expected.encode())
