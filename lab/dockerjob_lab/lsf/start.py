# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Slurm starts on a job's first host: makes a job of LSF's of it, and ends it as LSF does.

The script of the Slurm job is this program, with what bsub has written on standard input or in a file.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import LsfError, queues, res, scheduler, site, spool
from . import job as jobs
from .report import End

Send = Callable[[str], None]


@dataclass
class Keeper:
    """Ends a job when it is asked to, or when its run limit is reached.

    Attributes:
        profile: the signals that end it.
        run_seconds: its run limit, None for none.
        asked: tells why the job is to be killed, None as long as it is not.
        send: sends a signal to all its processes.
        began: when it began.
        reason: why LSF ends it, empty as long as it doesn't.
    """

    profile: queues.Profile
    run_seconds: float | None
    asked: Callable[[], str | None]
    send: Send
    began: float
    reason: str = ""
    _due: list[tuple[float, str]] = field(default_factory=list)

    def tick(self, now: float | None = None) -> None:
        """Send what is due."""
        now = time.time() if now is None else now
        if not self.reason and self.run_seconds is not None and now >= self.began + self.run_seconds:
            self.reason = "TERM_RUNLIMIT"
            end = now + queues.RUN_LIMIT_GRACE
            self._due = [(now, "USR2"), *((end + after, name) for after, name in self.profile)]
        if self.reason in ("", "TERM_RUNLIMIT") and (asked := self.asked()):
            self.reason = asked
            profile = queues.KILL_ONLY if asked.startswith("TERM_FORCE") else self.profile
            self._due = [(now + after, name) for after, name in profile]
        while self._due and self._due[0][0] <= now:
            self.send(self._due.pop(0)[1])


def _told() -> dict[str, Any]:
    """What bsub has written: in the file of an interactive job, else on standard input."""
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        text = path.read_text()
        path.unlink()
    else:
        text = base64.b64decode(sys.stdin.read()).decode()
    return dict(json.loads(text))


def _job(told: dict[str, Any], row: scheduler.Row) -> jobs.Job:
    options = jobs.options_of(told["options"])
    profile = site.find_profile(options.application)
    return jobs.Job(
        number=row.number,
        index=row.index,
        options=options,
        allocation=row.allocation(options),
        account=jobs.Account.of(os.getuid()),
        directory=told["directory"],
        submit_host=told["submit_host"],
        stamp=told["stamp"],
        job_starter=profile.job_starter if profile else "",
        post_exec=profile.post_exec if profile else "",
        variables=told["variables"],
        submitted_with=told["environment"],
        command=told["command"],
    )


def _row(slurm_id: int) -> scheduler.Row:
    # A pending element of an array has the array's number still, as its last one will have.
    return next(row for row in scheduler.rows(slurm_id) if row.slurm_id == slurm_id and row.hosts)


def _wait_for(record: spool.Record) -> None:
    """Wait until bsub has written the record; it learns the number no sooner than Slurm starts this."""
    end = time.monotonic() + 30
    while not record.told() and time.monotonic() < end:
        time.sleep(0.05)


def _send(row: scheduler.Row, name: str) -> None:
    """Send a signal; a job that is over by now is no reason to leave its output behind."""
    try:
        if name == "KILL":
            kill_descendants()
        else:
            scheduler.send(row, name)
    except LsfError as error:
        print(f"SIG{name} for job {row.label}: {error}", file=sys.stderr)


def adopt() -> None:
    """Become the parent of descendants that have lost theirs, so that all of the job's can be found."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


def kill_descendants() -> None:
    """Send SIGKILL to all processes that come from this one, until none is left that it can hit; not to sudo's."""
    for _ in range(10):
        for pid in _descendants(os.getpid()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    try:
        words = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    children = [int(child) for child in " ".join(words).split()]
    return [*children, *(each for child in children for each in _descendants(child))]


def main() -> int:
    """Be the job; the exit status is the job's."""
    told = _told()
    slurm_id = scheduler.own_id()
    row = _row(slurm_id)
    job = _job(told, row)
    record = spool.Record(row.number)
    _wait_for(record)
    description = jobs.description(job, told["script"], {}, spool=not job.options.interactive)
    description["umask"] = told["umask"]
    kept = Path(f"{job.job_file}.description")
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    kept.touch(mode=0o600)
    kept.write_text(json.dumps(description))
    keeper = Keeper(
        profile=queues.PROFILES[job.options.queue],
        run_seconds=job.options.run_seconds,
        asked=lambda: record.marked("kill", job.index),
        send=lambda name: _send(row, name),
        began=time.time(),
    )
    adopt()
    spool.note_step(slurm_id, job.number, job.index, str(kept))
    record.begin(job.index, {"began": keeper.began, "hosts": job.allocation, "job_file": job.job_file})
    end = res.run(description, keeper.tick, lambda: record.marked("kill", job.index) or keeper.reason)
    res.run_post_exec(description, end.status)
    record.finish(job.index, end)
    tidy(description, kept)
    return end.status


def tidy(description: dict[str, Any], kept: Path) -> None:
    """Remove the job's files, as LSF does when the job is over."""
    for path in (*description["files"], str(kept)):
        Path(path).unlink(missing_ok=True)


def after() -> int:
    """End, from Slurm's epilog and as the user, a job whose ``res`` was killed with it."""
    found = spool.step(int(sys.argv[1]))
    if found is None or not Path(found[2]).exists():
        return 0
    number, index, path = found
    record, kept = spool.Record(number), Path(path)
    # The epilog runs on all of the job's hosts.
    if record.begun(index)["hosts"][0][0] != socket.gethostname():
        return 0
    description = json.loads(kept.read_text())
    reason = record.marked("kill", index) or ""
    end = End(137, float(record.begun(index)["began"]), time.time(), reason)
    res.enter_directory(description)
    res.deliver(description, end)
    res.run_post_exec(description, end.status)
    record.finish(index, end)
    tidy(description, kept)
    return 0
