"""The admin listener of a real daemon: health through its life, and whoever comes to hold it or to break it."""

from __future__ import annotations

import http.client
import os
import random
import socket
import threading
import time
from contextlib import ExitStack
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING

import pytest

from tests.system.clients import abort, connect, echo_once, ping, read_to_end
from tests.system.daemon import StartFailedError, wait_until

if TYPE_CHECKING:
    from tests.conftest import Size
    from tests.system.clients import Address
    from tests.system.daemon import Daemon, Starter

ANYWHERE = {"address": "127.0.0.1:0"}


def get(address: Address, path: str, **headers: str) -> tuple[int, str]:
    """Ask as any client does; return status and body."""
    asking = http.client.HTTPConnection(*address, timeout=10)
    try:
        asking.request("GET", path, headers=headers)
        answer = asking.getresponse()
        return answer.status, answer.read().decode()
    finally:
        asking.close()


def ready(daemon: Daemon) -> int:
    """Return the status of /readyz."""
    return get(daemon.address("admin"), "/readyz")[0]


def test_request_header_is_refused_when_over_8_kib(start: Starter) -> None:
    """The limit holds to the byte, however the kernel cuts what comes; the next request is answered."""
    daemon = start(admin=ANYWHERE)
    head = len(f"GET /livez HTTP/1.1\r\nHost: {':'.join(map(str, daemon.address('admin')))}\r\n")
    head += len("Accept-Encoding: identity\r\nX: \r\n\r\n")
    statuses = [get(daemon.address("admin"), "/livez", X="x" * (size - head))[0] for size in (8192, 8193, 9040, 8192)]

    assert [200, 431, 431, 200] == statuses


def test_health_through_a_life(start: Starter) -> None:
    """Ready once it serves and after a reload; not from the first signal on, while echo goes on and to the very end."""
    daemon = start(workers=2, admin=ANYWHERE, daemon={"drain_delay": "1s", "drain_timeout": "20s"})
    assert (200, "ready\n") == get(daemon.address("admin"), "/readyz")
    daemon.reload(limits={"idle_timeout": "5m"})
    assert 200 == ready(daemon)
    admin, address = daemon.address("admin"), daemon.address()
    with connect(address) as client:
        ping(client)
        daemon.signal(SIGTERM)
        wait_until(lambda: get(admin, "/readyz") == (503, "not ready\n"))
        echo_once(address)  # the delay: balancers see it first
        wait_until(lambda: daemon.records("listener.closed", {"echod.listener": "echo"}), timeout=5)
        assert (503, 200) == (get(admin, "/readyz")[0], get(admin, "/livez")[0])
        assert "echod_connections_active 1.0\n" in get(admin, "/metrics")[1]
        client.shutdown(socket.SHUT_WR)
    assert 0 == daemon.wait_exit()


def test_it_is_off_by_default_and_comes_and_goes_by_reload(start: Starter) -> None:
    """No socket without the key; with it at the next reload, on a path too; without it at the one after."""
    daemon = start(workers=2)
    assert ["echo"] == [listener["name"] for listener in daemon.state()["listeners"]]
    path = daemon.directory / "admin.sock"
    daemon.reload(admin={"address": str(path)})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        answer, end = read_to_end(client)
    daemon.reload(admin={"address": ""})

    assert answer.endswith(b"alive\n")
    assert "fin" == end
    assert not path.exists()


def test_echo_is_echo(start: Starter) -> None:
    """A request to the echo port comes back as it is: whoever tests through it is never given a page."""
    daemon = start(admin=ANYWHERE)

    echo_once(daemon.address(), b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")


def test_its_connections_are_none_of_echos(start: Starter) -> None:
    """Full to the last place, echod can still be asked; and nobody who asks is in the log above debug, or counted."""
    daemon = start(admin=ANYWHERE, limits={"max_connections": 1}, log={"level": "debug"})
    with connect(daemon.address()) as client:
        ping(client)
        for _ in range(3):
            status, page = get(daemon.address("admin"), "/metrics")
            assert 200 == status
        record = daemon.wait_for("admin.answered", count=3)

    assert "echod_connections_accepted_total 1.0\n" in page
    assert ("debug", "GET", "/metrics", 200) == (
        record["level"],
        record["http.request.method"],
        record["url.path"],
        record["http.response.status_code"],
    )
    assert {1} == {len(daemon.records(f"connection.{what}")) for what in ("opened", "received", "sent")}


def hostile(generator: random.Random, address: Address, stack: ExitStack) -> None:
    """Come and do something that no good client does."""
    guest: socket.socket = stack.enter_context(connect(address))
    match generator.randrange(6):
        case 0:
            pass  # and never say a word
        case 1:
            guest.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        case 2:
            guest.sendall(generator.randbytes(generator.randrange(1, 3000)))
        case 3:
            guest.sendall(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 50)  # and read nothing
        case 4:
            guest.sendall(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
            abort(guest)
        case 5:
            guest.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n" + b"x" * 5000)


def test_hostile_clients_hold_nothing(start: Starter, size: Size) -> None:
    """Whatever hundreds do, who asks gets an answer at once, echo goes on, and nothing is left of them in the end."""
    seed = 20_261_126
    print(f"seed {seed}")  # noqa: T201
    generator = random.Random(seed)
    daemon = start(admin=ANYWHERE)
    admin = daemon.address("admin")
    before = daemon.descriptors()
    with connect(daemon.address()) as client:
        for _ in range(size(8, 150)):
            with ExitStack() as crowd:
                for _ in range(40):
                    hostile(generator, admin, crowd)
                started = time.monotonic()
                assert 200 == get(admin, "/livez")[0]
                assert time.monotonic() - started < 2
                ping(client)
    wait_until(lambda: daemon.descriptors() == before, timeout=15, what="every guest gone")


def test_a_taken_address_is_said(start: Starter) -> None:
    """An admin address that is in use ends the start with one line, as one of echo's does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartFailedError) as failed:
            start(admin={"address": f"127.0.0.1:{port}"})

    assert f'listener "admin": 127.0.0.1:{port}: Address already in use' in failed.value.stderr


def test_a_worker_is_killed(start: Starter) -> None:
    """Another worker answers, and soon its successor too."""
    daemon = start(workers=2, admin=ANYWHERE, expect=["worker.died"])
    os.kill(daemon.workers()[0], SIGKILL)
    wait_until(lambda: "echod_worker_restarts_total 1.0\n" in get(daemon.address("admin"), "/metrics")[1])
    wait_until(lambda: "echod_workers 2.0\n" in get(daemon.address("admin"), "/metrics")[1])
    assert 200 == ready(daemon)


def test_workers_that_retire_leave_no_question_open(start: Starter, size: Size) -> None:
    """Four clients ask all the time while workers become fewer and more: each question has its answer.

    Catches a worker that lets in whoever waits and leaves before it has read what they ask.
    """
    daemon = start(workers=4, admin=ANYWHERE)
    address = daemon.address("admin")
    statuses: list[int] = []
    faults: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                statuses.append(get(address, "/livez")[0])
            except (OSError, http.client.HTTPException) as error:
                faults.append(repr(error))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for _ in range(size(3, 30)):
        daemon.reload(daemon={"workers": 1})
        daemon.reload(daemon={"workers": 4})
    over.set()
    for asker in askers:
        asker.join(10)

    assert [] == faults
    assert {200} == set(statuses)
