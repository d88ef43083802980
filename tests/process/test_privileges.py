"""Privileges: who a worker becomes is settled before the start, and becoming it is proven."""

from __future__ import annotations

import os
import pwd

import pytest

from echod.errors import StartError
from echod.process import privileges

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")


@pytest.fixture
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)


@pytest.mark.usefixtures("_root")
def test_root_becomes_nobody_unless_told_otherwise() -> None:
    """Without a user workers become nobody, with a user its own group, with a group that one."""
    nobody, daemon = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    plain, named, grouped = (privileges.identity(*names) for names in (("", ""), ("daemon", ""), ("daemon", "sys")))

    assert plain
    assert (nobody.pw_name, nobody.pw_uid, nobody.pw_gid) == (plain.user, plain.uid, plain.gid)
    assert named
    assert (daemon.pw_uid, daemon.pw_gid) == (named.uid, named.gid)
    assert grouped
    assert ("daemon", "sys") == (grouped.user, grouped.group)


@pytest.mark.usefixtures("_root")
@pytest.mark.parametrize(
    ("user", "group", "reason"),
    [
        ("no-such", "", 'daemon.user: there is no user "no-such"'),
        ("root", "", 'daemon.user: workers never run as root, and "root" is root'),
        ("daemon", "no-such", 'daemon.group: there is no group "no-such"'),
        ("daemon", "root", 'daemon.user: workers never have root\'s group, and "daemon" would'),
    ],
)
def test_who_cannot_be_become_is_refused(user: str, group: str, reason: str) -> None:
    """Unknown users and groups, and root, are refused in the words of the key that names them."""
    with pytest.raises(StartError) as refused:
        privileges.identity(user, group)

    assert (reason,) == refused.value.lines


@pytest.mark.usefixtures("_nobody")
def test_others_stay_who_they_are() -> None:
    """Not root: nobody changes, the own name may be stated, another one is refused."""
    assert privileges.identity("", "") is None
    assert privileges.identity("nobody", "") is None
    with pytest.raises(StartError, match='only root can become "daemon"'):
        privileges.identity("daemon", "")


def test_a_user_without_an_account_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a number that no account has: the reason is the same sentence."""
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)

    with pytest.raises(StartError, match='only root can become "daemon"'):
        privileges.identity("daemon", "")


@as_root
def test_become_gives_up_everything() -> None:
    """All three user and group ids change and root's groups are gone, for good."""
    who = privileges.identity("daemon", "nogroup")
    assert who
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            privileges.become(who)
            told = repr((os.getresuid(), os.getresgid(), 0 in os.getgroups()))
            try:
                os.setuid(0)
            except PermissionError:
                code = 0
            os.write(writer, told.encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)

    assert repr(((who.uid,) * 3, (who.gid,) * 3, False)) == told
    assert 0 == os.waitstatus_to_exitcode(status)


def test_a_kernel_that_does_not_obey_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ids are not what was asked for afterwards, the worker does not go on."""
    for name in ("initgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *_: None)

    with pytest.raises(RuntimeError, match="privileges could not be dropped"):
        privileges.become(privileges.Identity("ghost", "ghosts", 54_321, 54_321))
