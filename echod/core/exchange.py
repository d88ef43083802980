"""One HTTP request and its answer, after which the connection ends.

Rules
    h11 reads and writes; what it refuses is answered with its own status and nothing else. Bytes come in, bytes go out.
    A request is bounded: LONGEST bytes to the end of its header. A body is neither wanted nor read.
    One answer for one connection: nothing can be smuggled behind a request, and nobody holds a place by being silent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST = 8192
"""Bytes of a request line and its headers; what nginx and Apache take by default."""

TEXT = "text/plain; charset=utf-8"

_AUTHORITY = re.compile(r"https?://[^/?#]*", re.IGNORECASE)  # before the path, as a proxy is asked (RFC 9112 §3.2.2)


@dataclass(frozen=True)
class Page:
    """What is answered."""

    status: int
    body: bytes
    media_type: str = TEXT


class Exchange:
    """What one client asks and is told."""

    def __init__(self, pages: Callable[[str, str], Page]) -> None:
        """Prepare for one request; `pages` makes the page for a path and the value of an Accept header."""
        self.method: str | None = None
        self.path: str | None = None
        self.status: int | None = None
        """The answer's, once there is one."""
        self._pages = pages
        self._received = 0
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST)

    def receive(self, data: bytes) -> bytes | None:
        """Take what has come in, and return the whole answer as soon as there is one."""
        self._received += len(data)
        self._http.receive_data(data)
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            return self._answer(
                Page(error.error_status_hint or HTTPStatus.BAD_REQUEST, b"this is no request that echod reads\n")
            )
        if not isinstance(event, h11.Request):
            return None
        rest, _ = self._http.trailing_data
        if self._received - len(rest) > LONGEST:  # h11 bounds only what is not complete yet
            return self._answer(Page(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"the header is too long\n"))
        return self._answer(self._page(event))

    def _page(self, request: h11.Request) -> Page:
        target = request.target.decode("ascii")
        self.method = request.method.decode("ascii")
        self.path = re.split(r"[?#]", _AUTHORITY.sub("", target, count=1), maxsplit=1)[0] or "/"
        if self.method not in {"GET", "HEAD"}:
            return Page(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n")
        accept = b",".join(value for name, value in request.headers if name == b"accept")
        return self._pages(self.path, accept.decode("latin-1"))

    def _answer(self, page: Page) -> bytes:
        self.status = page.status
        headers = [
            ("Content-Type", page.media_type),
            ("Content-Length", str(len(page.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        ]
        if page.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("Allow", "GET, HEAD"))
        head = (
            self._http.send(
                h11.Response(status_code=page.status, headers=headers, reason=HTTPStatus(page.status).phrase)
            )
            or b""
        )
        return head if self.method == "HEAD" else head + page.body
