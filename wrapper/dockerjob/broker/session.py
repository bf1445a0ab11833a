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
from typing import TYPE_CHECKING

from ..config import load_config
from ..request import JobRequest
from .audit import Audit
from .identity import caller
from .inbox import Inbox, Signalled
from .job import Job
from .output import say
from .playbooks import PlaybookRun

if TYPE_CHECKING:
    from .terminal import TerminalLink

NEEDS_EXPLANATION = frozenset((204, 210))
"""Exit statuses for which the agents' last log lines help the user."""


def run_job(request: JobRequest, directory: Path, setup: PlaybookRun, audit: Audit) -> int:
    """Lead the job to its end; print its report and add it to the site's log."""
    config = load_config()
    audit.directory = Path(config.log_directory)
    identity = caller(os.environ, config.minimum_uid, config.minimum_gid)
    audit.know(user=identity.name)
    inbox = Inbox()
    terminal = _link(request)
    inbox.listen(sys.stdin.buffer, *([terminal.take] if terminal else []))
    signal.signal(signal.SIGTERM, lambda number, _frame: inbox.put(Signalled(number)))
    job = Job(config, identity, request, inbox, directory, setup, audit, terminal)
    status = job.run()
    audit.refused(job.report.error)
    # Before anything is said: the user may not read it.
    with contextlib.suppress(OSError):
        job.report.append_to(Path(config.log_directory) / "jobs.jsonl")
    if status in NEEDS_EXPLANATION:
        for text in job.explain():
            say(f"hpc_submit_dockerjob: {text}")
    if job.report.error:
        say(f"hpc_submit_dockerjob: {job.report.error}")
    for text in job.report.lines():
        say(text)
    return status


def _link(request: JobRequest) -> TerminalLink | None:
    """Make the link to COMMAND's terminal, if it shall have one; batch jobs don't load it."""
    if not request.terminal:
        return None
    from .terminal import TerminalLink

    return TerminalLink(request.terminal)
