# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the broker's process has inherited of its caller, who prepared it before sudo.

sudo sets environment, umask and file descriptors.  Signals, timers and resource limits
come through it as the caller has them (seen with sudo 1.9.13, which accepts ``rlimit_*``
in sudoers and the limits of pam_limits(8), and applies neither; so the rule has none).
"""

from __future__ import annotations

import os
import resource
import signal

from dockerjob_core.errors import RequestError

UNCHANGEABLE = frozenset((signal.SIGKILL, signal.SIGSTOP))
IGNORED = frozenset(
    (
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGTSTP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        # As Python has them: a closed pipe and a full file are errors, not the end.
        signal.SIGPIPE,
        signal.SIGXFSZ,
    )
)

NEEDED = {
    resource.RLIMIT_AS: ("-v, address space", 4 << 30),
    resource.RLIMIT_CPU: ("-t, CPU time", 3600),
    resource.RLIMIT_DATA: ("-d, data segment", 4 << 30),
    resource.RLIMIT_FSIZE: ("-f, file size", 16 << 30),
    resource.RLIMIT_NOFILE: ("-n, open files", 512),
    resource.RLIMIT_NPROC: ("-u, processes", 512),
}
"""Limits by their name in the shell's ulimit, and what a broker needs of each: it must be able to write
the site's logs, and to take the job down at its end."""


def settle() -> None:
    """Stand clear of the caller: directory, umask, signals and timers.

    An ignored SIGCHLD, for one, would make every program that the broker starts seem to succeed.
    """
    os.chdir("/")
    os.umask(0o077)
    # ssh and Ansible are started by fork and exec; gRPC would log a line at each.
    os.environ.update(GRPC_ENABLE_FORK_SUPPORT="0", GRPC_VERBOSITY="NONE")
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    for number in signal.valid_signals() - UNCHANGEABLE:
        signal.signal(number, signal.SIG_IGN if number in IGNORED else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def check_limits() -> None:
    """Raise the limits that are too low, as far as they go.

    Raises:
        RequestError: one is too low for the broker's own work, and nothing but root can raise it.
    """
    for limit, (name, needed) in NEEDED.items():
        soft, hard = resource.getrlimit(limit)
        if soft == resource.RLIM_INFINITY or soft >= needed:
            continue
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise RequestError(
                f"the limit of this shell (ulimit {name}) is {hard}, and the broker needs {needed}; "
                "submit the job without it"
            )
        resource.setrlimit(limit, (hard, hard))
