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
import shutil
import sys
import syslog
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from dockerjob_core.errors import DockerjobError, RequestError

from ..query import Query
from ..request import CHECK, MAX_REQUEST, JobRequest
from .account import service_directory
from .apart import stand_apart
from .audit import Audit
from .identity import caller_uid
from .output import say
from .playbooks import PlaybookRun
from .process import check_limits, settle

LOCK_PATIENCE = 0.5
"""Seconds that a lock is waited for: somebody may just be looking whether it is held."""

COURTESY = 5
"""What is added to the niceness of this process when Ansible is under way."""

SETTLED = 60.0
"""Seconds after which a lock that nobody holds is a leftover, not one that is just being taken."""


def main() -> None:
    """Entry point: serve one request and exit with the job's status."""
    settle()
    audit = Audit()
    status = attempt(lambda: serve(audit), audit)
    # Threads that still block on the wrapper's pipe must not hold the exit up.
    os._exit(status)


def serve(audit: Audit) -> int:
    """Serve the one request that comes on standard input; return the exit status."""
    check_limits()
    line = read_line()
    if line.startswith(CHECK):
        return would_take(JobRequest.from_json(line.removeprefix(CHECK)), audit)
    query = Query.from_json(line)
    if query:
        return ask(query, audit)
    request = JobRequest.from_json(line)
    return stand_apart(lambda: attempt(lambda: lead(request, audit), audit))


def attempt(action: Callable[[], int], audit: Audit) -> int:
    """Return the exit status of *action*; an error becomes a line for the user, a record, and its status."""
    try:
        return action()
    except DockerjobError as error:
        audit.refused(str(error))
        say(f"hpc_submit_dockerjob: {error}")
        return error.exit_status
    except OSError as error:
        audit.refused(f"broker: {error}")
        say(f"hpc_submit_dockerjob: broker: {error}; is cluster_setup.yml applied?")
        return DockerjobError.exit_status
    except Exception as error:
        return failed(error, audit)


def failed(error: Exception, audit: Audit) -> int:
    """Make a fault of this program one line for the user, and all of it for the system's log."""
    kind = type(error).__name__
    audit.refused(f"the broker failed: {kind}")  # unless it was decided
    syslog.openlog("dockerjob-broker", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    for line in "".join(traceback.format_exception(error)).splitlines():
        syslog.syslog(syslog.LOG_ERR, line)
    say(f"hpc_submit_dockerjob: the broker failed ({kind}); the administrator finds more in the system's log")
    return DockerjobError.exit_status


def read_line() -> bytes:
    """Read the first line of who called.

    Raises:
        RequestError: it is cut off or too large.
    """
    line = sys.stdin.buffer.readline(MAX_REQUEST)
    if not line.endswith(b"\n"):
        raise RequestError("the request is cut off or too large")
    return line


def ask(query: Query, audit: Audit) -> int:
    """Answer a question about jobs."""
    from .answer import answer

    return answer(query, audit)


def would_take(request: JobRequest, audit: Audit) -> int:
    """Hold a request against proof and policy, before its user copies data for it."""
    from .check import check

    return check(request, audit)


def lead(request: JobRequest, audit: Audit) -> int:
    """Run a job from its beginning to its end, print and record its report."""
    audit.know(job=request.job_id, application=request.application, scheduler=request.allocation.scheduler)
    with job_directory(request.job_id, caller_uid(os.environ)) as directory:
        return run(request, directory, audit)


@contextlib.contextmanager
def job_directory(job_id: str, uid: int) -> Iterator[Path]:
    """Make the job's private directory in the service account's home, and remove it at the end.

    Only one broker of this user on this host can hold it; what one that was killed left is removed
    first.  Whose job it is has not been proven here, so nobody may hold a name that is another's, too.
    """
    base = service_directory()
    directory = base / f"{job_id}-{uid}"
    deadline = time.monotonic() + LOCK_PATIENCE
    while not (lock := _locked(lock_file(directory))):
        if time.monotonic() > deadline:
            raise RequestError(f"job {job_id} is already run by another wrapper on this host")
        time.sleep(0.05)
    sweep(base)
    remove_abandoned(directory)
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        lock_file(directory).unlink(missing_ok=True)
        os.close(lock)


def lock_file(directory: Path) -> Path:
    """Return the file that who uses *directory* holds a lock on."""
    return directory.with_name(f"{directory.name}.lock")


def _locked(path: Path) -> int | None:
    """Lock *path* and return its file descriptor; None if somebody else has it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A broker that ended in between has removed the file that we have locked.
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None


def remove_abandoned(directory: Path) -> None:
    """Remove the directory of a broker that was killed, and let go an Ansible that still waits there for it."""
    if directory.exists():
        from dockerjob_core.jobdir import release_readers

        release_readers(str(directory))
        shutil.rmtree(directory, ignore_errors=True)


def sweep(base: Path) -> None:
    """Remove what brokers of other jobs have left here that were killed: nobody has its lock."""
    for path in base.glob("*.lock"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < SETTLED or not (lock := _locked(path)):
                continue
            remove_abandoned(path.with_suffix(""))
            path.unlink(missing_ok=True)
            os.close(lock)


def run(request: JobRequest, directory: Path, audit: Audit) -> int:
    """Run the job, print and record its report."""
    setup = PlaybookRun(directory, "job_setup.yml")
    # The job starts when Ansible has loaded; and COMMAND's processes, on this same host, come before this one.
    os.nice(COURTESY)
    try:
        # Ansible loads in a process of its own while these load here: that hides most of a second.
        from .session import run_job

        return run_job(request, directory, setup, audit)
    finally:
        setup.cancel()
        setup.join(10)
