"""The admin key: 401 without one, 403 with a wrong one."""

import hmac

from flask import current_app, request

from config.settings import Settings
from ingest.problems import Problem

HEADER = "X-Admin-Key"


def require_key() -> None:
    """Raise a problem unless this request has the admin key; compared in constant time."""
    settings: Settings = current_app.config["SETTINGS"]
    expected = settings.admin_api_key.get_secret_value()
    if not expected:
        detail = "This server has no admin key, so nobody may do this; set ADMIN_API_KEY and restart it."
        raise Problem(403, "forbidden", detail)
    given = request.headers.get(HEADER)
    if given is None:
        raise Problem(401, "unauthorized", f"Send the admin key in the header {HEADER}.")
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise Problem(403, "forbidden", f"The key in {HEADER} is not this server's admin key.")
