# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob-broker``: called by the wrapper through sudo, never by a person.

It takes no argument and no setting from the environment but SUDO_UID; the request comes
on standard input.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from dockerjob_core.errors import DockerjobError, RequestError

from ..request import MAX_REQUEST, JobRequest
from .playbooks import PlaybookRun

SETUP_TIMEOUT = 600


def main() -> None:
    """Entry point: serve one request and exit with the job's status."""
    _settle()
    try:
        request = read_request()
        with job_directory(request.job_id) as directory:
            status = serve(request, directory)
    except DockerjobError as error:
        print(f"hpc_submit_dockerjob: {error}", file=sys.stderr, flush=True)
        status = error.exit_status
    except OSError as error:
        print(
            f"hpc_submit_dockerjob: broker: {error}; is cluster_setup.yml applied?",
            file=sys.stderr,
            flush=True,
        )
        status = DockerjobError.exit_status
    # Threads that still block on the wrapper's pipe must not hold the exit up.
    os._exit(status)


def _settle() -> None:
    """Stand clear of the caller: directory, umask and the terminal's signals."""
    os.chdir("/")
    os.umask(0o077)
    # ssh and Ansible are started by fork and exec; gRPC would log a line at each.
    os.environ.update(GRPC_ENABLE_FORK_SUPPORT="0", GRPC_VERBOSITY="NONE")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTSTP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def read_request() -> JobRequest:
    """Read the wrapper's first line.

    Raises:
        RequestError: it is cut off, too large or malformed.
    """
    line = sys.stdin.buffer.readline(MAX_REQUEST)
    if not line.endswith(b"\n"):
        raise RequestError("the request is cut off or too large")
    return JobRequest.from_json(line)


@contextlib.contextmanager
def job_directory(job_id: str) -> Iterator[Path]:
    """Make the job's private directory in the service account's home, and remove it at the end.

    Only one broker on this host can hold it; what a broker that was killed left is removed first.
    """
    base = Path(pwd.getpwuid(os.geteuid()).pw_dir) / "run"
    lock_file = base / f"{job_id}.lock"
    lock = os.open(lock_file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A broker that ended in between has removed the file that we have locked.
        if not lock_file.exists() or not os.path.samestat(os.fstat(lock), lock_file.stat()):
            raise BlockingIOError
    except BlockingIOError as error:
        raise RequestError(f"job {job_id} is already run by another wrapper on this host") from error
    directory = base / job_id
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        lock_file.unlink(missing_ok=True)


def serve(request: JobRequest, directory: Path) -> int:
    """Run the job, print and record its report."""
    setup = PlaybookRun(directory, "job_setup.yml", SETUP_TIMEOUT)
    try:
        # Ansible loads in a process of its own while these load here: that hides most of a second.
        from .session import run_job

        return run_job(request, directory, setup)
    finally:
        setup.cancel()
        setup.join(10)
