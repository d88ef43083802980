"""Giving up root, completely and verifiably.

Rule: groups first, then the group, then the user, then proof. python-daemon's own way is not used: it calls initgroups
or setgid, never both, and leaves root's groups or root's group behind.

Fails: StartError when the user or group does not exist, RuntimeError when the kernel did not do what was asked.
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

from echod.errors import StartError

UNPRIVILEGED = "nobody"


@dataclass(frozen=True)
class Identity:
    """Who a worker becomes."""

    user: str
    group: str
    uid: int
    gid: int


def identity(user: str, group: str) -> Identity | None:
    """Return whom workers become: `user`, nobody when that is empty, or None when this process is not root's."""
    if os.geteuid() != 0:
        if user and user not in (account.pw_name for account in pwd.getpwall() if account.pw_uid == os.geteuid()):
            raise StartError(f'daemon.user: only root can become "{user}"; start as root or leave the key out')
        if group and group not in (entry.gr_name for entry in grp.getgrall() if entry.gr_gid == os.getegid()):
            raise StartError(f'daemon.group: only root can become "{group}"; start as root or leave the key out')
        return None
    try:
        account = pwd.getpwnam(user or UNPRIVILEGED)
    except KeyError:
        raise StartError(f'daemon.user: there is no user "{user or UNPRIVILEGED}"') from None
    if account.pw_uid == 0:
        raise StartError(f'daemon.user: workers never run as root, and "{account.pw_name}" is root')
    try:
        entry = grp.getgrnam(group) if group else grp.getgrgid(account.pw_gid)
    except KeyError:
        raise StartError(f'daemon.group: there is no group "{group or account.pw_gid}"') from None
    if 0 in os.getgrouplist(account.pw_name, entry.gr_gid):
        raise StartError(f'daemon.user: workers never have root\'s group, and "{account.pw_name}" would')
    return Identity(account.pw_name, entry.gr_name, account.pw_uid, entry.gr_gid)


def become(who: Identity) -> None:
    """Turn this process into `who`, for good."""
    os.initgroups(who.user, who.gid)
    os.setresgid(who.gid, who.gid, who.gid)
    os.setresuid(who.uid, who.uid, who.uid)
    if os.getresuid() != (who.uid,) * 3 or os.getresgid() != (who.gid,) * 3 or 0 in os.getgroups():
        raise RuntimeError("privileges could not be dropped")
