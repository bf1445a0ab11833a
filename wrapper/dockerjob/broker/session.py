# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One call of the broker: who asks, the job, and what is said and recorded at its end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from ..config import load_config
from ..request import JobRequest
from .identity import caller
from .inbox import Inbox, Signalled
from .job import Job
from .playbooks import PlaybookRun

NEEDS_EXPLANATION = frozenset((204, 210))
"""Exit statuses for which the agents' last log lines help the user."""


def run_job(request: JobRequest, directory: Path, setup: PlaybookRun) -> int:
    """Lead the job to its end; print its report and add it to the site's log."""
    config = load_config()
    identity = caller(os.environ, config.minimum_uid)
    inbox = Inbox()
    inbox.listen(sys.stdin.buffer)
    signal.signal(signal.SIGTERM, lambda number, _frame: inbox.put(Signalled(number)))
    job = Job(config, identity, request, inbox, directory, setup)
    status = job.run()
    if status in NEEDS_EXPLANATION:
        for text in job.explain():
            say(f"hpc_submit_dockerjob: {text}")
    if job.report.error:
        say(f"hpc_submit_dockerjob: {job.report.error}")
    for text in job.report.lines():
        say(text)
    with contextlib.suppress(OSError):
        job.report.append_to(Path(config.log_directory) / "jobs.jsonl")
    return status


def say(line: str) -> None:
    """Write one line to the user's standard error; a reader that is gone is no reason to stop."""
    with contextlib.suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)
