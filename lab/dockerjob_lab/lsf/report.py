# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What LSF tells at the end of a job: why it ended, and the report before its output in the ``-o`` file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .job import CLUSTER

REASONS = {
    "TERM_OWNER": "job killed by owner.",
    "TERM_ADMIN": "job killed by root or LSF administrator.",
    "TERM_FORCE_OWNER": "job killed by owner without time for cleanup.",
    "TERM_FORCE_ADMIN": "job killed by root or LSF administrator without time for cleanup.",
    "TERM_RUNLIMIT": "job killed after reaching LSF run time limit.",
}
"""The texts of bjobs -l, bhist and the report ("Termination reasons displayed by LSF")."""

LINE = "-" * 60


@dataclass(frozen=True)
class End:
    """How a job ended.

    Attributes:
        status: exit status of the job file, 128+n if signal n ended it.
        began: when, in seconds since the epoch.
        ended: likewise.
        reason: one of :data:`REASONS`, if LSF itself ended it.
        cpu: seconds of processor time of the processes on the first host, None if nobody has seen them end.
        memory: bytes that the largest of them had, likewise.
    """

    status: int
    began: float
    ended: float
    reason: str = ""
    cpu: float | None = None
    memory: int | None = None


def outcome(end: End) -> str:
    """The lines that say how it ended."""
    if not end.status:
        return "Successfully completed."
    lines = [f"{end.reason}: {REASONS[end.reason]}"] if end.reason else []
    return "\n".join([*lines, f"Exited with exit code {end.status}."])


def text(told: Mapping[str, Any], end: End) -> str:
    """The report of a job, as it stands before the job's output."""
    label, name, user, host = told["label"], told["name"], told["user"], told["hosts"][0].rpartition("*")[2]
    hosts = f"\n{'':28}".join(f"<{each}>" for each in told["hosts"])
    pointer = (
        f"\n\nPS:\n\nRead file <{told['error']}> for stderr output of this job.\n" if told["error"] else ""
    )
    begin = (
        f"Sender: LSF System <lsfadmin@{host}>\n"
        f"Subject: Job {label}: <{name}> in cluster <{CLUSTER}> {'Exited' if end.status else 'Done'}\n\n"
        f"Job <{name}> was submitted from host <{told['submit_host']}> by user <{user}> in cluster <{CLUSTER}>"
        f" at {time.ctime(told['submitted'])}\n"
        f"Job was executed on host(s) {hosts}, in queue <{told['queue']}>, as user <{user}> in cluster <{CLUSTER}>"
        f" at {time.ctime(end.began)}\n"
        f"<{told['home']}> was used as the home directory.\n"
        f"<{told['directory']}> was used as the working directory.\n"
        f"Started at {time.ctime(end.began)}\n"
        f"Terminated at {time.ctime(end.ended)}\n"
        f"Results reported at {time.ctime(end.ended)}\n\n"
        f"Your job looked like:\n\n{LINE}\n# LSBATCH: User input\n{told['input'].rstrip()}\n{LINE}\n\n"
        f"{outcome(end)}\n\n"
        "Resource usage summary:\n\n"
    )
    return begin + _usage(told, end) + f"\nThe output (if any) follows:{pointer}\n\n"


def _usage(told: Mapping[str, Any], end: End) -> str:
    rows = [
        ("CPU time", "-" if end.cpu is None else f"{end.cpu:.2f} sec."),
        ("Max Memory", "-" if end.memory is None else f"{end.memory / 2**20:.0f} MB"),
        ("Run time", f"{end.ended - end.began:.0f} sec."),
        ("Turnaround time", f"{end.ended - told['submitted']:.0f} sec."),
    ]
    return "".join(f"    {name + ' :':<45}{value}\n" for name, value in rows)
