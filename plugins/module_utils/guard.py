# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's guard on a host: it and the broker notice each other's death at once.

The broker starts one on each host, at the other end of the ssh connection that it shares
with Ansible.  Some batch systems end a job by SIGKILL to all of its processes, the broker's
included; then the guard, which is no process of the job's, reads the end of its input and
takes the node down.  The other way round, it tells the broker that the node's container has
ended, and its connection's end tells that the host is gone.

Besides, it sees to the job's network: when ovs-vswitchd is started anew, it puts the flows
back, see :mod:`.switch`.  It sleeps in poll(2) while the job computes; the one on the first host looks
once a second at the job's cgroup.

Lines of JSON that it reads::

    {"arm": {…}, "remove": […]}     for when the broker dies: options of job_node, state absent, and
                                    files of the broker's own on its host
    {"watch": {"pid": …, "id": …}}  say when this container's first process has ended
    {"adopt": {"pid": …, …}}        take the broker, if it is on this host, out of the job's cgroup, and say when
                                    that is frozen
    {"image": REFERENCE}            say whether this host lacks the image
    {"end": true}                   all is well: go

and writes: ``{"ready": true}`` at the start, ``{"lacks": true}`` or ``false`` for the image, ``{"ended": ID}``
for the container, ``{"suspended": true}`` and ``false`` for the job's cgroup.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import syslog
import time
from typing import TYPE_CHECKING, Any

from .errors import HostError
from .names import host_job_directory
from .release import announce
from .standby import Standby
from .switch import SwitchWatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .adoption import Freezer

ATTEMPTS = 3
PAUSE = 2.0
"""Tries of a takedown, and seconds between them; the reaper comes after that."""

QUIET = 5.0
"""Seconds after which a guard loads what it needs later: while a job starts, others need the processor."""

MENDING = 1.0
"""Seconds between looks for the next ovs-vswitchd."""

SUSPENSION = 1.0
"""Seconds between looks whether the batch system has frozen the job's cgroup."""

LONELY = 30.0
"""Seconds between looks whether the node, whose container has ended, was taken down by somebody else."""

LINE_BYTES = 1 << 20
"""No line from the broker is longer; a longer one means that it isn't the broker."""


