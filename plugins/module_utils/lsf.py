# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LSF: from the environment of a job to its allocation.

The forms of the variables are those of IBM's "Environment variables set for job
execution" and of recorded jobs: ``LSB_HOSTS`` names a host once per slot and is left
out when it would reach 4096 characters; ``LSB_MCPU_HOSTS`` is always complete, ends in
a blank, and may name a host twice; their orders may differ, as multisets they agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from .allocation import Allocation, HostSlots, merge_hosts
from .errors import RequestError

VARIABLES = (
    "LSB_JOBID",
    "LSB_JOBINDEX",
    "LSB_JOBNAME",
    "LSB_HOSTS",
    "LSB_MCPU_HOSTS",
    "LSB_DJOB_HOSTFILE",
    "LSB_DJOB_NUMPROC",
)
"""All variables that are read here."""


def is_present(environment: Mapping[str, str]) -> bool:
    """Tell whether *environment* is that of an LSF job."""
    return "LSB_JOBID" in environment


def read_allocation(environment: Mapping[str, str], read_file: Callable[[str], str]) -> Allocation:
    """Read the allocation from the environment of an LSF job.

    Slots come from ``LSB_MCPU_HOSTS``, else the file ``LSB_DJOB_HOSTFILE`` names, else
    ``LSB_HOSTS``.  The order is that of ``LSB_HOSTS`` where it is set, since its first
    host is the one the job runs on.

    Args:
        environment: the job's variables.
        read_file: returns the text of a file; called with ``LSB_DJOB_HOSTFILE`` only.

    Raises:
        RequestError: a variable is missing or malformed, or two of them contradict.
    """
    per_slot = environment.get("LSB_HOSTS", "").split()
    hosts, source = _hosts(environment, per_slot, read_file)
    if per_slot:
        hosts = _in_order(hosts, per_slot, source)
    given = sum(host.slots for host in hosts)
    told = environment.get("LSB_DJOB_NUMPROC", "")
    if told and _number("LSB_DJOB_NUMPROC", told) != given:
        raise RequestError(f"LSB_DJOB_NUMPROC is {told}, but {source} gives {given} slots")
    return Allocation(
        scheduler="lsf",
        number=_number("LSB_JOBID", environment.get("LSB_JOBID", "")),
        array_index=_number("LSB_JOBINDEX", environment.get("LSB_JOBINDEX", "") or "0", least=0),
        hosts=hosts,
        name=environment.get("LSB_JOBNAME", ""),
    )


def _hosts(
    environment: Mapping[str, str], per_slot: list[str], read_file: Callable[[str], str]
) -> tuple[tuple[HostSlots, ...], str]:
    counts = environment.get("LSB_MCPU_HOSTS", "").split()
    if counts:
        if len(counts) % 2:
            raise RequestError("LSB_MCPU_HOSTS is not a list of pairs 'host slots'")
        pairs = zip(counts[::2], counts[1::2], strict=True)
        return (
            merge_hosts(((host, _number("LSB_MCPU_HOSTS", n)) for host, n in pairs), "LSB_MCPU_HOSTS"),
            "LSB_MCPU_HOSTS",
        )
    path = environment.get("LSB_DJOB_HOSTFILE", "")
    if path:
        try:
            lines = read_file(path).split()
        except OSError as error:
            raise RequestError(f"LSB_DJOB_HOSTFILE {path}: {error.strerror}") from error
        return merge_hosts(((host, 1) for host in lines), "LSB_DJOB_HOSTFILE"), "LSB_DJOB_HOSTFILE"
    if not per_slot:
        raise RequestError(
            "none of LSB_MCPU_HOSTS, LSB_DJOB_HOSTFILE and LSB_HOSTS is set; is this running inside an LSF job?"
        )
    return merge_hosts(((host, 1) for host in per_slot), "LSB_HOSTS"), "LSB_HOSTS"


def _in_order(hosts: tuple[HostSlots, ...], per_slot: list[str], source: str) -> tuple[HostSlots, ...]:
    if Counter({host.name: host.slots for host in hosts}) != Counter(per_slot):
        raise RequestError(f"LSB_HOSTS and {source} name different hosts or slots")
    first_seen = {name: place for place, name in reversed(list(enumerate(per_slot)))}
    return tuple(sorted(hosts, key=lambda host: first_seen[host.name]))


def _number(variable: str, text: str, least: int = 1) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) < least:
        raise RequestError(f"{variable} is {text!r}; expected a whole number from {least}")
    return int(text)
