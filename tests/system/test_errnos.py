"""Every error that the kernel may give: injected into the system calls of a running daemon by strace(1).

Rule: what concerns one connection ends one connection at most; what passes ends nothing; a poller that fails for good
is a clean replacement. Nothing is a defect, and nothing spins.
"""

from __future__ import annotations

import contextlib
import errno
import select
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.system import proc
from tests.system.clients import MIB, connect, echo_once, ping, read_exactly, read_to_end
from tests.system.daemon import wait_until

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from tests.conftest import Size
    from tests.system.daemon import Starter

ALL = sorted(errno.errorcode.values())
FEW = ["ENOBUFS", "ENOMEM", "EIO", "ECONNRESET", "ETIMEDOUT", "EINTR", "EAGAIN"]
"""What to expect of recv and send: memory that is short, a peer or network that is gone, a call that is interrupted."""

FEW_ACCEPTED = ["ENOBUFS", "ENOMEM", "ENFILE", "ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN"]
FEW_POLLED = ["EBADF", "EINVAL", "ENOBUFS", "EINTR"]
MADE_AGAIN = {"EAGAIN", "EALREADY", "EINPROGRESS", "EINTR"}
"""Errors that cost nothing: the call is made again. To Python three of them are one, BlockingIOError."""

PASSING = {"EAGAIN", "EINTR", "ENOBUFS", "ENOMEM"}
"""Errors that a poller gets over."""

POLLERS = [("epoll", "epoll_wait"), ("poll", "poll"), ("select", "pselect6")]


