# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``lab.py submit`` tells of its jobs: one root-owned file each, which ``bjobs`` on the hosts reads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from .spool import ROOT

State = Literal["PEND", "RUN", "USUSP", "DONE", "EXIT"]


def record(
    share: Path,
    number: int,
    index: int,
    user: str,
    allocation: Iterable[tuple[str, int]],
    state: State,
    limits: Mapping[str, str] | None = None,
    shown: Mapping[str, str] | None = None,
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
        shown: further fields, such as ``QUEUE``; a job without them is in no list.
    """
    jobs = share / "lsf/jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    document = {
        "JOBID": str(number),
        "JOBINDEX": str(index),
        "STAT": state,
        "USER": user,
        "EXEC_HOST": exec_host(allocation),
        "BEGIN": time.time(),
        **(limits or {}),
        **(shown or {}),
    }
    new = jobs / f"{number}_{index}.new"
    new.write_text(json.dumps(document))
    new.replace(jobs / f"{number}_{index}.json")


def exec_host(allocation: Iterable[tuple[str, int]]) -> str:
    """Hosts and slots in one of LSF's forms, ``2*node1:node2``."""
    return ":".join(f"{slots}*{host}" if slots > 1 else host for host, slots in allocation)


def find(number: int, index: int, root: Path = ROOT) -> dict[str, Any] | None:
    """What was recorded of a job, None for nothing."""
    try:
        return dict(json.loads((root / "jobs" / f"{number}_{index}.json").read_text()))
    except FileNotFoundError:
        return None


def listed(root: Path = ROOT) -> list[dict[str, Any]]:
    """All jobs that lists show."""
    found = [dict(json.loads(path.read_text())) for path in sorted((root / "jobs").glob("*.json"))]
    return [each for each in found if "QUEUE" in each]
