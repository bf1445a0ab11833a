# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The broker stands apart from the job's processes, so that what the batch system does to them does not hit it.

scancel, a run limit and a suspension act on every process that the batch system takes for the
job's: the wrapper, sudo, and what sudo has started.  A broker that is stopped can't renew its
lease, and one that is killed can't take the job down.  So what sudo has started stays as a
stand-in that only waits for the exit status, and the broker is a process without a parent
among the job's.  It leaves their cgroup, too, see :mod:`dockerjob_core.adoption`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

KILLED = 128 + signal.SIGKILL
"""Exit status of a broker that ended without a word."""

_OTHERS = (signal.SIGTERM, signal.SIGALRM)
"""Signals that the stand-in leaves alone: they are the wrapper's to pass on, and the broker's to act on."""


def stand_apart(work: Callable[[], int]) -> int:
    """Do *work* in a process that is no descendant of the caller's, and return its status, 0 to 255.

    Call it while there are no threads.  The process keeps the caller's session, for that allows it
    to let the stand-in and sudo go on, and gets a process group of its own.
    """
    status_out, status_in = os.pipe()
    waiting = (os.getpid(), os.getppid())
    # Before the fork: a signal may come as soon as the work has begun.
    for number in _OTHERS:
        signal.signal(number, signal.SIG_IGN)
    child = os.fork()
    if not child:
        # Whatever happens here, this copy of the caller must not return into its code.
        try:
            if not os.fork():
                os.close(status_out)
                os.setpgid(0, 0)
                for number in _OTHERS:
                    signal.signal(number, signal.SIG_DFL)
                os.write(status_in, bytes((work(),)))
                _let_go_on(waiting)
        finally:
            os._exit(0)
    os.close(status_in)
    os.waitpid(child, 0)
    answer = os.read(status_out, 1)
    return answer[0] if answer else KILLED


def _let_go_on(waiting: tuple[int, ...]) -> None:
    """Continue who waits for the status and may still be stopped.

    sudo stops itself when it sees its child stopped.  A batch system that continues sudo first can so leave it
    stopped for good, and the wrapper would wait for ever.  SIGCONT may be sent within a session
    whoever the receiver is (kill(2)).
    """
    for pid in waiting:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
