# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The broker's one queue: signals from the wrapper, changes in etcd, the end of the output.

Each source is a thread that only blocks and puts; the job's main loop is the one reader,
so it sleeps until something happens and needs no polling.
"""

from __future__ import annotations

import dataclasses
import json
import queue
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import IO

from dockerjob_core.errors import KvsError
from dockerjob_core.kvs import Event, Watch


@dataclasses.dataclass(frozen=True)
class Signalled:
    """The wrapper got signal *number*, or is gone (then SIGHUP)."""

    number: int


@dataclasses.dataclass(frozen=True)
class TreeChanged:
    """Something changed in the job's tree."""

    event: Event


@dataclasses.dataclass(frozen=True)
class WatchFailed:
    """The watch on the job's tree broke; *message* says why."""

    message: str


@dataclasses.dataclass(frozen=True)
class OutputEnded:
    """The output of node 0 has ended; *status* is that of the follower."""

    status: int


Message = Signalled | TreeChanged | WatchFailed | OutputEnded


class Inbox:
    """The queue, and the flag that a set-up under way looks at."""

    def __init__(self) -> None:
        """Start empty."""
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.ended_by: int | None = None
        """Number of the first signal that ends the job, None while there was none."""

    def get(self, timeout: float) -> Message | None:
        """Return the next message, or None after *timeout* seconds without one."""
        try:
            return self._queue.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None

    def put(self, message: Message) -> None:
        """Add a message; a signal that ends the job is remembered at once."""
        if isinstance(message, Signalled) and message.number in ENDING and self.ended_by is None:
            self.ended_by = message.number
        self._queue.put(message)

    def listen(self, stream: IO[bytes]) -> None:
        """Read the wrapper's lines in a thread, until the stream ends."""
        _start("wrapper", lambda: self._listen(stream))

    def watch(self, watch: Watch) -> None:
        """Read *watch* in a thread, until it is cancelled or fails."""
        _start("watch", lambda: self._watch(watch))

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the process that follows the output, in a thread."""
        _start("output", lambda: self.put(OutputEnded(process.wait())))

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            try:
                number = json.loads(line)["signal"]
            except (ValueError, TypeError, KeyError):
                continue
            if isinstance(number, int):
                self.put(Signalled(number))
        self.put(Signalled(signal.SIGHUP))

    def _watch(self, watch: Watch) -> None:
        try:
            while True:
                event = watch.next(None)
                if event is None:
                    return
                self.put(TreeChanged(event))
        except KvsError as error:
            self.put(WatchFailed(str(error)))


ENDING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def _start(name: str, target: Callable[[], None]) -> None:
    threading.Thread(name=name, target=target, daemon=True).start()
