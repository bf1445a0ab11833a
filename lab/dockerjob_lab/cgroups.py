# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's cgroups: one per host in every hierarchy, cgroup v1, v2 or both.

In cgroup v2 a group with processes can't hand controllers to the groups below it, where
Docker's containers are; so processes are put into groups without others below them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .model import LabError
from .system import wait_until

KILL_TIMEOUT = 20.0


@cache
def hierarchies() -> tuple[Path, ...]:
    """Mount points of all cgroup hierarchies of this machine."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] in ("cgroup", "cgroup2"):
            found.append(Path(fields.split(" ")[4]))
    if not found:
        raise LabError("no cgroup hierarchy is mounted below /sys/fs/cgroup; Docker can't run here")
    return tuple(found)


def _inherit_cpuset(group: Path) -> None:
    """Fill an empty v1 cpuset from its parent; without CPUs it takes no process."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = group / name
        if file.exists() and not file.read_text().strip() and (group / "cgroup.clone_children").exists():
            file.write_text((group.parent / name).read_text())


def create(cgroup: str) -> bool:
    """Make *cgroup* in every hierarchy; True if anything was missing."""
    changed = False
    for hierarchy in hierarchies():
        group = hierarchy
        for part in cgroup.strip("/").split("/"):
            group = group / part
            if not group.is_dir():
                group.mkdir(exist_ok=True)  # another job may be at it
                changed = True
            _inherit_cpuset(group)
    return changed


def join(cgroup: str, pid: int = 0) -> None:
    """Put process *pid* (0: this one) into *cgroup*."""
    for hierarchy in hierarchies():
        (hierarchy / cgroup.strip("/") / "cgroup.procs").write_text(str(pid))


def _groups(cgroup: str) -> Iterator[Path]:
    """Every directory of *cgroup* in every hierarchy, the deepest first."""
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy / cgroup.strip("/"), topdown=False):
            yield Path(directory)


def processes(cgroup: str) -> set[int]:
    """Ids of all processes in *cgroup* and below, in any hierarchy."""
    found: set[int] = set()
    for group in _groups(cgroup):
        try:
            found.update(int(pid) for pid in (group / "cgroup.procs").read_text().split())
        except OSError:  # the group went away meanwhile, or is a threaded one of v2
            continue
    return found - {0}


def kill(pids: set[int]) -> None:
    """Send SIGKILL to each of *pids* that still exists."""
    for pid in pids - {os.getpid()}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def kill_all(cgroup: str) -> bool:
    """End every process in *cgroup*; True if there was any."""
    found = processes(cgroup)
    if not found:
        return False

    def gone() -> bool:
        left = processes(cgroup)
        kill(left)
        return not left

    if not wait_until(gone, KILL_TIMEOUT):
        left = sorted(processes(cgroup))
        raise LabError(f"processes {left} of {cgroup} don't end; look with: ps -o pid,stat,wchan,args")
    return True


def remove(cgroup: str) -> bool:
    """Remove *cgroup* from every hierarchy; it must hold no process. True if it was there."""
    changed = False
    for group in _groups(cgroup):

        def removed(group: Path = group) -> bool:
            try:
                group.rmdir()
            except FileNotFoundError:
                return True
            except OSError:  # busy for a moment after its last process ended
                return False
            return True

        changed = True
        if not wait_until(removed, 5):
            raise LabError(f"the cgroup {group} can't be removed: something is still using it")
    return changed


def memory_bytes(cgroup: str) -> int | None:
    """Memory that *cgroup* uses now, where the machine tells."""
    for hierarchy in hierarchies():
        for name in ("memory.usage_in_bytes", "memory.current"):
            file = hierarchy / cgroup.strip("/") / name
            if file.exists():
                return int(file.read_text())
    return None
