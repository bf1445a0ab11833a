# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The allocation a batch system gave to a job: what every scheduler adapter produces."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from . import names
from .errors import RequestError

HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})")
"""What a host name may look like (RFC 1123, plus the underscore that sites do use)."""


@dataclasses.dataclass(frozen=True)
class HostSlots:
    """One host of an allocation and the number of slots given on it."""

    name: str
    slots: int


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A job's hosts, in the order of its nodes; ``hosts[0]`` carries node_0, the master.

    Attributes:
        scheduler: name of the adapter that read it (``lsf``, ``slurm``).
        number: the batch system's job number.
        array_index: index of the element in a job array, which may be 0; None for a job that is none.
        hosts: every host once, with its slots.
        name: the job's name, text of the user's; for display only.
    """

    scheduler: str
    number: int
    array_index: int | None
    hosts: tuple[HostSlots, ...]
    name: str = ""

    @property
    def job_id(self) -> str:
        """The job id of :mod:`names`, from the number and the array index."""
        return names.job_id_of(self.number, self.array_index)

    @property
    def slots(self) -> int:
        """All slots of the allocation."""
        return sum(host.slots for host in self.hosts)


def merge_hosts(pairs: Iterable[tuple[str, int]], source: str) -> tuple[HostSlots, ...]:
    """Add up the slots of each host, in the order of first appearance.

    Args:
        pairs: host name and slots, a host may come more than once.
        source: where they came from, for the message.

    Raises:
        RequestError: a name or a count that can't be one, or no host at all.
    """
    merged: dict[str, int] = {}
    for name, slots in pairs:
        if not HOST_NAME.fullmatch(name):
            raise RequestError(f"{source}: {name!r} is no host name")
        if slots < 1:
            raise RequestError(f"{source}: host {name} has {slots} slots; at least 1 is needed")
        merged[name] = merged.get(name, 0) + slots
    if not merged:
        raise RequestError(f"{source} names no host; is this running inside a batch job?")
    return tuple(HostSlots(name, slots) for name, slots in merged.items())


def is_one_of(host: str, patterns: Iterable[str]) -> bool:
    """Tell whether one of *patterns* (fnmatch(3)) matches the name."""
    return any(fnmatchcase(host, pattern) for pattern in patterns)


def without(allocation: Allocation, patterns: Collection[str]) -> Allocation:
    """Leave out hosts by patterns of their names; there may be none left."""
    hosts = tuple(host for host in allocation.hosts if not is_one_of(host.name, patterns))
    return dataclasses.replace(allocation, hosts=hosts)


def inventory_of(allocation: Allocation, host_variables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Build the Ansible inventory of an allocation: one group, ``allocation``.

    Args:
        allocation: the job's hosts.
        host_variables: per host name, what to add to the variables of that host.

    Returns:
        The structure that the YAML inventory plugin reads.
    """
    hosts = {
        host.name: {
            "dockerjob_slots": host.slots,
            "dockerjob_node_index": index,
            **host_variables.get(host.name, {}),
        }
        for index, host in enumerate(allocation.hosts)
    }
    group = {"hosts": hosts, "vars": {"dockerjob_job_id": allocation.job_id}}
    return {"all": {"children": {"allocation": group}}}
