# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guard takes the broker on its host out of the job's cgroup, into its own, and looks whether the job is frozen.

Batch systems that track a job by its cgroup (Slurm's proctrack/cgroup, LSF with
LSF_PROCESS_TRACKING) freeze and kill all that is in there.  The broker can't leave by itself, for
cgroups are root's; the guard, which sshd has started, is outside, and is root.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cgroup import Hierarchies
from .errors import HostError

if TYPE_CHECKING:
    from collections.abc import Mapping

ROUNDS = 10
"""Looks at a cgroup until none is left there: a process may fork between being seen and being moved."""

FREEZERS = {"freezer": "freezer.state", "": "cgroup.events"}
"""Files that say so, by hierarchy: where there is one of v1, that is the one that batch systems use."""


@dataclass(frozen=True)
class Freezer:
    """Where the kernel says whether a cgroup is frozen, by itself or by one above it."""

    path: str

    def frozen(self) -> bool | None:
        """Tell whether it is; None when there is no such cgroup any more."""
        try:
            with open(self.path, encoding="ascii") as file:
                # "FROZEN" in freezer.state (v1), "frozen 1" among the lines of cgroup.events (v2).
                text = file.read()
        except OSError:
            return None
        return text.startswith("FROZEN") or "frozen 1\n" in text


@dataclass(frozen=True)
class _Stat:
    """Fields of /proc/PID/stat (proc(5)): the name, the parent, and when it started, in clock ticks after boot."""

    name: str
    parent: int
    start: int


def identity() -> dict[str, Any]:
    """Return what names this process, and no other on whatever host."""
    return {"pid": os.getpid(), **_marks(os.getpid())}


def adopt(who: Mapping[str, Any]) -> Freezer | None:
    """Move the process *who*, and all of its account in the same cgroups, into this process's own.

    Args:
        who: as :func:`identity` says; one that is not on this host is none of ours.

    Returns:
        where the job's cgroup says whether it is frozen; None if the process was in none of its own.

    Raises:
        HostError: the kernel refuses it.
    """
    pid = int(who["pid"])
    freezers: dict[str, Freezer] = {}
    try:
        if who != {"pid": pid, **_marks(pid)}:
            return None
        account = _account(pid)
        own, theirs = _memberships("self"), _memberships(str(pid))
        hierarchies = Hierarchies.here()
        for hierarchy, here in own.items():
            there, mount = theirs.get(hierarchy), hierarchies.point(hierarchy)
            if mount is not None and there is not None and there != here:
                _move(f"{mount}{there}", f"{mount}{here}", account)
                if hierarchy in FREEZERS:
                    freezers[hierarchy] = Freezer(f"{mount}{there}/{FREEZERS[hierarchy]}")
    except (FileNotFoundError, ProcessLookupError):
        return None  # it has ended
    except OSError as error:
        raise HostError(f"can't take the broker out of the job's cgroup: {error}") from error
    return next((freezers[name] for name in FREEZERS if name in freezers), None)


def _marks(pid: int) -> dict[str, Any]:
    """What tells a process from another with its number: when it began, in which namespace, since which boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return {"start": _stat(pid).start, "namespace": os.readlink(f"/proc/{pid}/ns/pid"), "boot": boot}


def _stat(pid: int) -> _Stat:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        # The name, in parentheses, may hold anything.
        before, _, after = file.read().rpartition(")")
    fields = after.split()
    return _Stat(before.partition("(")[2], int(fields[1]), int(fields[19]))


def _account(pid: int) -> int:
    """Return the real uid."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Uid:"))


def _memberships(process: str) -> dict[str, str]:
    """Return the path of a process's cgroup per hierarchy: by its controllers, none for v2 (cgroups(7))."""
    with open(f"/proc/{process}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        fields = (line.rstrip("\n").split(":", 2) for line in file)
        return {controllers: path for _, controllers, path in fields}


def _move(source: str, target: str, account: int) -> None:
    for _ in range(ROUNDS):
        found = _brokers(f"{source}/cgroup.procs", account)
        if not found:
            break
        for pid in found:
            with suppress(ProcessLookupError), open(f"{target}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(pid))


def _brokers(procs: str, account: int) -> list[int]:
    """Return the processes listed in *procs* that are of the account, and the sudo that started them.

    No other: whoever calls the broker by hand must not get a process of his own out of the job.
    """
    with open(procs, encoding="ascii") as file:
        listed = [int(line) for line in file]
    ours, parents, roots = [], set(), []
    for pid in listed:
        with suppress(FileNotFoundError, ProcessLookupError):
            owner, stat = _account(pid), _stat(pid)
            if owner == account:
                ours.append(pid)
                parents.add(stat.parent)
            elif owner == 0 and stat.name == "sudo":
                roots.append(pid)
    return ours + [pid for pid in roots if pid in parents]
