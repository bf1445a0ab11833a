# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the epilog of a batch system, which runs on each host as root: see that nothing of the job is left there.

An epilog means that the job is over for the batch system, and the host about to be given to
another.  The broker, or the guard, is then mostly just taking the job down; that is waited
for, and what they don't remove in time is removed here.
"""

from __future__ import annotations

import fcntl
import glob
import os
import time
from contextlib import suppress
from typing import Any

from .names import RUNTIME_ROOT, check_job_id, host_job_directory

PATIENCE = 60.0
"""Seconds that broker and guard get: more than COMMAND's grace after a signal, and a teardown."""

INTERVAL = 0.25


def announce(job_id: str, runtime_root: str = RUNTIME_ROOT) -> str:
    """Show that this process, a guard, stands by for the job: by a lock that lasts as long as the process.

    Returns:
        the file, to be removed at the end.
    """
    path = f"{runtime_root}/guards/{job_id}.{os.getpid()}"
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fcntl.flock(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), fcntl.LOCK_EX)
    return path


def is_guarded(job_id: str, runtime_root: str = RUNTIME_ROOT) -> bool:
    """Tell whether a guard stands by for the job, which means that the job is still led; remove files of dead ones."""
    for path in glob.glob(f"{runtime_root}/guards/{job_id}.*"):
        with suppress(FileNotFoundError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(file)
            os.unlink(path)
    return False


def release(job_id: str, bridge: str, patience: float = PATIENCE) -> str:
    """Wait until this host holds nothing of the job, and remove what is there after *patience* seconds.

    Most jobs of a batch system have nothing here, and their end is not to depend on Docker: it is
    looked for in the file system only, where a job's directory comes before all else and goes last.

    Returns:
        why something is still there; empty if nothing is.

    Raises:
        ValueError: *job_id* is no job id.
    """
    directory = host_job_directory(check_job_id(job_id), RUNTIME_ROOT)
    end = time.monotonic() + patience
    while os.path.lexists(directory) or is_guarded(job_id, RUNTIME_ROOT):
        if time.monotonic() >= end:
            return _remove(job_id, bridge) if os.path.lexists(directory) else ""
        time.sleep(INTERVAL)
    return ""


def _remove(job_id: str, bridge: str) -> str:
    from .container import DOCKER_HOST
    from .node_task import perform

    options: dict[str, Any] = {
        "job_id": job_id,
        "state": "absent",
        "bridge": bridge,
        "runtime_root": RUNTIME_ROOT,
        "docker_host": DOCKER_HOST,
    }
    result = perform(options, check_mode=False)
    return str(result["msg"]) if result.get("failed") else ""
