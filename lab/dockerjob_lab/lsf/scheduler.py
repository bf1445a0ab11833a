# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Slurm under the lab's LSF: what is asked of it, and what it says of jobs.

Only fields that Slurm itself fills in are read: a job's name could hold anything.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from . import LsfError
from .options import Array, Options

State = Literal["PEND", "RUN", "PSUSP", "USUSP", "SSUSP", "DONE", "EXIT"]

STATES: Mapping[str, State] = {
    "PENDING": "PEND",
    "CONFIGURING": "PEND",
    "RUNNING": "RUN",
    "COMPLETING": "RUN",
    "SUSPENDED": "SSUSP",
    "STOPPED": "USUSP",
    "COMPLETED": "DONE",
}
"""Slurm's words in LSF's; any other is EXIT."""

FIELDS = "%A|%F|%K|%T|%u|%U|%N|%C|%D|%S|%V|%r"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}

SPARE_MINUTES = 30
"""What Slurm leaves a job after LSF's run limit, which is what ends it."""

LONGEST_MINUTES = 7 * 24 * 60


@dataclass(frozen=True)
class Row:
    """What Slurm says of a job, or of an element of an array.

    Attributes:
        slurm_id: its own number.
        number: the array's number, or its own.
        index: index in the array, 0 if it is no element.
        state: LSF's word.
        user: name of the owner.
        uid: number of the owner.
        hosts: its hosts, the first one first, each with its CPUs.
        began: when it began, in seconds since the epoch, None if it hasn't.
        submitted: when it was submitted.
        reason: why it waits, in Slurm's word.
    """

    slurm_id: int
    number: int
    index: int
    state: State
    user: str
    uid: int
    hosts: tuple[tuple[str, int], ...]
    began: float | None
    submitted: float
    reason: str

    @property
    def name(self) -> str:
        """How Slurm's commands call it; the number alone may mean the whole array."""
        return f"{self.number}_{self.index}" if self.index else str(self.number)

    @property
    def label(self) -> str:
        """How LSF's commands call it."""
        return f"{self.number}[{self.index}]" if self.index else str(self.number)

    def allocation(self, options: Options | None) -> tuple[tuple[str, int], ...]:
        """Its hosts, filled one by one with the slots that it asked for; Slurm gives each host as many CPUs."""
        left = options.slots if options else sum(cpus for _, cpus in self.hosts)
        found = []
        for host, cpus in self.hosts:
            if left:
                found.append((host, min(left, cpus)))
                left -= min(left, cpus)
        return tuple(found)


def run(*argv: str, text: str = "", environment: Mapping[str, str] = ENVIRONMENT) -> str:
    """Run a command of Slurm's and return what it printed.

    Raises:
        LsfError: it failed, or there is no Slurm.
    """
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, env=dict(environment), timeout=100, check=False
        )
    except FileNotFoundError as error:
        raise LsfError("Failed in LSF library call: there is no Slurm on this host") from error
    except subprocess.TimeoutExpired as error:
        raise LsfError(
            "Failed in LSF library call: Slurm doesn't answer; run playbooks/lab_slurm.yml"
        ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LsfError(said[-1] if said else f"{argv[0]} ended with {done.returncode}")
    return done.stdout


def request(options: Options, array: Array | None, all_hosts: Sequence[str]) -> list[str]:
    """The options of sbatch and salloc for a job."""
    per_host = min(options.most_per_host, options.slots)
    minutes = LONGEST_MINUTES
    if options.run_seconds is not None:
        minutes = min(minutes, int(options.run_seconds / 60) + SPARE_MINUTES)
    argv = [
        f"--nodes={math.ceil(options.slots / per_host)}",
        f"--ntasks-per-node={per_host}",
        f"--time={minutes}",
        "--job-name=lsf",
        "--chdir=/",
    ]
    unwanted = [host for host in all_hosts if host not in options.hosts] if options.hosts else []
    if unwanted:
        argv.append(f"--exclude={','.join(unwanted)}")
    if array:
        argv.append(f"--array={array.indices}" + (f"%{array.at_once}" if array.at_once else ""))
    return argv


def hosts() -> list[str]:
    """Names of the hosts that run jobs."""
    return sorted(set(run("sinfo", "--noheader", "--Node", "--format=%N").split()))


@cache
def expand(nodes: str) -> tuple[str, ...]:
    """The hosts of Slurm's expression, such as ``node[1-2]``."""
    if "[" not in nodes:
        return tuple(filter(None, nodes.split(",")))
    return tuple(run("scontrol", "show", "hostnames", nodes).split())


def rows(number: int | None = None) -> list[Row]:
    """What Slurm says of all its jobs, or of *number*; a job that ended five minutes ago is gone.

    Raises:
        LsfError: Slurm gives no answer.
    """
    which = [] if number is None else [f"--jobs={number}"]
    try:
        said = run("squeue", "--noheader", "--array", "--states=all", f"--format={FIELDS}", *which)
    except LsfError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    return [_row(line) for line in said.splitlines()]


def _row(line: str) -> Row:
    slurm_id, number, index, state, user, uid, nodes, cpus, count, began, submitted, reason = line.split("|")
    each = int(cpus) // max(int(count), 1)
    state_here = STATES.get(state, "EXIT")
    if state_here == "PEND" and reason in ("JobHeldUser", "JobHeldAdmin"):
        state_here = "PSUSP"
    return Row(
        slurm_id=int(slurm_id),
        number=int(number),
        index=int(index) if index.isdecimal() else 0,
        state=state_here,
        user=user,
        uid=int(uid),
        hosts=tuple((host, each) for host in expand(nodes)),
        began=_seconds(began) if nodes else None,
        submitted=_seconds(submitted) or 0.0,
        reason=reason,
    )


def _seconds(text: str) -> float | None:
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text):
        return None
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def send(row: Row, name: str) -> None:
    """Have slurmd, which is root, send a signal to every process of the job.

    Not for SIGKILL: Slurm takes that as a wish to cancel the job, and sends SIGTERM first.
    """
    run("scancel", "--full", f"--signal={name}", row.name)


def own_id() -> int:
    """Slurm's number of the job that this process is in."""
    return int(os.environ["SLURM_JOB_ID"])
