"""Giving up root and all capabilities, completely and provably.

Rules
    Names are looked up before the drop, one by one and never by enumeration, which name services such as SSSD do not
    offer. A worker never calls a name service.
    Groups first, then the group, then the user, then the capabilities: with SECBIT_NO_SETUID_FIXUP the change of user
    keeps all of them, and a process that never was root may have some (capabilities(7)). Then the proof.
    `prove` does all of this once in a child before the start, where the reason of a failure can still be printed.
    Not used: python-daemon, which calls initgroups or setgid, never both, and keeps root's groups or root's group;
    callbacks of ctypes, which need memory that is both writable and executable. Plain calls do not.

Known limit: without CAP_SETPCAP the bounding set stays. With no_new_privs it gives a worker nothing.

Fails: StartError from `resolve`, `check` and `prove`, naming the key and the remedy; DropError from `drop_to`.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from echod.errors import StartError
from echod.process import signals

try:
    import ctypes
except ImportError:  # an interpreter built without libffi
    raise StartError(
        "this Python has no ctypes, which workers need to give up privileges; build it with libffi"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable

UNPRIVILEGED = "nobody"

_NEEDED = {"CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}  # linux/capability.h
_CAP_SETPCAP = 8
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITY_WORDS = 6  # two times effective, permitted, inheritable, of 32 bits each
_PR_CAPBSET_READ = 23  # linux/prctl.h
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_LONGEST_REPORT = 100

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class RunAs:
    """User, group and supplementary groups of a worker."""

    user: str
    group: str
    uid: int
    gid: int
    groups: tuple[int, ...]


class DropError(RuntimeError):
    """A system call that did not do its part; `errno` is 0 where it claimed success."""

    def __init__(self, call: str, errno: int) -> None:
        super().__init__(f"privileges could not be dropped: {call}: {os.strerror(errno) if errno else 'no effect'}")
        self.call = call
        self.errno = errno


def resolve(user: str, group: str) -> RunAs | None:
    """Return what workers run as, or None where echod is not root and they keep its own user.

    `user` is "" for the account "nobody", `group` is "" for the user's own.
    """
    if os.geteuid() == 0:
        return _lookup(user or UNPRIVILEGED, group)
    if user and _account(user).pw_uid != os.geteuid():
        raise StartError(f'daemon.user: only root can run workers as "{user}"; start echod as root or remove the key')
    if group and _gid(group) != os.getegid():
        raise StartError(f'daemon.group: only root can run workers as "{group}"; start echod as root or remove the key')
    return None


def check(user: str, group: str) -> None:
    """Refuse what `resolve` refuses a daemon of root: a file can be checked by any user.

    The keys may also name the caller's own user, as which the daemon runs without root.
    """
    if os.geteuid() == 0 or (user and _account(user).pw_uid != os.geteuid()):
        _lookup(user or UNPRIVILEGED, group)
    elif group:
        _gid(group)


def drop_to(run_as: RunAs | None) -> None:
    """Turn this process into `run_as`, or leave its ids, and give up all capabilities; there is no way back."""
    _call("prctl(PR_SET_NO_NEW_PRIVS)", _libc.prctl, _PR_SET_NO_NEW_PRIVS, *_words(1, 0, 0, 0))
    _drop_bounding_set()
    if run_as:
        _call("setgroups", os.setgroups, run_as.groups)
        _call("setresgid", os.setresgid, *(run_as.gid,) * 3)
        _call("setresuid", os.setresuid, *(run_as.uid,) * 3)
    if any(_capabilities()):  # seccomp may refuse the call to those who do not need it (systemd's @privileged)
        _call("capset", _libc.capset, _header(), (ctypes.c_uint32 * _CAPABILITY_WORDS)())
    _verify(run_as)


def prove(run_as: RunAs | None) -> None:
    """Have a child drop all that a worker will drop, and prove that it may be signalled; raise StartError."""
    ours, theirs = socket.socketpair()
    with signals.held():
        pid = os.fork()
        if not pid:
            _rehearse(run_as, ours, theirs)
    theirs.close()
    with ours:  # its end is the child's
        report = ours.recv(_LONGEST_REPORT)
        call, _, code = report.decode().partition(" ")
        if report and not call:
            try:
                os.kill(pid, 0)
            except PermissionError:
                call, code = "kill", str(errno.EPERM)
    _, status = os.waitpid(pid, 0)
    if not report:
        raise StartError(f"workers cannot give up privileges: {_ended(os.waitstatus_to_exitcode(status))}")
    if call:
        raise StartError(_explain(run_as, call, int(code)), errno=int(code))


def _rehearse(run_as: RunAs | None, ours: socket.socket, theirs: socket.socket) -> NoReturn:
    try:
        signals.reset_in_child()
        ours.close()
        report = " "
        try:
            drop_to(run_as)
        except DropError as error:
            report = f"{error.call} {error.errno}"
        theirs.send(report.encode())
        theirs.recv(1)
    finally:
        os._exit(1)  # nothing of the parent's is to be done here; the report alone counts


def _ended(status: int) -> str:
    if status == -signal.SIGSYS:
        return "a seccomp filter ends the process; allow setgroups, setresgid, setresuid and capset (SystemCallFilter=)"
    return f"the child that tried ended with status {status}"


def _explain(run_as: RunAs | None, call: str, code: int) -> str:
    reason = f"{call}: {os.strerror(code) if code else 'no effect'}"
    name = call.partition("(")[0]
    if run_as is None or name in {"capget", "capset", "prctl"}:
        return f"workers cannot give up capabilities: {reason}; allow {name} in the seccomp filter (SystemCallFilter=)"
    if code == errno.EINVAL:
        return (
            f'daemon.user: user and groups of "{run_as.user}" (uid {run_as.uid}, gid {run_as.gid}) are not all mapped '
            f"in this user namespace ({reason}); map them, or name a user that is mapped"
        )
    if call == "setgroups" and _setgroups_denied():
        return (
            f'daemon.user: workers cannot run as "{run_as.user}": this user namespace denies setgroups(2); start echod '
            "as another user than root, or map more than one id with newuidmap(1) and newgidmap(1)"
        )
    effective = _capabilities()[0]
    missing = [name for name, number in _NEEDED.items() if not effective >> number & 1]
    if code == errno.EPERM and missing:
        return (
            f'daemon.user: workers cannot run as "{run_as.user}": echod lacks {_list(missing)} ({reason}); '
            "grant what is missing, or start echod as another user than root"
        )
    return f'daemon.user: workers cannot run as "{run_as.user}": {reason}'


def _lookup(user: str, group: str) -> RunAs:
    account = _account(user)
    if account.pw_uid == 0:
        raise StartError(f'daemon.user: "{user}" is root, and workers never run as root; name another user')
    gid = _gid(group) if group else account.pw_gid
    groups = tuple(os.getgrouplist(account.pw_name, gid))
    if 0 in groups:
        raise StartError(f'daemon.user: "{user}" is in group root, and workers never are; name another user or group')
    return RunAs(account.pw_name, group or _group_name(gid), account.pw_uid, gid, groups)


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise StartError(f'daemon.user: there is no user "{user}"; create it or name another one') from None


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise StartError(f'daemon.group: there is no group "{group}"; create it or name another one') from None


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:  # an account's own group needs no name
        return str(gid)


def _drop_bounding_set() -> None:
    if not _capabilities()[0] >> _CAP_SETPCAP & 1:
        return
    number = 0
    while (held := _libc.prctl(_PR_CAPBSET_READ, *_words(number, 0, 0, 0))) >= 0:
        if held:
            _call("prctl(PR_CAPBSET_DROP)", _libc.prctl, _PR_CAPBSET_DROP, *_words(number, 0, 0, 0))
        number += 1


def _verify(run_as: RunAs | None) -> None:
    if run_as:
        for call, found, expected in (
            ("setgroups", set(os.getgroups()), set(run_as.groups)),
            ("setresgid", os.getresgid(), (run_as.gid,) * 3),
            ("setresuid", os.getresuid(), (run_as.uid,) * 3),
        ):
            if found != expected:
                raise DropError(call, 0)
    if any(_capabilities()):  # and the ambient ones: they never exceed what is permitted and inheritable
        raise DropError("capset", 0)
    if _libc.prctl(_PR_GET_NO_NEW_PRIVS, *_words(0, 0, 0, 0)) != 1:
        raise DropError("prctl(PR_SET_NO_NEW_PRIVS)", 0)


def _capabilities() -> tuple[int, int, int]:
    """Return the effective, the permitted and the inheritable set of this process (capget(2))."""
    words = (ctypes.c_uint32 * _CAPABILITY_WORDS)()
    _call("capget", _libc.capget, _header(), words)
    return words[0] | words[3] << 32, words[1] | words[4] << 32, words[2] | words[5] << 32


def _header() -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)


def _words(*values: int) -> list[ctypes.c_ulong]:
    return list(map(ctypes.c_ulong, values))  # prctl(2) looks at all 64 bits


def _call(name: str, function: Callable[..., int | None], *arguments: object) -> None:
    """Call one of libc's functions or its wrapper of `os`; raise DropError."""
    try:
        failed = function(*arguments) or 0
    except OSError as error:
        raise DropError(name, error.errno or 0) from None
    if failed < 0:
        raise DropError(name, ctypes.get_errno())


def _setgroups_denied() -> bool:
    try:
        return Path("/proc/self/setgroups").read_text().strip() == "deny"
    except OSError:
        return False


def _list(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
