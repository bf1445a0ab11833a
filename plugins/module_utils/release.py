# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the epilog of a batch system, which runs on each host as root: see that nothing of the job is left there.

An epilog means that the job is over for the batch system, and the host about to be given to
another.  The broker, or the guard, is then mostly just taking the job down; that is waited
for, and what they don't remove in time is removed here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .container import DOCKER_HOST
from .jobdir import JobDirectory
from .names import RUNTIME_ROOT, check_job_id
from .node_task import perform

if TYPE_CHECKING:
    from collections.abc import Mapping

PATIENCE = 60.0
"""Seconds that broker and guard get: more than COMMAND's grace after a signal, and a teardown."""

INTERVAL = 0.25


def release(job_id: str, bridge: str, patience: float = PATIENCE) -> str:
    """Wait until this host holds nothing of the job, and remove what is there after *patience* seconds.

    Returns:
        why something is still there; empty if nothing is.

    Raises:
        ValueError: *job_id* is no job id.
    """
    options: Mapping[str, Any] = {
        "job_id": check_job_id(job_id),
        "state": "absent",
        "bridge": bridge,
        "runtime_root": RUNTIME_ROOT,
        "docker_host": DOCKER_HOST,
    }
    # Made before everything else of the job, and removed after it: most jobs have none, and their end is
    # not to depend on Docker.
    directory = JobDirectory(job_id, RUNTIME_ROOT)
    end = time.monotonic() + patience
    while directory.exists():
        if time.monotonic() >= end:
            result = perform(options, check_mode=False)
            return str(result["msg"]) if result.get("failed") else ""
        time.sleep(INTERVAL)
    return ""
