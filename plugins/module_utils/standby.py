# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A process on a host that has loaded all that the job's set-up needs, before that comes.

Ansible needs a second until its first task.  Meanwhile the job's guard forks one of these,
which imports the Docker SDK (0.15 s).  The program that Ansible then calls hands its task
over, and need not import it itself.  The process does one task and ends; without it the
program does the task, only later, so whatever goes wrong here costs nothing but that time.

They meet at a socket in the abstract namespace (unix(7)), which leaves no file behind.
Anyone on the host could listen there first, or connect; so each end asks the kernel who
the other one is, and speaks to its own account only.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Perform = Callable[..., Mapping[str, Any]]

PATIENCE = 60.0
"""Seconds after which a set-up that does not come is not waited for any more."""

COURTESY = 10
"""Niceness while loading: who is loading at the same time is waited for, this is not."""

_PEER = struct.Struct("3i")
"""``struct ucred`` of unix(7): process, user, group."""


class Standby:
    """The guard's hold on the process, which ends with the guard, unless it is at work."""

    def __init__(self, job_id: str, run: str) -> None:
        """Fork it for this run of the job; nobody has to wait for its end."""
        ending, self._lifeline = os.pipe()
        between = os.fork()
        if not between:
            with suppress(BaseException):
                if not os.fork():
                    os.close(self._lifeline)
                    _be(job_id, run, ending)
            os._exit(0)
        os.close(ending)
        os.waitpid(between, 0)

    def release(self) -> None:
        """Let it go: if it waits still it ends at once."""
        os.close(self._lifeline)


def _be(job_id: str, run: str, ending: int) -> None:
    """Be the process: listen, load, take one task, do it, answer."""
    _leave_the_guards_files()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(_address(job_id, run))
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        os.nice(COURTESY)
        import docker  # noqa: F401 - loaded for node_task, which imports it when it connects

        from .node_task import perform

        with suppress(OSError):  # who isn't root can't take it back
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
        listener.listen()
        ready, _, _ = select.select([listener.fileno(), ending], [], [], PATIENCE)
        if listener.fileno() in ready:
            _serve(listener, perform)


def _leave_the_guards_files() -> None:
    """Let go of the connection to the broker, whose end the guard is waiting for."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _serve(listener: socket.socket, perform: Perform) -> None:
    connection, _ = listener.accept()
    listener.close()
    with connection:
        if not _is_own(connection):
            return
        with connection.makefile("rwb") as stream:
            task = json.loads(stream.readline())
            result = perform(task["options"], check_mode=task["check_mode"])
            stream.write(json.dumps(result).encode() + b"\n")


def hand_over(task: Mapping[str, Any]) -> dict[str, Any] | None:
    """Have the process do *task*; None if there is none, or it has died over it.

    Args:
        task: ``options`` of the module ``job_node`` and ``check_mode``.
    """
    options = task["options"]
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(_address(str(options["job_id"]), str(options.get("run") or "")))
        if _is_own(connection):
            with connection.makefile("rwb") as stream:
                stream.write(json.dumps(task).encode() + b"\n")
                stream.flush()
                return dict(json.loads(stream.readline()))
    return None


def _address(job_id: str, run: str) -> str:
    """Name the socket after the job's run, and the program's directory: another version is another program."""
    return f"\0dockerjob/{Path(__file__).parents[1].name}/{job_id}/{run}"


def _is_own(connection: socket.socket) -> bool:
    """Tell whether the other end is of this process's own account (SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return bool(_PEER.unpack(credentials)[1] == os.geteuid())
