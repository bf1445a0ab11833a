# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cgroup of a job on this host: the parent of its container's.

A container's own cgroup goes with its last process, and all counters with it.  The job's stays
until the takedown has read what was used, by everything below it and from beginning to end: so
nobody has to look while COMMAND computes.

Files and units are those of the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
What a kernel does not count is ``None``: peaks of memory in v2 before 5.19, for example, and block
devices in v1, which forgets what a cgroup below has read and written when that is removed.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from . import names
from .command import run
from .errors import HostError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

MOUNTS = "/proc/self/mountinfo"
LINKS = "/proc/self/net/dev"
PATIENCE = 2.0
"""Seconds in which a cgroup lets go of processes that have ended."""

_SLICE = re.compile(r"[A-Za-z0-9:_.]+(-[A-Za-z0-9:_.]+)*\.slice")


@dataclass(frozen=True)
class Usage:
    """What a job has used on a host: seconds, and bytes; ``None`` is not known."""

    cpu: float | None = None
    cpu_user: float | None = None
    cpu_system: float | None = None
    memory: int | None = None
    block_read: int | None = None
    block_written: int | None = None
    network_received: int | None = None
    network_sent: int | None = None

    def with_traffic(self, counted: tuple[int, int] | None) -> Usage:
        """Add what :func:`traffic` has counted."""
        return replace(self, network_received=counted[0], network_sent=counted[1]) if counted else self

    def as_dict(self) -> dict[str, float | int | None]:
        """Return it as plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Hierarchies:
    """Where cgroups are mounted as a whole: v1 by controller (or ``name=…``), and v2."""

    controllers: Mapping[str, str] = field(default_factory=dict)
    unified: str | None = None

    @classmethod
    def of(cls, mountinfo: str) -> Hierarchies:
        """Read them from the text of ``/proc/PID/mountinfo`` (proc(5))."""
        controllers: dict[str, str] = {}
        unified = None
        for line in mountinfo.splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.partition(" ")
            root, point = before.split(" ")[3:5]
            if root != "/":
                continue
            if kind == "cgroup2":
                unified = unified or point
            elif kind == "cgroup":
                for option in options.rpartition(" ")[2].split(","):
                    controllers.setdefault(option, point)
        return cls(controllers, unified)

    @classmethod
    def here(cls) -> Hierarchies:
        """Read those of this host."""
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            return cls.of(mounts.read())

    def point(self, hierarchy: str) -> str | None:
        """Return where one is mounted that ``/proc/PID/cgroup`` names: by its controllers, "" is v2 (cgroups(7))."""
        return self.controllers.get(hierarchy.split(",")[0]) if hierarchy else self.unified

    @property
    def points(self) -> tuple[str, ...]:
        """All mount points, each once."""
        return tuple(dict.fromkeys((*self.controllers.values(), *((self.unified,) if self.unified else ()))))


@dataclass(frozen=True)
class JobCgroup:
    """A job's cgroup: *parent* is what the Docker daemon is told, *path* where it is below each mount point."""

    parent: str
    path: str
    hierarchies: Hierarchies

    @classmethod
    def of(cls, job_id: str, file: str = names.CGROUP_PARENT_FILE) -> JobCgroup | None:
        """Return the job's on this host; ``None`` if the host is not prepared for them.

        Raises:
            HostError: what *file* holds is no cgroup.
        """
        try:
            with open(file, encoding="utf-8") as content:
                above = content.read().strip()
        except FileNotFoundError:
            return None
        parent, path = place(names.cgroup_name(job_id), above)
        return cls(parent, path, Hierarchies.here())

    def exists(self) -> bool:
        """Tell whether there is anything of it."""
        return any(os.path.isdir(point + self.path) for point in self.hierarchies.points)

    def usage(self) -> Usage:
        """Read what its processes have used until now, those that have ended included."""
        user, system, cpu = self._cpu()
        read, written = self._block()
        return Usage(cpu, user, system, self._memory(), read, written)

    def _cpu(self) -> tuple[float | None, float | None, float | None]:
        if "cpuacct" in self.hierarchies.controllers:
            total = _number(self._read("cpuacct", "cpuacct.usage"))
            split = _fields(self._read("cpuacct", "cpuacct.stat"))
            ticks = os.sysconf("SC_CLK_TCK")
            return _part(split.get("user"), ticks), _part(split.get("system"), ticks), _part(total, 10**9)
        stat = _fields(self._read("cpu", "cpu.stat"))
        user, system, total = (stat.get(f"{name}_usec") for name in ("user", "system", "usage"))
        return _part(user, 10**6), _part(system, 10**6), _part(total, 10**6)

    def _memory(self) -> int | None:
        v1 = "memory" in self.hierarchies.controllers
        return _number(self._read("memory", "memory.max_usage_in_bytes" if v1 else "memory.peak"))

    def _block(self) -> tuple[int | None, int | None]:
        text = None if "blkio" in self.hierarchies.controllers else self._read("io", "io.stat")
        if text is None:
            return None, None
        counted: dict[str, int] = {"rbytes": 0, "wbytes": 0}
        for name, number in re.findall(r"\b([rw]bytes)=(\d+)", text):
            counted[name] += int(number)
        return counted["rbytes"], counted["wbytes"]

    def _read(self, controller: str, file: str) -> str | None:
        """Return a file of the cgroup, ``None`` if there is none: the controller is in v1, or in v2."""
        point = self.hierarchies.controllers.get(controller, self.hierarchies.unified)
        try:
            with open(f"{point}{self.path}/{file}", encoding="ascii") as content:
                return content.read()
        except OSError:
            return None

    def remove(self) -> None:
        """Remove it, and what a container has left below it.

        Raises:
            HostError: there is still a process in it.
        """
        if self.parent.endswith(".slice"):
            run(("systemctl", "stop", self.parent))
        end = time.monotonic() + PATIENCE
        for point in self.hierarchies.points:
            while not _removed(point + self.path):
                if time.monotonic() > end:
                    raise HostError(f"the cgroup {point}{self.path} is still in use")
                time.sleep(0.02)


