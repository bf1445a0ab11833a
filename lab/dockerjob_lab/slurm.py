# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's Slurm, as users and administrators reach it; ``playbooks/lab_slurm.yml`` brings it up."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence

from .client import Cluster
from .model import HEAD

SPOOL = "/scratch/{user}/slurm"
"""Where scripts and outputs lie, on the file system that all hosts share."""

DONE = frozenset(("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"))


@dataclasses.dataclass(frozen=True)
class SlurmJob:
    """What Slurm says of a job.

    Attributes:
        state: such as ``RUNNING``; of a job that is being cleaned up after on its nodes, ``COMPLETING``.
        status: exit status of the script, 0 if a signal ended it.
        ended_by: number of that signal, else 0.
        restarts: how often it was queued again.
    """

    state: str
    status: int
    ended_by: int
    restarts: int


class Slurm:
    """Submits and controls jobs."""

    def __init__(self, cluster: Cluster) -> None:
        """Use the Slurm of *cluster*, which must run."""
        self._cluster = cluster

    def submit(self, script: str, *options: str, user: str = "alice") -> int:
        """Submit a script's text with options of sbatch(1), and return the job's number."""
        directory = SPOOL.format(user=user)
        self._cluster.run(HEAD, "install", "-d", "-o", user, "-g", user, directory)
        self._cluster.path(HEAD, f"{directory}/script").write_text(script)
        argv = [
            "sbatch",
            "--parsable",
            f"--output={directory}/%j.out",
            f"--error={directory}/%j.err",
            *options,
        ]
        return int(self._as(user, *argv, f"{directory}/script"))

    def control(self, *argv: str, check: bool = True) -> str:
        """Run scontrol or scancel as root, who may suspend and requeue."""
        return self._cluster.run(HEAD, *argv, check=check)

    def cancel(self, number: int, *options: str, user: str = "alice") -> None:
        """Run scancel as the job's owner."""
        self._as(user, "scancel", *options, str(number))

    def elements(self, array: int) -> list[int]:
        """Numbers of the tasks of a job array, in the order of their indices."""
        argv = ["squeue", "-h", "-r", "-t", "all", "-o", "%K %A", "-j", str(array)]
        rows = [line.split() for line in self._cluster.run(HEAD, *argv).splitlines()]
        return [int(number) for _, number in sorted((int(index), number) for index, number in rows)]

    def look(self, number: int) -> SlurmJob:
        """Ask for a job that runs, or has ended less than five minutes ago."""
        text = self._cluster.run(HEAD, "scontrol", "-o", "show", "job", str(number))
        match = re.search(r" JobState=(\w+) .* Restarts=(\d+) .* ExitCode=(\d+):(\d+) ", text)
        if not match:
            raise RuntimeError(f"scontrol said: {text}")
        return SlurmJob(match[1], int(match[3]), int(match[4]), int(match[2]))

    def wait(self, number: int, seconds: float) -> SlurmJob:
        """Wait until a job has ended and its epilogs too.

        Raises:
            TimeoutError: it has not within *seconds*.
        """
        end = time.monotonic() + seconds
        while (job := self.look(number)).state not in DONE:
            if time.monotonic() > end:
                raise TimeoutError(f"job {number} is {job.state}: {self.read(number)}")
            time.sleep(0.5)
        return job

    def read(self, number: int, stream: str = "out", user: str = "alice") -> str:
        """What a job has written so far to ``out`` or ``err``."""
        path = self._cluster.path(HEAD, f"{SPOOL.format(user=user)}/{number}.{stream}")
        return path.read_text(errors="replace") if path.exists() else ""

    def forget(self, user: str = "alice") -> None:
        """Remove the scripts and outputs."""
        self._cluster.run(HEAD, "rm", "-rf", SPOOL.format(user=user))

    def _as(self, user: str, *argv: str) -> str:
        return self._cluster.run(HEAD, *environment_of(user), *argv)


def environment_of(user: str, variables: Sequence[str] = ()) -> list[str]:
    """The beginning of a command that a user runs in the environment of a login, with *variables* added."""
    login = ["PATH=/usr/local/bin:/usr/bin:/bin", f"HOME=/home/{user}", f"USER={user}", f"LOGNAME={user}"]
    return ["runuser", "-u", user, "--", "env", "-i", *login, *variables]
