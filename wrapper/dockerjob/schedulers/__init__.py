# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Batch systems: what the adapters of :mod:`dockerjob_core.schedulers` have in common.

The wrapper reads allocations, and has to start fast; what the broker needs to prove them is
imported when it does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dockerjob_core import schedulers
from dockerjob_core.allocation import Allocation, without
from dockerjob_core.errors import BatchError, PolicyError, RequestError
from dockerjob_core.schedulers.base import BatchRecord, BatchSystem, Phase

if TYPE_CHECKING:
    from ..config import BatchSettings, SystemSettings

SITE_FILE = Path("/etc/default/dockerjob")
"""What a site tells the wrapper: DOCKERJOB_BATCH, where a user's own variable wins, and its scratch space."""


class RunLimit(NamedTuple):
    """The *seconds* that a job has left from now on, and *what* says so."""

    seconds: int
    what: str


def read_allocation(environment: Mapping[str, str], site_file: Path = SITE_FILE) -> Allocation:
    """Find the batch system whose job this is and read its allocation.

    Raises:
        RequestError: no batch system is recognised, or its variables contradict.
    """
    chosen = environment.get(schedulers.OVERRIDE, "") or site_setting(schedulers.OVERRIDE, site_file)
    return schedulers.read_allocation(
        environment, lambda path: Path(path).read_text(encoding="utf-8"), chosen
    )


def site_setting(name: str, path: Path = SITE_FILE) -> str:
    """Return what the site has set *name* to; empty if nothing."""
    prefix = f"{name}="
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(prefix):
                return line.removeprefix(prefix).strip()
    return ""


def on_compute_hosts(settings: BatchSettings, allocation: Allocation) -> Allocation:
    """Leave out the launch nodes that the batch system lists, and that don't compute.

    Raises:
        RequestError: no host is left.
    """
    section = settings.of(allocation.scheduler)
    if section is None or not section.launch_nodes:
        return allocation
    computing = without(allocation, section.launch_nodes)
    if not computing.hosts:
        names = ", ".join(host.name for host in allocation.hosts)
        raise RequestError(f"the job has no host but launch nodes ({names}); ask for compute hosts")
    return computing


def command_environment(allocation: Allocation) -> Mapping[str, str]:
    """Return the variables of the batch system's that COMMAND gets."""
    system = schedulers.SYSTEMS.get(allocation.scheduler)
    return system.command_environment(allocation) if system else {}


def array_variables(allocation: Allocation) -> tuple[str, ...]:
    """Return the names of the variables that say more of an array's element, which COMMAND gets too."""
    system = schedulers.SYSTEMS.get(allocation.scheduler)
    return system.array_variables if system and allocation.array_index is not None else ()


def job_cgroups(allocation: Allocation, uid: int) -> tuple[str, ...]:
    """Return patterns of the cgroup that the batch system has for a proven job on a host."""
    system = schedulers.SYSTEMS.get(allocation.scheduler)
    return system.cgroups(allocation, uid) if system else ()


def meaning_of_status(allocation: Allocation, status: int) -> str:
    """Say what the batch system takes a job's exit status for; empty if for nothing but a status."""
    system = schedulers.SYSTEMS.get(allocation.scheduler)
    return system.statuses.get(status, "") if system else ""


def prove(settings: BatchSettings, allocation: Allocation, user: str, uid: int) -> BatchRecord:
    """Have the batch system confirm that the job runs, is the user's, and holds these hosts and slots.

    Raises:
        PolicyError: it does not, or this site doesn't have that batch system.
        BatchError: the batch system could not be asked.
    """
    from . import proof

    system, section = _section(settings, allocation)
    return proof.prove(system, section, proof.Claim(allocation, user, uid))


def confirm(settings: BatchSettings, allocation: Allocation, user: str, uid: int) -> Phase:
    """Have the batch system confirm that a job which was proven still holds its hosts, and say whether it runs.

    Raises:
        PolicyError: the job has ended, waits again, or holds other hosts.
        BatchError: the batch system could not be asked, which says nothing.
    """
    from . import proof

    system, section = _section(settings, allocation)
    return proof.confirm(system, section, proof.Claim(allocation, user, uid))


def run_limit(settings: BatchSettings, allocation: Allocation, record: BatchRecord) -> RunLimit | None:
    """Return when the job has to be ended that the batch system has not ended, None if it may run for ever."""
    if record.run_limit is None:
        return None
    system, section = _section(settings, allocation)
    overtime = system.overtime if section.overtime is None else section.overtime
    remaining = max(0, record.run_limit - record.run_time)
    return RunLimit(remaining + overtime, f"{system.title}'s run limit of {record.run_limit} s")


def message(settings: BatchSettings, allocation: Allocation, text: str) -> str:
    """Attach *text*, which is ours, to the job in the batch system, if the site has said by which program.

    Returns:
        why that failed; empty if it did not.
    """
    system, section = _section(settings, allocation)
    plain = section.plain()
    if system.message is None or system.messenger not in plain:
        return ""
    from . import proof

    try:
        argv = system.message(allocation, text, plain)
        answer = proof.ask(system, section, argv, system.label(allocation))
    except BatchError as error:
        return str(error)
    said = " ".join((answer.stderr or answer.stdout).split())[:200]
    return f"{system.messenger} ended with {answer.status}: {said}" if answer.status else ""


def _section(settings: BatchSettings, allocation: Allocation) -> tuple[BatchSystem, SystemSettings]:
    system = schedulers.SYSTEMS.get(allocation.scheduler)
    section = settings.of(allocation.scheduler)
    if system is None or section is None:
        raise PolicyError(
            f"jobs of the batch system {allocation.scheduler[:80]!r} can't be proven at this site; "
            "its administrator sets it up under batch in config.yml"
        )
    return system, section
