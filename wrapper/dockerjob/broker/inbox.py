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
import threading
from collections.abc import Callable, Collection
from typing import IO

from dockerjob_core.errors import KvsError, StoppedError
from dockerjob_core.kvs import Event, Watch

LONGEST_LINE = 4096
MOST_SIGNALS = 64
"""The wrapper is the user's: its lines are short, and unread signals few, or they are not kept."""


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
    """The output of node 0 has ended; *status* is that of the follower, which was stopped if it was *too_much*."""

    status: int
    too_much: bool = False


@dataclasses.dataclass(frozen=True)
class NodeEnded:
    """The container on *host* has ended, or, if not *host_is_there*, the host itself is lost."""

    host: str
    host_is_there: bool


@dataclasses.dataclass(frozen=True)
class AllocationLost:
    """The job has ended for the batch system, or has other hosts; *reason* says how it was seen."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Suspended:
    """The batch system has suspended the job, or let it go on: *now* it is suspended or not."""

    now: bool


@dataclasses.dataclass(frozen=True)
class TerminalLost:
    """Node 0's end of the user's terminal has ended before COMMAND did; *reason* is what it said."""

    reason: str


Message = (
    Signalled
    | TreeChanged
    | WatchFailed
    | OutputEnded
    | NodeEnded
    | AllocationLost
    | Suspended
    | TerminalLost
)


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
        if isinstance(message, Signalled):
            if message.number in ENDING and self.ended_by is None:
                self.ended_by = message.number
            if self._queue.qsize() >= MOST_SIGNALS:
                return
        self._queue.put(message)

    def put_later(self, message: Message, delay: float) -> None:
        """Add a message after *delay* seconds."""
        timer = threading.Timer(delay, self.put, [message])
        timer.daemon = True
        timer.start()

    def check(self) -> None:
        """Raise ``StoppedError`` if a signal has ended the job."""
        if self.ended_by is not None:
            raise StoppedError(self.ended_by)

    def listen(self, stream: IO[bytes], other: Callable[[bytes], None] = lambda _line: None) -> None:
        """Read the wrapper's lines in a thread, until the stream ends; *other* gets those that are no signal."""
        _start("wrapper", lambda: self._listen(stream, other))

    def watch(self, watch: Watch, wanted: Collection[str]) -> None:
        """Read *watch* in a thread, until it is cancelled or fails; only keys in *wanted* are told of.

        The job's processes may write under its prefix what they like.
        """
        _start("watch", lambda: self._watch(watch, wanted))

    def _listen(self, stream: IO[bytes], other: Callable[[bytes], None]) -> None:
        while line := stream.readline(LONGEST_LINE):
            number = signal_of(line)
            if number is not None:
                self.put(Signalled(number))
            else:
                other(line)
        self.put(Signalled(signal.SIGHUP))

    def _watch(self, watch: Watch, wanted: Collection[str]) -> None:
        try:
            while True:
                event = watch.next(None)
                if event is None:
                    return
                if event.key in wanted:
                    self.put(TreeChanged(event))
        except KvsError as error:
            self.put(WatchFailed(str(error)))


def signal_of(line: bytes) -> int | None:
    """Return the signal that a line of the wrapper's tells of; None for any other text."""
    try:
        return int(signal.Signals(json.loads(line)["signal"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


ENDING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def _start(name: str, target: Callable[[], None]) -> None:
    threading.Thread(name=name, target=target, daemon=True).start()
