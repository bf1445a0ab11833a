# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a host a node may use: what the batch system gave to the job there, at most what the site allows.

Nothing here comes from the user's side: what he wants less of, he asks the batch system for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection

from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import RequestError
from dockerjob_core.schedulers.base import BatchRecord

from ..config import ContainerSettings

LEAST_MEMORY = 64 << 20
"""Bytes without which a node can't even start: agent and sshd need half of them."""


@dataclasses.dataclass(frozen=True)
class NodeLimits:
    """CPUs and which, and bytes of memory and of swap beyond; ``None`` is no limit."""

    cpus: float | None = None
    cpuset: str | None = None
    memory: int | None = None
    swap: int = 0


def job_limits(
    site: ContainerSettings, record: BatchRecord, allocation: Allocation, cpus_here: Collection[int] = ()
) -> dict[str, NodeLimits]:
    """Return the limits of each node by its host.

    Args:
        site: the site's settings of containers.
        record: what the batch system says of the job.
        allocation: its hosts.
        cpus_here: the CPUs that the job's processes on its first host are bound to, if they are.

    Raises:
        RequestError: that would be too little memory for a container to start.
    """
    limits = {host.name: _node_limits(site, record, host, allocation.slots) for host in allocation.hosts}
    first = allocation.hosts[0].name
    limits[first] = dataclasses.replace(limits[first], cpuset=cpu_list(cpus_here) or None)
    return limits


def _node_limits(site: ContainerSettings, record: BatchRecord, host: HostSlots, slots: int) -> NodeLimits:
    ceiling = None if site.memory_per_slot is None else site.memory_per_slot * host.slots
    given = [limit for limit in (ceiling, record.memory_on(host, slots)) if limit is not None]
    memory = min(given) if given else None
    if memory is not None and memory < LEAST_MEMORY:
        raise RequestError(
            f"the job may use {memory >> 20} MiB of memory on {host.name}, and a container needs "
            f"{LEAST_MEMORY >> 20} MiB to start; ask for more memory"
        )
    cpus = None if site.cpus_per_slot is None else site.cpus_per_slot * record.cpus_on(host, slots)
    return NodeLimits(cpus=cpus, memory=memory, swap=site.swap_per_slot * host.slots)


def bound_cpus() -> Collection[int]:
    """Return the CPUs that this process may use, none if these are all of the host's.

    A broker is among the processes of its job: it has the cpuset that the batch system gave to them.
    A user can bind his processes to fewer before he calls it, and to more only where they could
    have run anyway.
    """
    mine = os.sched_getaffinity(0)
    return mine if len(mine) < (os.cpu_count() or 1) else ()


def cpu_list(cpus: Collection[int]) -> str:
    """Write CPUs as cpuset(7) does: ``0-3,8``."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)
