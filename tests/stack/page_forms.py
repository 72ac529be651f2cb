"""Browsers for tests of pages: they open pages and send forms, and differ only in how a request is made."""

import re
from abc import ABC, abstractmethod
from typing import Any


class PageBrowser(ABC):
    """Opens pages, and sends their forms with the token that each form hides."""

    @abstractmethod
    def get(self, path: str) -> Any:
        """GET a path, follow redirects, and return the last answer."""

    @abstractmethod
    def post(self, path: str, data: dict[str, Any], files: dict[str, Any] | None) -> Any:
        """POST a form, follow redirects, and return the last answer."""

    def open(self, path: str, status: int = 200) -> Any:
        """Return the answer to a GET, which must be a page of this status."""
        answer = self.get(path)
        content_type = answer.headers["Content-Type"]
        assert (answer.status_code, content_type) == (status, "text/html; charset=utf-8"), answer.text[:500]
        return answer

    def token(self, page: str) -> str:
        """Return the token that the forms of `page` hide."""
        (first, *_) = re.findall(r'name="csrf_token" value="([^"]+)"', self.open(page).text)
        return str(first)

    def send(self, page: str, path: str, files: dict[str, Any] | None = None, **fields: Any) -> Any:
        """Send a form of `page` to `path`, and return the answer after all redirects."""
        return self.post(path, {"csrf_token": self.token(page), **fields}, files)


def message(answer: Any, kind: str) -> str:
    """Return the one message of this kind (done, refused) on a page."""
    found = re.findall(rf'<p class="message {kind}"[^>]*>([^<]*)</p>', answer.text)
    assert len(found) == 1, answer.text
    return str(found[0])
