# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab's LSF knows of its jobs: one root-owned file each, which ``bjobs`` on the hosts reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from .system import write_if_changed

PROGRAMS = ("bjobs", "bpost")
MESSENGER = "dockerjob"
"""The account that writes what ``bpost`` keeps; in LSF a daemon would."""
State = Literal["PEND", "RUN", "USUSP", "DONE", "EXIT"]


def install(share: Path) -> None:
    """Put ``bjobs`` and ``bpost`` where all hosts of the lab find them: ``/share/lsf/bin``."""
    for name in PROGRAMS:
        program = share / "lsf/bin" / name
        write_if_changed(program, Path(__file__).with_name(f"{name}.py").read_text(), mode=0o755)
    messages = share / "lsf/messages"
    messages.mkdir(exist_ok=True)
    messages.chmod(0o755)
    for line in (share.parent / "etc/passwd").read_text().splitlines():
        if line.startswith(f"{MESSENGER}:"):
            os.chown(messages, int(line.split(":")[2]), 0)


def record(
    share: Path,
    number: int,
    index: int,
    user: str,
    allocation: Iterable[tuple[str, int]],
    state: State,
    limits: Mapping[str, str] | None = None,
) -> None:
    """Write what ``bjobs`` says of a job.

    Args:
        share: the lab's ``/share``, as it is seen from here.
        number: the job's number.
        index: its index in an array, 0 if it is none.
        user: name of its owner.
        allocation: hosts and slots.
        state: LSF's word for it.
        limits: ``RUNTIMELIMIT``, ``MEMLIMIT`` and ``RUN_TIME``, as ``bjobs`` shows them; without the last one it
            begins now.
    """
    jobs = share / "lsf/jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    document = {
        "JOBID": str(number),
        "JOBINDEX": str(index),
        "STAT": state,
        "USER": user,
        "EXEC_HOST": ":".join(f"{slots}*{host}" if slots > 1 else host for host, slots in allocation),
        "BEGIN": time.time(),
        **(limits or {}),
    }
    new = jobs / f"{number}_{index}.new"
    new.write_text(json.dumps(document))
    new.replace(jobs / f"{number}_{index}.json")
