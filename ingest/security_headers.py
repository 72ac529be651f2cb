"""Security headers of every answer: no foreign content, no inline scripts, no frames."""

import re
from base64 import b64encode
from hashlib import sha256

from flask import Response, request

# Answers that are no pages may load and run nothing.
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
_PAGE = (
    "default-src 'none'; script-src 'self'{scripts}; style-src 'self'{styles}; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# The specification's viewer and the guide: scripts and styles in their pages, and styles that scripts make as they run.
DOCUMENTATION = "/docs/"
_INLINE = re.compile(rb"<script(?:\s[^>]*)?>(.*?)</script>", re.DOTALL | re.IGNORECASE)


def add_headers(response: Response) -> Response:
    """Set the security headers of an answer, except those that its view has set."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("X-Frame-Options", "DENY")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    response.headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    response.headers.setdefault("Content-Security-Policy", _policy(response))
    return response


def _policy(response: Response) -> str:
    if response.mimetype != "text/html":
        return _NO_PAGE
    if not request.path.startswith(DOCUMENTATION) or response.is_streamed or response.direct_passthrough:
        return _PAGE.format(scripts="", styles="")
    found = [script for script in _INLINE.findall(response.get_data()) if script.strip()]
    hashes = [f" 'sha256-{b64encode(sha256(script).digest()).decode()}'" for script in found]
    # The viewer shows nothing that a client has sent.
    return _PAGE.format(scripts="".join(hashes), styles=" 'unsafe-inline'")


def forbid_storing(response: Response) -> Response:
    """Forbid browsers and proxies to store an answer."""
    response.headers["Cache-Control"] = "no-store"
    return response