@pytest.fixture(scope="module", autouse=True)
def _strace() -> None:
    """Skip where a process may not be traced."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    tried = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False, capture_output=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace: {tried.stderr.decode()}")


@contextlib.contextmanager
def injected(pid: int, call: str, error: str, when: str = "1") -> Iterator[None]:
    """Have a system call of a process fail the next time, or as `when` says."""
    number = getattr(errno, error)  # of which strace may know another name
    command = ["strace", "-qq", "-o", "/dev/null", "-p", str(pid), "-e", f"inject={call}:error={number}:when={when}"]
    with subprocess.Popen([*command, "-e", f"trace={call}"], stderr=subprocess.PIPE) as tracer:
        try:
            wait_until(lambda: tracer.poll() is not None or traced(pid), what="strace")
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            _, said = tracer.communicate(timeout=10)
        if said:
            raise AssertionError(said.decode())


def traced(pid: int) -> bool:
    """Tell whether somebody traces the process."""
    return proc.status(pid).get("TracerPid", "0") != "0"


@pytest.mark.parametrize(("call", "word"), [("recvfrom", "read_failed"), ("sendto", "write_failed")])
def test_one_connection_pays(start: Starter, size: Size, call: str, word: str) -> None:
    """Whatever recv or send fails with, that connection is reset, with the error's name in its record, and no other.

    Catches errors that nobody has thought of, which end the connection as a defect of echod's or the worker with it.
    """
    daemon = start()
    pids = daemon.pids()
    with connect(daemon.address()) as bystander:
        for error in ALL if size(0, 1) else FEW:
            ping(bystander)
            with connect(daemon.address()) as victim:
                ping(victim)
                with injected(pids[1], call, error):
                    victim.sendall(b"x" * 100)
                    if error in MADE_AGAIN:
                        assert victim.recv(100) == b"x" * 100
                        continue
                    assert read_to_end(victim) == (b"", "reset"), error
                record = daemon.wait_for("connection.closed", {"client.port": victim.getsockname()[1]})
            reset = error in {"ECONNABORTED", "ECONNRESET", "EPIPE", "ENOTCONN"}
            assert ("peer_reset" if reset else word, error) == (record["echod.close.reason"], record["error.type"])
        ping(bystander)

    assert pids == daemon.pids()


def test_the_door_stays_open(start: Starter, size: Size) -> None:
    """Whatever accept fails with, the client that knocks is served within a second, and those inside notice nothing.

    Catches errors that nobody has thought of, after which the door stays shut.
    """
    daemon = start(expect=["listener.paused"])
    pids = daemon.pids()
    with connect(daemon.address()) as bystander:
        for error in ALL if size(0, 1) else FEW_ACCEPTED:
            with injected(pids[1], "accept4", error), connect(daemon.address()) as client:
                assert ping(client) < 1.0, error
            ping(bystander)

    assert pids == daemon.pids()
    assert len(daemon.records("listener.paused")) == len(daemon.records("listener.resumed"))


@pytest.mark.parametrize(("poller", "call"), POLLERS)
def test_a_poller_without_memory_passes(start: Starter, poller: str, call: str) -> None:
    """While the poller fails for want of memory the process rests, and afterwards it serves those who are there.

    Catches a loop that asks again at once: it would have got through all of the failures in no time.
    """
    daemon = start(daemon={"poller": poller})
    pids = daemon.pids()
    with connect(daemon.address()) as client:
        ping(client)
        # Not to the end: a call that is being failed while strace lets go becomes ENOSYS.
        with injected(pids[1], call, "ENOMEM", "1..20"):
            client.sendall(b"wake")  # a wait that strace has interrupted may go on as another call, until this
            share = daemon.cpu_share(0.5)
            began = time.monotonic()
            client.sendall(b"patience")
            assert read_exactly(client, 12) == b"wakepatience"
            rested = time.monotonic() - began

    assert pids == daemon.pids()
    assert rested > 0.5
    assert share < 0.05


def test_a_broken_poller_is_replaced(start: Starter) -> None:
    """A poller that fails for good ends its worker with a line and code 1; the slot is filled, the sibling goes on."""
    daemon = start(workers=2, expect=["service.failed", "worker.died"])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(daemon.address())) for _ in range(40)]
        for client in clients:
            ping(client)
        victim, sibling = daemon.workers()
        with injected(victim, "epoll_wait", "EBADF"):
            died = daemon.wait_for("worker.died")
        started = daemon.wait_for("worker.started", count=3, timeout=1.0)
        ended = [client for client in clients if is_over(client)]
        for client in set(clients) - set(ended):
            ping(client)
        echo_once(daemon.address())

    assert (victim, 1, len(ended)) == (
        died["echod.worker.pid"],
        died["echod.worker.exit_code"],
        died["echod.connections.lost"],
    )
    assert {sibling, started["echod.worker.pid"]} == set(daemon.workers())
    assert len(daemon.records("service.failed")) == 1


@pytest.mark.parametrize(("poller", "call"), POLLERS)
def test_a_poller_fails_for_good_or_not_at_all(start: Starter, size: Size, poller: str, call: str) -> None:
    """Whatever the poller fails with, it passes and the client is echoed, or the worker says why, ends and is replaced.

    Catches a worker that dies of what passes, and one that lives on and hears nothing any more.
    """
    for error in ALL if size(0, poller == "epoll") else FEW_POLLED:  # the three have but one way to fail
        passes = error in PASSING
        daemon = start(daemon={"poller": poller}, expect=[] if passes else ["service.failed", "worker.died"])
        pids = daemon.pids()
        with connect(daemon.address()) as client:
            ping(client)
            with injected(pids[1], call, error):
                client.sendall(b"hello")
                if passes:
                    assert client.recv(5) == b"hello", error
                    ping(client)  # by now the call has failed: strace must not let go in the middle of it
                else:
                    assert daemon.wait_for("worker.died")["echod.worker.exit_code"] == 1, error
            if passes:
                ping(client)
        if not passes:
            assert f"[Errno {getattr(errno, error)}]" in daemon.wait_for("service.failed")["error.message"]
            daemon.wait_for("worker.started", count=2, timeout=1.0)
        echo_once(daemon.address())
        assert passes is (pids == daemon.pids()), error
        daemon.stop()


def is_over(client: socket.socket) -> bool:
    """Tell whether a connection on which nothing is under way has ended."""
    client.setblocking(False)
    try:
        return not client.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("error", ["ENOMEM", "ENOSPC"])
def test_who_cannot_be_watched_pays(start: Starter, error: str) -> None:
    """Epoll has no memory to watch a connection for writing: that one is reset. Nor for the door: that is a pause.

    Catches a worker that dies of it.
    """
    daemon = start(expect=["listener.paused"])
    pids = daemon.pids()
    with connect(daemon.address()) as bystander, connect(daemon.address(), receive_buffer=4096) as victim:
        ping(bystander)
        ping(victim)
        daemon.wait_for("connection.opened", count=2)
        # With every ping of the supervisor the door is taken out and put in again: the second call of those two.
        with injected(pids[1], "epoll_ctl", error, "2"):
            daemon.wait_for("listener.paused")
        echo_once(daemon.address())
        victim.setblocking(False)
        with injected(pids[1], "epoll_ctl", error):
            with contextlib.suppress(OSError):
                while not daemon.records("connection.closed", {"client.port": victim.getsockname()[1]}):
                    select.select([], [victim], [], 0.1)
                    victim.send(b"x" * MIB)
            record = daemon.wait_for("connection.closed", {"client.port": victim.getsockname()[1]})
        ping(bystander)
        echo_once(daemon.address())

    assert ("internal_error", error) == (record["echod.close.reason"], record["error.type"])
    assert pids == daemon.pids()


@pytest.mark.parametrize("call", ["sendmsg", "recvmsg"])
@pytest.mark.parametrize("who", [0, 1], ids=["supervisor", "worker"])
def test_the_channel_outlives_a_lack_of_memory(start: Starter, who: int, call: str) -> None:
    """Supervisor or worker has no memory to say or hear something: the reload is taken, by the same processes."""
    daemon = start()
    pids = daemon.pids()
    with connect(daemon.address()) as client:
        ping(client)
        with injected(pids[who], call, "ENOMEM"):
            daemon.reload(limits={"idle_timeout": "200ms"})
        with connect(daemon.address()) as new:
            assert read_to_end(new, 5) == (b"", "fin")
        ping(client)

    assert pids == daemon.pids()
