"""One HTTP request and its answer: what is asked for, what is refused, and that nothing can be made of the rest."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.core.exchange import LONGEST, Exchange, Page


def pages(path: str, accept: str) -> Page:
    """Say what was asked for."""
    return Page(200, f"{path} {accept}".encode(), "text/x-test")


def ask(request: bytes, *, step: int = 0) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the answer to a request that comes in pieces of `step` bytes."""
    exchange = Exchange(pages)
    size = step or len(request)
    pieces = [request[start : start + size] for start in range(0, len(request), size)]
    answer = next(answer for piece in pieces if (answer := exchange.receive(piece)))
    client = h11.Connection(h11.CLIENT)
    method = "HEAD" if request.startswith(b"HEAD") else "GET"
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert response.status_code == exchange.status
    return response.status_code, {name.decode(): value.decode() for name, value in response.headers}, body


@pytest.mark.parametrize("step", [0, 1, 7])
def test_get(step: int) -> None:
    """A request is answered once it is complete, however it comes in, and by its path."""
    status, headers, body = ask(b"GET /x?y=1 HTTP/1.1\r\nHost: h\r\nAccept: a/b\r\naccept: c\r\n\r\n", step=step)

    assert (200, b"/x a/b,c") == (status, body)
    assert ("text/x-test", "8", "close") == (headers["content-type"], headers["content-length"], headers["connection"])


def test_head() -> None:
    """HEAD has the headers of GET and no body."""
    status, headers, body = ask(b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n")

    assert (200, "3", b"") == (status, headers["content-length"], body)


def test_the_form_for_proxies() -> None:
    """A request may name the whole URL."""
    assert b"/x " == ask(b"GET http://h:1/x HTTP/1.1\r\nHost: h:1\r\n\r\n")[2]
    assert b"/ " == ask(b"GET http://h HTTP/1.0\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /" + b"x" * LONGEST, 431),
    ],
)
def test_what_is_refused(request_: bytes, status: int) -> None:
    """Every other method, and what is no request, has a status of its own, which h11 knows best."""
    found, headers, _ = ask(request_)

    assert status == found
    assert ("GET, HEAD" if status == 405 else None) == headers.get("allow")


def sized(length: int) -> bytes:
    """Return a request whose header has `length` bytes."""
    start, end = b"GET / HTTP/1.1\r\nHost: h\r\nX: ", b"\r\n\r\n"
    return start + b"x" * (length - len(start) - len(end)) + end


@pytest.mark.parametrize("step", [0, 1, 4096])
@pytest.mark.parametrize("rest", [b"", b"x" * 5000], ids=["nothing", "more"])
@pytest.mark.parametrize(("length", "status"), [(LONGEST, 200), (LONGEST + 1, 431), (9040, 431)])
def test_header_is_refused_when_over_the_limit(length: int, status: int, rest: bytes, step: int) -> None:
    """In however many pieces it comes, and whatever comes after it."""
    assert status == ask(sized(length) + rest, step=step)[0]


def test_what_is_not_complete_is_not_answered() -> None:
    """Until the header has ended there is nothing to say."""
    assert Exchange(pages).receive(b"GET / HTTP/1.1\r\nHost: h\r\n") is None


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=60), st.sampled_from([b"", b"GET / HTTP/1.1\r\n"]))
def test_whatever_comes(pieces: list[bytes], head: bytes) -> None:
    """No bytes bring anything but an answer or silence, and silence holds a bounded number of them."""
    exchange = Exchange(pages)
    held = 0
    for piece in [head, *pieces]:
        if piece and exchange.receive(piece):
            return
        held += len(piece)

    assert held <= LONGEST
