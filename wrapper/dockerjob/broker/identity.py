# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who asks: the account behind ``SUDO_UID``, never a name from the request."""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
from collections.abc import Mapping
from pathlib import PurePosixPath

from dockerjob_core.errors import PolicyError

NOBODY = 65534
"""Who owns what nobody shall own: a squashed root of NFS, for one."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """An account as NSS knows it; ``groups`` are its group ids but the system's, the primary one first."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    def passwd(self, home: str) -> str:
        """Text of the ``/etc/passwd`` that the job's containers get (passwd(5))."""
        return (
            "root:x:0:0:root:/root:/usr/sbin/nologin\n"
            f"{self.name}:x:{self.uid}:{self.gid}::{home}:{self.shell}\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        )

    def group(self) -> str:
        """Text of the ``/etc/group`` that the job's containers get (group(5))."""
        lines = ["root:x:0:"]
        lines += [f"{_group_name(gid)}:x:{gid}:{self.name}" for gid in self.groups if gid != 0]
        return "\n".join([*lines, "nogroup:x:65534:"]) + "\n"


NO_LOGIN = frozenset(("nologin", "false"))
"""Programs that stand where an account's shell would, so that nobody works with it."""


def caller_uid(environment: Mapping[str, str]) -> int:
    """Return the uid of who called sudo, whatever account that is.

    Raises:
        PolicyError: not called through sudo.
    """
    text = environment.get("SUDO_UID", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise PolicyError("the broker is called by hpc_submit_dockerjob, through sudo; SUDO_UID is missing")
    return int(text)


def caller(environment: Mapping[str, str], minimum_uid: int, minimum_gid: int = 1000) -> Identity:
    """Resolve the user who called sudo.

    Args:
        environment: the broker's own environment, which sudo made.
        minimum_uid: accounts below it are the system's and are refused.
        minimum_gid: supplementary groups below it are the system's, such as docker, disk or shadow.
            Their numbers mean other groups on other hosts and in images, so containers don't get them.

    Raises:
        PolicyError: not called through sudo, unknown, a system account, or one nobody may work with.
    """
    uid = caller_uid(environment)
    try:
        entry = pwd.getpwuid(uid)
    except KeyError as error:
        raise PolicyError(f"uid {uid} has no account on this host") from error
    if uid < minimum_uid or uid == NOBODY:
        raise PolicyError(f"{entry.pw_name} (uid {uid}) is a system account; jobs run as ordinary users only")
    if entry.pw_gid == 0:
        raise PolicyError(f"the primary group of {entry.pw_name} is root's; jobs run as ordinary users only")
    if PurePosixPath(entry.pw_shell).name in NO_LOGIN:
        raise PolicyError(f"the account {entry.pw_name} is closed: its shell is {entry.pw_shell}")
    groups = set(os.getgrouplist(entry.pw_name, entry.pw_gid)) - {entry.pw_gid}
    ordered = (entry.pw_gid, *sorted(gid for gid in groups if gid >= minimum_gid))
    return Identity(
        entry.pw_name, uid, entry.pw_gid, ordered, entry.pw_dir or "/", entry.pw_shell or "/bin/sh"
    )


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"group{gid}"
