# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob-broker``: called by the wrapper through sudo, never by a person.

It takes no argument and no setting from the environment but SUDO_UID; the request comes
on standard input.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from dockerjob_core.errors import DockerjobError, RequestError

from ..config import load_config
from ..request import MAX_REQUEST, JobRequest
from .identity import caller
from .inbox import Inbox, Signalled
from .job import Job, say

ALSO_SHOWN = frozenset((204, 210))
"""Exit statuses for which the agents' last log lines help the user."""


def main() -> None:
    """Entry point: serve one request and exit with the job's status."""
    _settle()
    try:
        status = serve()
    except DockerjobError as error:
        say(f"hpc_submit_dockerjob: {error}")
        status = error.exit_status
    # Threads that still block on the wrapper's pipe must not hold the exit up.
    sys.stdout.flush()
    os._exit(status)


def _settle() -> None:
    """Stand clear of the caller: directory, umask and the terminal's signals."""
    os.chdir("/")
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTSTP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def serve() -> int:
    """Read the request, run the job, print and record its report."""
    config = load_config()
    identity = caller(os.environ, config.minimum_uid)
    line = sys.stdin.buffer.readline(MAX_REQUEST)
    if not line.endswith(b"\n"):
        raise RequestError("the request is cut off or too large")
    request = JobRequest.from_json(line)
    inbox = Inbox()
    inbox.listen(sys.stdin.buffer)
    signal.signal(signal.SIGTERM, lambda number, _frame: inbox.put(Signalled(number)))
    job = Job(config, identity, request, inbox)
    status = job.run()
    if status in ALSO_SHOWN:
        for text in job.explain():
            say(f"hpc_submit_dockerjob: {text}")
    if job.report.error:
        say(f"hpc_submit_dockerjob: {job.report.error}")
    for text in job.report.lines():
        say(text)
    with contextlib.suppress(OSError):
        job.report.append_to(Path(config.log_directory) / "jobs.jsonl")
    return status
