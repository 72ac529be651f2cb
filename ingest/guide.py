"""The guide at /docs/guide/: the documents as a site, where `make docs` has built it.

The site is files. A page is read as a whole, so that ingest/security_headers.py can name its scripts by their hashes.
"""

from pathlib import Path

from flask import Blueprint, current_app, send_from_directory
from flask.typing import ResponseReturnValue

from ingest.problems import ProblemError

# Made by `python -m docs`; in the wheel if it was there when the wheel was built.
GUIDE = Path(__file__).parent / "guide_site"
CACHED_SECONDS = 300

guide = Blueprint("guide", __name__, url_prefix="/docs/guide")


def _directory() -> Path:
    return Path(current_app.config["GUIDE"])


@guide.app_template_global("guide_is_built")
def guide_is_built() -> bool:
    """Whether there is a guide to link to."""
    return (_directory() / "index.html").is_file()


@guide.get("/")
@guide.get("/<path:name>")
def page(name: str = "index.html") -> ResponseReturnValue:
    """Return a file of the guide; if it is not built, 404 says how to build it."""
    if not guide_is_built():
        detail = "The guide has not been built here. Run `make docs` in a checkout; the web process then serves it."
        raise ProblemError(404, "guide_not_built", detail)
    is_page = name.endswith(".html")
    # A page is sent whole every time. The policy of a 304 would have no hashes, as it has no body, and browsers use it.
    answer = send_from_directory(_directory(), name, max_age=CACHED_SECONDS, conditional=not is_page, etag=not is_page)
    if is_page:
        answer.direct_passthrough = False
        answer.make_sequence()
    return answer
