# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parent of a job's processes on its first host, as LSF's ``res`` is.

Started as root inside the host with a description of the job (JSON) on stdin. It becomes
the user and the leader of a process group, runs the job file, and ends with its exit status.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import termios
from typing import Any, NoReturn

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP)
"""Meant for the job; whoever sends them to the group means its members, not their keeper."""


def become(job: dict[str, Any]) -> None:
    """Take the identity of the user."""
    os.initgroups(job["user"], job["gid"])
    os.setgid(job["gid"])
    os.setuid(job["uid"])
    os.umask(0o022)


def write_files(job: dict[str, Any]) -> None:
    """Write the job file and what goes with it into the user's ``.lsbatch``."""
    for path, (text, mode) in job["files"].items():
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)


def start(job: dict[str, Any]) -> int:
    """Fork the shell of the job; return its process id."""
    environment = {**job["environment"], "LS_JOBPID": str(os.getpid())}
    child = os.fork()
    if not child:
        default_signals()
        if job["terminal"]:
            take_terminal()
        else:
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        for descriptor, path in job["spool"].items():
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


def post_exec(job: dict[str, Any]) -> NoReturn:
    """Become POST_EXEC: /bin/sh -c, in /tmp, without output, in the job's environment, its status as wait(2) has it."""
    environment = {
        **job["environment"],
        "PATH": "/bin:/usr/bin:/sbin:/usr/sbin",
        "LS_EXEC_T": "END",
        "LSB_JOBEXIT_STAT": str(job["job_status"] << 8),
    }
    os.chdir("/tmp")  # noqa: S108  # as LSF does
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    default_signals()
    os.execve("/bin/sh", ["/bin/sh", "-c", job["post_exec"]], environment)  # noqa: S606  # it is a shell's line


def deliver(job: dict[str, Any]) -> None:
    """Append the spooled output to the files the user named, or replace those."""
    for source, (target, mode) in job["deliver"].items():
        try:
            with open(source, "rb") as spooled, open(target, mode) as file:
                file.write(spooled.read())
        except OSError as error:
            print(f"{target}: {error.strerror}; the output is in {source}", file=sys.stderr)
        else:
            os.unlink(source)


def main() -> int:
    """Run the job; the status is the job file's own, 128+n if signal n ended it."""
    job = json.load(sys.stdin)
    os.setpgid(0, 0)
    become(job)
    if "post_exec" in job:
        post_exec(job)
    try:
        os.chdir(job["directory"])
    except OSError:
        os.chdir("/tmp")  # noqa: S108  # as LSF does
    write_files(job)
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _, status = os.waitpid(start(job), 0)
    deliver(job)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