class Guard:
    """Stands by until the broker says ``end``, or is gone."""

    def __init__(self, commands: int, answers: int) -> None:
        """Read from the file descriptor *commands*, write to *answers*."""
        self._commands = commands
        self._answers = answers
        self._buffer = b""
        self._options: Mapping[str, Any] | None = None
        self._remove: Sequence[str] = ()
        self._watched: tuple[int, str] | None = None
        self._network: int | None = None
        self._switch: SwitchWatch | None = None
        self._standby: Standby | None = None
        self._freezer: Freezer | None = None
        self._frozen = False
        self._announced = ""
        self._heard = time.monotonic()
        self._ended = False
        self._loaded = False
        self._dismissed = False

    def run(self) -> None:
        """Stand by, and take the node down if the broker goes without a word."""
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self._say({"ready": True})
        while not self._dismissed and self._wait():
            pass
        self._release_standby()
        if self._options is not None and not self._dismissed:
            self._take_down(self._options)
        if self._announced:
            with contextlib.suppress(OSError):
                os.unlink(self._announced)

    def _wait(self) -> bool:
        """Wait for the broker, the container or the switch; False when the broker is gone."""
        poll = select.poll()
        poll.register(self._commands, select.POLLIN)
        if self._watched:
            poll.register(self._watched[0], select.POLLIN)
        if self._switch and self._switch.process is not None:
            poll.register(self._switch.process, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(self._patience())]
        if self._commands in ready:
            return self._read()
        if self._watched and self._watched[0] in ready:
            self._report_end()
        elif ready and self._switch:
            self._switch.ended()
        else:
            self._look_around()
        return True

    def _patience(self) -> float | None:
        """Return the milliseconds after which to look around, None if there is nothing to look for."""
        reasons = (
            (self._switch and self._switch.process is None, MENDING),
            (self._freezer, SUSPENSION),
            (self._options and not self._loaded, QUIET),
            (self._ended, LONELY),
        )
        return min((seconds * 1000 for reason, seconds in reasons if reason), default=None)

    def _look_around(self) -> None:
        """Do what nobody wakes a guard for."""
        if not self._loaded and time.monotonic() - self._heard > 0.9 * QUIET:
            self._load()
        if self._freezer:
            self._look_at_job(self._freezer)
        if self._switch and self._switch.process is None and self._switch.mend():
            self._log(syslog.LOG_WARNING, "ovs-vswitchd was started anew; the flows of its bridge are back")
        if self._ended and self._options and not os.path.lexists(host_job_directory(self._options["job_id"])):
            # A connection that was cut in the middle may not end for hours, when the reaper has long been here.
            self._dismissed = True

    def _look_at_job(self, freezer: Freezer) -> None:
        """Report that the job is suspended, or goes on: its wrapper, frozen, can't tell the broker."""
        frozen = freezer.frozen()
        if frozen is None:
            self._freezer = None
        elif frozen != self._frozen:
            self._frozen = frozen
            self._say({"suspended": frozen})

    def _load(self) -> None:
        """Load the rest of the program, which may be gone when it is needed: a release can be replaced meanwhile."""
        from . import node_task  # noqa: F401 - loaded, not used yet

        self._loaded = True

    def _read(self) -> bool:
        try:
            data = os.read(self._commands, 65536)
        except OSError:
            return False
        self._heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))
        return bool(data) and len(self._buffer) < LINE_BYTES

    def _obey(self, command: Mapping[str, Any]) -> None:
        if "arm" in command:
            self._options, self._remove = command["arm"], command["remove"]
            with contextlib.suppress(OSError):  # only an epilog would miss it
                self._announced = announce(self._options["job_id"], self._options["runtime_root"])
            self._switch = SwitchWatch(self._options["bridge"])
            self._standby = Standby(self._options["job_id"], self._options["run"])
        elif "watch" in command:
            self._release_standby()
            self._watch(command["watch"]["pid"], command["watch"]["id"])
        elif "adopt" in command:
            self._adopt(command["adopt"])
        elif "image" in command:
            from .images import lacks  # only jobs with an image of the registry need it

            self._say({"lacks": lacks(command["image"])})
        else:
            self._dismissed = True

    def _release_standby(self) -> None:
        """Let the set-up's process go, which has done its work or is not needed."""
        if self._standby:
            self._standby.release()
            self._standby = None

    def _adopt(self, broker: Mapping[str, Any]) -> None:
        """Take the broker out of the job's cgroup; where that can't be, it stays, and goes when its job does."""
        from .adoption import adopt  # only one of a job's guards needs it

        try:
            self._freezer = adopt(broker)
        except HostError as error:
            self._log(syslog.LOG_WARNING, str(error))

    def _watch(self, pid: int, container_id: str) -> None:
        """Begin to watch a container; one that has ended already is reported at once."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            self._ended = True
            self._say({"ended": container_id})
            return
        self._watched = (descriptor, container_id)
        # The number may have gone to another process before it was opened, not after.
        if not _belongs(pid, container_id):
            self._report_end()
            return
        # Held until the node is taken down: a link that went with its container could not be asked what it counted.
        with contextlib.suppress(OSError):
            self._network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _report_end(self) -> None:
        if self._watched:
            descriptor, container_id = self._watched
            os.close(descriptor)
            self._watched = None
            self._ended = True
            self._say({"ended": container_id})

    def _say(self, answer: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            os.write(self._answers, json.dumps(answer).encode() + b"\n")

    def _take_down(self, options: Mapping[str, Any]) -> None:
        """Remove the node as the teardown would; nobody listens any more but the system's log."""
        from .jobdir import release_readers, remove_path
        from .node_task import perform

        for path in self._remove:
            with contextlib.suppress(OSError):
                release_readers(path)
                remove_path(path)
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            result = perform(options, check_mode=False)
            if not result.get("failed"):
                self._log(syslog.LOG_WARNING, "its broker is gone; its node here is taken down")
                return
            self._log(syslog.LOG_ERR, f"its broker is gone; taking down failed: {result['msg']}")

    def _log(self, priority: int, text: str) -> None:
        job = self._options["job_id"] if self._options else "?"
        syslog.openlog("dockerjob-guard", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(priority, f"job {job}: {text}")


def _belongs(pid: int, container_id: str) -> bool:
    """Tell whether the process is in the container's cgroup."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            return container_id in file.read()
    except OSError:
        return False
