"""Sessions of operators' browsers: after the login with the admin key, a signed cookie is valid for 12 hours.

The cookie is Flask's session; scripts and forms of other sites cannot use it. Its secret is derived from the admin key:
all web processes have the same one, and a new key ends every session. Every change is a POST whose form holds the
token of the session (Flask-WTF).
"""

import hmac
import secrets
from datetime import timedelta
from time import time
from urllib.parse import urlsplit

from flask import Flask, request, session
from flask.sessions import SecureCookieSessionInterface
from flask_wtf.csrf import generate_csrf, validate_csrf
from wtforms.validators import ValidationError

from ingest import rate_limits
from ingest.admin.admin_key import is_key
from ingest.problems import ProblemError

SESSION = timedelta(hours=12)
PURPOSE = b"ecm-coordinator: cookies of operators' browsers"
TOKEN = "csrf_token"


class _Sessions(SecureCookieSessionInterface):
    """Session cookies that are restricted to HTTPS if the browser came by HTTPS."""

    def get_cookie_secure(self, app: Flask) -> bool:
        # A browser that invents this header only affects its own cookie.
        return request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"


def use_cookies(app: Flask, admin_key: str) -> None:
    """Set up signed cookies for `app`, and the functions that its templates need."""
    # Without a key nobody can log in; a random secret makes every cookie invalid.
    app.secret_key = hmac.digest(admin_key.encode(), PURPOSE, "sha256") if admin_key else secrets.token_bytes(32)
    app.session_interface = _Sessions()
    app.config.update(
        SESSION_COOKIE_NAME="ecm_operator",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=SESSION,
        SESSION_REFRESH_EACH_REQUEST=False,
        # A form may stay open as long as its session.
        WTF_CSRF_TIME_LIMIT=None,
        WTF_CSRF_FIELD_NAME=TOKEN,
    )
    app.add_template_global(generate_csrf, TOKEN)
    app.add_template_global(is_operator, "is_operator")


def is_operator() -> bool:
    """Return whether this browser has logged in, at most SESSION ago."""
    return float(session.get("until", 0)) > time()


def log_in(key: str) -> None:
    """Begin a session if `key` is the admin key; raises a 403 problem if not, 429 after too many attempts."""
    rate_limits.limit_login()
    if not is_key(key):
        raise ProblemError(
            403,
            "forbidden",
            "That is not this server's admin key; see admin.key in its home directory.",
        )
    session.clear()
    session.permanent = True
    session["until"] = time() + SESSION.total_seconds()


def log_out() -> None:
    """End the session of this browser."""
    session.clear()


def check_token() -> None:
    """Raise a 400 problem unless the form has the token of this session."""
    try:
        validate_csrf(request.form.get(TOKEN))
    except ValidationError as error:
        detail = "This form is out of date, or it comes from another site; open its page again and repeat it."
        raise ProblemError(400, "bad_token", detail) from error


def own_page(address: str | None) -> str | None:
    """Return `address` if it is a page of this server, else None: a link to the login must not lead elsewhere."""
    if not address or not address.startswith("/") or address.startswith("//") or "\\" in address:
        return None
    parts = urlsplit(address)
    return None if parts.netloc or parts.scheme or not address.isprintable() else address