def place(name: str, above: str) -> tuple[str, str]:
    """Return how the Docker daemon calls the cgroup *name* below *above*, and its path.

    Its driver ``cgroupfs`` takes a path, ``/site``, and ``systemd`` a slice, ``site.slice``, whose
    name holds those above it (systemd.slice(5)).

    Raises:
        HostError: *above* is neither.
    """
    if _SLICE.fullmatch(above):
        parts = [*above.removesuffix(".slice").split("-"), name]
        slices = ("-".join(parts[: count + 1]) + ".slice" for count in range(len(parts)))
        path = "".join(f"/{part}" for part in slices)
        return path.rpartition("/")[2], path
    if not above.startswith("/") or os.path.normpath(above) != above:
        raise HostError(f"{names.CGROUP_PARENT_FILE} holds no path of a cgroup and no slice: {above!r}")
    path = f"{above.rstrip('/')}/{name}"
    return path, path


def bound_to(patterns: Sequence[str], hierarchies: Hierarchies | None = None) -> str | None:
    """Return the CPUs of the newest cgroup that one of *patterns* names, ``None`` if there is none.

    That is the batch system's own for a job: of an earlier run of the same id one may be left.
    """
    if not patterns:
        return None
    found = hierarchies or Hierarchies.here()
    v1 = found.controllers.get("cpuset")
    point, file = (v1, "cpuset.cpus") if v1 else (found.unified, "cpuset.cpus.effective")
    return (_newest(point, patterns, file) or "").strip() or None


def permitted_devices(patterns: Sequence[str], hierarchies: Hierarchies | None = None) -> str | None:
    """Return ``devices.list`` of the newest cgroup that one of *patterns* names, ``None`` if there is none.

    In cgroup v2 there is no such list: a program decides, and nobody can read what.
    """
    if not patterns:
        return None
    point = (hierarchies or Hierarchies.here()).controllers.get("devices")
    return _newest(point, patterns, "devices.list") if point else None


def _newest(point: str | None, patterns: Sequence[str], file: str) -> str | None:
    groups = [group for pattern in patterns for group in glob.glob(f"{point}/{pattern}/{file}")]
    try:
        with open(max(groups, key=lambda group: os.stat(group).st_ctime), encoding="ascii") as content:
            return content.read()
    except (OSError, ValueError):
        return None  # there is none, or none any more


def traffic(links: Collection[str], file: str = LINKS) -> tuple[int, int] | None:
    """Return the bytes that containers got and sent, from their links' ends on this host; ``None`` if one is gone."""
    with open(file, encoding="ascii") as content:
        lines = (line.partition(":") for line in content)
        counted = {name.strip(): numbers.split() for name, colon, numbers in lines if colon}
    if not links or not counted.keys() >= set(links):
        return None
    # What the host receives is what the container sends (proc(5): the 1st column is received, the 9th sent).
    return sum(int(counted[link][8]) for link in links), sum(int(counted[link][0]) for link in links)


def _removed(path: str) -> bool:
    """Remove the directories of a cgroup, the deepest first; False while one is busy."""
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise HostError(f"cannot remove the cgroup {directory}: {error.strerror}") from error
    return True


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdigit() else None


def _fields(text: str | None) -> Mapping[str, int]:
    """Read lines of a name and a number."""
    pairs = (line.split() for line in (text or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _part(number: int | None, unit: int) -> float | None:
    return None if number is None else round(number / unit, 3)
