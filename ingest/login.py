"""An operator at a browser: the admin key is shown once, and a signed cookie stands for it for half a day.

The cookie is Flask's session, out of reach of scripts and of other sites' forms. Its secret is derived from the admin
key: all web processes have the same one, and a new key ends every session. Whatever changes something is a POST whose
form holds the session's token (Flask-WTF).
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
from ingest.problems import Problem

SESSION = timedelta(hours=12)
PURPOSE = b"ecm-coordinator: cookies of operators' browsers"
TOKEN = "csrf_token"


class _Sessions(SecureCookieSessionInterface):
    """Cookies that are kept to HTTPS where the browser came by it."""

    def get_cookie_secure(self, app: Flask) -> bool:
        # Whoever makes this header up does it to his own cookie.
        return request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"


def use_cookies(app: Flask, admin_key: str) -> None:
    """Give `app` signed cookies and the functions that its templates need."""
    # Without a key nobody can log in, and no cookie is worth anything.
    app.secret_key = hmac.digest(admin_key.encode(), PURPOSE, "sha256") if admin_key else secrets.token_bytes(32)
    app.session_interface = _Sessions()
    app.config.update(
        SESSION_COOKIE_NAME="ecm_operator",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=SESSION,
        SESSION_REFRESH_EACH_REQUEST=False,
        # A form may lie open as long as its session lasts.
        WTF_CSRF_TIME_LIMIT=None,
        WTF_CSRF_FIELD_NAME=TOKEN,
    )
    app.add_template_global(generate_csrf, TOKEN)
    app.add_template_global(is_operator, "is_operator")


def is_operator() -> bool:
    """Whether this request's browser has shown the admin key, not longer than SESSION ago."""
    return float(session.get("until", 0)) > time()


def log_in(key: str) -> None:
    """Begin a session if `key` is the admin key; raises a 403 problem if not, 429 after too many tries."""
    rate_limits.limit_login()
    if not is_key(key):
        raise Problem(403, "forbidden", "That is not this server's admin key; it is in the file admin.key of its home.")
    session.clear()
    session.permanent = True
    session["until"] = time() + SESSION.total_seconds()


def log_out() -> None:
    """End this browser's session."""
    session.clear()


def check_token() -> None:
    """Raise a 400 problem unless this form was made by this server for this session."""
    try:
        validate_csrf(request.form.get(TOKEN))
    except ValidationError as error:
        detail = "This form is out of date, or was not made by this server; open its page again and repeat it."
        raise Problem(400, "bad_token", detail) from error


def way_back(address: str | None) -> str | None:
    """`address` if it is a page of this server; nobody is sent elsewhere by a link to the login."""
    if not address or not address.startswith("/") or address.startswith("//") or "\\" in address:
        return None
    parts = urlsplit(address)
    return None if parts.netloc or parts.scheme or not address.isprintable() else address
