"""Privileges: what a worker runs as is settled before the start, and dropping everything else is proven."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.errors import StartError
from echod.process import privileges
from echod.process.privileges import DropError, RunAs

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")

GHOST = RunAs("ghost", "ghosts", 54_321, 54_321, (54_321,))


@pytest.fixture
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)


@pytest.fixture(autouse=True)
def _no_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behave like a name service without enumeration: only questions for one name or number are answered."""
    monkeypatch.setattr(pwd, "getpwall", list)
    monkeypatch.setattr(grp, "getgrall", list)


# -- resolve ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_root")
def test_resolve_without_user_as_root_returns_nobody() -> None:
    """An empty `daemon.user` means the account "nobody" with its own group."""
    account = pwd.getpwnam("nobody")
    run_as = privileges.resolve("", "")

    assert run_as == RunAs("nobody", "nogroup", account.pw_uid, account.pw_gid, (account.pw_gid,))


@pytest.mark.usefixtures("_root")
def test_resolve_user_and_group_as_root_returns_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is the configured one, and the supplementary groups are those of the user beside it."""
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 7] if name == "daemon" else [])

    assert privileges.resolve("daemon", "sys") == RunAs("daemon", "sys", 1, 3, (3, 7))


@pytest.mark.usefixtures("_root")
def test_resolve_group_without_name_uses_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account whose group has no entry is usable all the same."""
    account = pwd.struct_passwd(("sso", "x", 70_001, 70_002, "", "/", "/bin/false"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: account)
    monkeypatch.setattr(os, "getgrouplist", lambda _name, gid: [gid])

    assert privileges.resolve("sso", "") == RunAs("sso", "70002", 70_001, 70_002, (70_002,))


@pytest.mark.usefixtures("_root")
@pytest.mark.parametrize("function", [privileges.resolve, privileges.check])
@pytest.mark.parametrize(
    ("user", "group", "reason"),
    [
        ("no-such", "", 'daemon.user: there is no user "no-such"; create it or name another one'),
        ("root", "", 'daemon.user: "root" is root, and workers never run as root; name another user'),
        ("daemon", "no-such", 'daemon.group: there is no group "no-such"; create it or name another one'),
        (
            "daemon",
            "root",
            'daemon.user: "daemon" is in group root, and workers never are; name another user or group',
        ),
    ],
)
def test_unusable_user_is_refused(function: Callable[[str, str], object], user: str, group: str, reason: str) -> None:
    """Start and `echod check` refuse unknown users and groups, and root, in the same words."""
    with pytest.raises(StartError) as refused:
        function(user, group)

    assert (reason,) == refused.value.lines


@pytest.mark.usefixtures("_nobody")
@pytest.mark.parametrize("user", ["", "nobody"])
def test_resolve_as_another_user_keeps_it(user: str) -> None:
    """Not root: workers keep the user, which the key may name."""
    assert privileges.resolve(user, "") is None


@pytest.mark.usefixtures("_nobody")
@pytest.mark.parametrize(
    ("user", "group", "reason"),
    [
        ("daemon", "", 'daemon.user: only root can run workers as "daemon"'),
        ("", "daemon", 'daemon.group: only root can run workers as "daemon"'),
        ("no-such", "", 'daemon.user: there is no user "no-such"'),
    ],
)
def test_resolve_another_user_without_root_is_refused(user: str, group: str, reason: str) -> None:
    """Not root: no other user or group can be had."""
    with pytest.raises(StartError, match=reason):
        privileges.resolve(user, group)


# -- check ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_nobody")
@pytest.mark.parametrize(("user", "group"), [("", ""), ("daemon", ""), ("daemon", "sys"), ("nobody", ""), ("", "sys")])
def test_check_without_root_accepts_users_that_exist(user: str, group: str) -> None:
    """Whoever checks a file need not be able to run it."""
    privileges.check(user, group)


@pytest.mark.usefixtures("_nobody")
@pytest.mark.parametrize(("user", "group"), [("root", ""), ("no-such", ""), ("daemon", "no-such"), ("", "no-such")])
def test_check_without_root_refuses_what_root_would(user: str, group: str) -> None:
    """The file is refused as the daemon of root would refuse it."""
    with pytest.raises(StartError, match=r"^daemon\."):
        privileges.check(user, group)


# -- the drop ---------------------------------------------------------------------------------------------------------


@as_root
def test_drop_to_another_user_cannot_be_undone() -> None:
    """All three user and group ids change, only the user's groups are left, and root is out of reach."""
    run_as = RunAs("daemon", "nogroup", 1, 65_534, (65_534, 7))
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            privileges.drop_to(run_as)
            told = repr((os.getresuid(), os.getresgid(), sorted(os.getgroups())))
            try:
                os.setuid(0)
            except PermissionError:
                os.write(writer, told.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)

    assert repr(((1, 1, 1), (65_534, 65_534, 65_534), [7, 65_534])) == told


def test_kernel_that_does_not_drop_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that claim success and change nothing end the worker."""
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *_: None)
    monkeypatch.setattr(privileges._libc, "prctl", lambda *_: 0)
    monkeypatch.setattr(privileges, "_drop_bounding_set", lambda: None)
    monkeypatch.setattr(privileges, "_capabilities", lambda: (0, 0, 0))

    with pytest.raises(DropError, match="privileges could not be dropped: setgroups: no effect"):
        privileges.drop_to(GHOST)
    with pytest.raises(DropError, match=r"privileges could not be dropped: prctl\(PR_SET_NO_NEW_PRIVS\): no effect"):
        privileges.drop_to(None)


# -- the proof before the start ---------------------------------------------------------------------------------------


def refusal(run_as: RunAs | None) -> str:
    """Return the one line with which the start is refused."""
    with pytest.raises(StartError) as refused:
        privileges.prove(run_as)
    (line,) = refused.value.lines
    return line


def failing(call: str, code: int) -> Callable[[object], NoReturn]:
    """Return a drop that fails at `call`."""

    def drop(_run_as: object) -> NoReturn:
        raise DropError(call, code)

    return drop


@as_root
def test_proof_as_root_leaves_no_child_and_no_descriptor() -> None:
    """The proof costs nothing that stays, and the caller is root afterwards."""
    before = list(Path("/proc/self/fd").iterdir())
    privileges.prove(RunAs("daemon", "daemon", 1, 1, (1,)))

    assert before == list(Path("/proc/self/fd").iterdir())
    assert 0 == os.geteuid()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("setresuid", errno.EINVAL, "(uid 54321, gid 54321) are not all mapped in this user namespace"),
        ("setresuid", errno.EAGAIN, 'cannot run as "ghost": setresuid: Resource temporarily unavailable'),
        ("capset", errno.EPERM, "allow capset in the seccomp filter"),
        ("prctl(PR_SET_NO_NEW_PRIVS)", errno.EPERM, "allow prctl in the seccomp filter"),
    ],
)
def test_failed_proof_names_call_and_remedy(monkeypatch: pytest.MonkeyPatch, call: str, code: int, words: str) -> None:
    """What the child could not do is one line with the error of the system call."""
    monkeypatch.setattr(privileges, "drop_to", failing(call, code))

    assert words in refusal(GHOST)


def test_seccomp_that_kills_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that ends the process instead of failing the call is told apart from other deaths."""
    monkeypatch.setattr(privileges, "drop_to", lambda _run_as: os.kill(os.getpid(), signal.SIGSYS))

    assert "a seccomp filter ends the process" in refusal(None)


def test_child_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the child, the start ends with one line."""
    monkeypatch.setattr(privileges, "drop_to", lambda _run_as: os._exit(7))

    assert "workers cannot give up privileges: the child that tried ended with status 7" == refusal(None)


def test_worker_that_cannot_be_signalled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor without CAP_KILL could never replace a worker that hangs."""

    def refuse(*_arguments: Any) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(privileges, "drop_to", lambda _run_as: None)
    monkeypatch.setattr(privileges, "_capabilities", lambda: (0, 0, 0))
    monkeypatch.setattr(os, "kill", refuse)

    assert "echod lacks CAP_KILL, CAP_SETGID and CAP_SETUID (kill: Operation not permitted)" in refusal(GHOST)
