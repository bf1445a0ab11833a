# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What starts the processes of a job on its first host and outlives them, as LSF's ``res`` does.

It becomes the user if it is not, the leader of a process group, runs the job file, hands the
output over, and ends with the job's exit status. ``lab.py submit`` starts it from outside
(``main``), the lab's Slurm by :mod:`.start`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import report
from .report import End

IGNORED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGQUIT,
    signal.SIGTTOU, signal.SIGTTIN,
)  # fmt: skip
"""Meant for the job; whoever sends them to the group means its members, not their keeper."""

Tick = Callable[[], None]


def become(job: dict[str, Any]) -> None:
    """Take the identity of the user."""
    if os.getuid() == 0:
        os.initgroups(job["user"], job["gid"])
        os.setgid(job["gid"])
        os.setuid(job["uid"])
    os.umask(job.get("umask", 0o022))


def write_files(job: dict[str, Any]) -> None:
    """Write the job file and what goes with it into the user's ``.lsbatch``."""
    for path, (text, mode) in job["files"].items():
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)


def start(job: dict[str, Any]) -> int:
    """Fork the shell of the job; return its process id."""
    environment = {**job["environment"], "LS_JOBPID": str(os.getpid())}
    child = os.fork()
    if not child:
        default_signals()
        if job.get("terminal"):
            take_terminal()
        elif "LSB_INTERACTIVE" not in environment:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        for descriptor, path in job.get("spool", {}).items():
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), int(descriptor))
        os.execve("/bin/sh", ["/bin/sh", job["job_file"]], environment)  # noqa: S606  # the job's own shell
    return child


def take_terminal() -> None:
    """Make standard output, which must be nobody's, the controlling terminal of a new session, and its input, too."""
    os.setsid()
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)
    os.dup2(1, 0)


def default_signals() -> None:
    """Take back what Python or the caller of the lab ignores, nohup(1) for one."""
    for number in signal.valid_signals() - {signal.SIGHUP, signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def run_post_exec(job: dict[str, Any], status: int) -> None:
    """Run POST_EXEC: /bin/sh -c, in /tmp, without output, in the job's environment, its status as wait(2) has it."""
    if not job.get("post_exec"):
        return
    environment = {
        **job["environment"],
        "PATH": "/bin:/usr/bin:/sbin:/usr/sbin",
        "LS_EXEC_T": "END",
        "LSB_JOBEXIT_STAT": str(status << 8),
    }
    child = os.fork()
    if not child:
        os.chdir("/tmp")  # noqa: S108  # as LSF does
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        default_signals()
        os.execve("/bin/sh", ["/bin/sh", "-c", job["post_exec"]], environment)  # noqa: S606  # a shell's line
    os.waitpid(child, 0)


def deliver(job: dict[str, Any], end: End) -> None:
    """Append the report and the spooled output to the files the user named, or replace those."""
    if "output" not in job:
        return
    source, target, overwrite = job["output"]
    _hand_over(source, target, "wb" if overwrite else "ab", report.text(job["report"], end))
    if job["error"]:
        spooled, named = job["error"]
        _hand_over(spooled, named, "ab", "")


def _hand_over(source: str, target: str, mode: str, before: str) -> None:
    try:
        spooled = Path(source).read_bytes() if os.path.exists(source) else b""
        with open(target, mode) as file:
            file.write(before.encode(errors="surrogateescape") + spooled)
    except OSError as error:
        print(f"{target}: {error.strerror}; the output is in {source}", file=sys.stderr)
    else:
        Path(source).unlink(missing_ok=True)


def enter_directory(job: dict[str, Any]) -> None:
    """Go where the job was submitted, or to /tmp, as LSF does."""
    try:
        os.chdir(job["directory"])
    except OSError:
        os.chdir("/tmp")  # noqa: S108  # as LSF does


def _wait(child: int, tick: Tick | None) -> tuple[int, float, int]:
    """Wait for the job's shell; return its status, and the CPU seconds and bytes of what it has waited for."""
    pid = 0
    while not pid:
        pid, status, usage = os.wait4(child, os.WNOHANG if tick else 0)
        if tick and not pid:
            tick()
            time.sleep(0.1)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


def run(job: dict[str, Any], tick: Tick | None = None, reason: Callable[[], str] = str) -> End:
    """Run the job and hand its output over.

    Args:
        job: its description.
        tick: called again and again while it runs.
        reason: why LSF has ended it, once it is over.
    """
    # The leader of a terminal's session leads a group already.
    with suppress(PermissionError):
        os.setpgid(0, 0)
    become(job)
    enter_directory(job)
    write_files(job)
    for number in (*IGNORED, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    began = time.time()
    status, cpu, memory = _wait(start(job), tick)
    end = End(status, began, time.time(), reason() if status else "", cpu, memory)
    deliver(job, end)
    return end


def main() -> int:
    """Run the job, or only the POST_EXEC of one that is over, from a description on standard input."""
    job = json.load(sys.stdin)
    if "status" in job:
        os.setpgid(0, 0)
        become(job)
        run_post_exec(job, job["status"])
        return 0
    return run(job).status
