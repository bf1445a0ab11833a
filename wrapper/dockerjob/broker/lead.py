# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leading a job whose containers run: discovery, COMMAND, the batch system's signals, the lease."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

from dockerjob_core import jobtree, names
from dockerjob_core.container import LOG_ENTRY_BYTES
from dockerjob_core.errors import (
    DiscoveryError,
    DockerjobError,
    HostError,
    KvsError,
    PolicyError,
    StoppedError,
)
from dockerjob_core.jobtree import JobTree
from dockerjob_core.kvs import Kvs

from ..config import Limits
from .clock import WallClock
from .inbox import (
    AllocationLost,
    Inbox,
    Message,
    NodeEnded,
    OutputEnded,
    Signalled,
    Suspended,
    TerminalLost,
    TreeChanged,
    WatchFailed,
)
from .nodes import Nodes
from .presence import Presence
from .watched import WatchedTree

PASSED_ON = frozenset((signal.SIGUSR1, signal.SIGUSR2))
"""Signals that are COMMAND's own business: batch systems warn with them before the run limit."""

DISCOVERY_SLACK = 5.0
"""Seconds after the agents' own time limit for discovery: they say better what is missing."""


class Lead:
    """The broker's main loop while the containers run."""

    def __init__(
        self,
        kvs: Kvs,
        tree: JobTree,
        limits: Limits,
        clock: WallClock,
        inbox: Inbox,
        nodes: Nodes,
        presence: Presence,
    ) -> None:
        """Lead the run *tree*; nothing is done yet.

        Args:
            kvs: the broker's connection to etcd.
            tree: the run, whose record names the hosts.
            limits: the site's times.
            clock: the job's wall-clock.
            inbox: where everything comes in.
            nodes: the containers.
            presence: what has to be kept alive.
        """
        self._kvs = kvs
        self._tree = tree
        self._limits = limits
        self._clock = clock
        self._inbox = inbox
        self._nodes = nodes
        self._presence = presence
        self._watched = WatchedTree(tree.job_id, tree.hosts)
        self._ending: int | None = None
        self._suspend_first = False

    def discovery(self) -> int | None:
        """Wait until all nodes are READY; return COMMAND's status if it ended as fast as that.

        Raises:
            DockerjobError: they were not in time, or something ended the job.
        """
        self._watch_tree()
        limit = time.monotonic() + self._limits.discovery_timeout + DISCOVERY_SLACK
        return self._wait(
            lambda: min(limit, self._clock.deadline), self._check_discovery, lambda: self._watched.ready
        )

    def compute(self) -> int | None:
        """Wait until COMMAND has ended; return its status, None if node 0 left none in etcd.

        Raises:
            DockerjobError: something ended the job before.
        """
        if self._suspend_first:
            self._suspend()
        return self._wait(lambda: self._clock.deadline, self._clock.check, lambda: False)

    def _wait(
        self, limit: Callable[[], float], check: Callable[[], None], done: Callable[[], bool]
    ) -> int | None:
        """Take messages until COMMAND has ended (its status), or *done*, or node 0 is gone (None).

        *check* is called at *limit* (in seconds of time.monotonic()) and raises when time is up.
        """
        while not done():
            status = self._watched.status()
            if status is not None:
                return status
            if self._inbox.ended_by is not None:
                self._end(self._inbox.ended_by)
            if time.monotonic() >= limit():
                check()
            self._presence.renew()
            patience = min(self._presence.next_renewal - time.monotonic(), limit() - time.monotonic() + 0.1)
            message = self._inbox.get(patience)
            if message is not None and self._take(message):
                return None
        return None

    def _take(self, message: Message) -> bool:
        """Act on a message; True: node 0 is gone without a word in etcd."""
        if isinstance(message, TreeChanged):
            event = message.event
            if event.type == "put":
                self._watched.take(event.key, event.value)
            elif event.key == self._watched.finish_key:
                raise self._lease_ended()
        elif isinstance(message, Signalled):
            self._signalled(message.number)
        elif isinstance(message, WatchFailed):
            self._rewatch()
        elif isinstance(message, AllocationLost):
            raise PolicyError(f"{message.reason}; its containers were ended")
        elif isinstance(message, Suspended):
            self._signalled(signal.SIGTSTP if message.now else signal.SIGCONT)
        elif isinstance(message, TerminalLost):
            raise HostError(f"lost COMMAND's terminal on {self._tree.hosts[0]}: {message.reason}")
        elif isinstance(message, NodeEnded):
            return self._node_ended(message)
        elif isinstance(message, OutputEnded) and message.too_much:
            raise too_much_output(self._limits)
        elif isinstance(message, OutputEnded) and message.status == 0:
            return self._node_ended(NodeEnded(self._tree.hosts[0], host_is_there=True))
        return False

    # -- what the batch system wants ------------------------------------------------------

    def _signalled(self, number: int) -> None:
        if number in PASSED_ON:
            with contextlib.suppress(HostError):
                self._nodes.signal_command(number)
        elif number in (signal.SIGTSTP, signal.SIGCONT) and not self._watched.ready:
            # Nodes that are stopped can't find each other in time.
            self._suspend_first = number == signal.SIGTSTP
        elif number == signal.SIGTSTP and not self._clock.suspended:
            self._suspend()
        elif number == signal.SIGCONT and self._clock.suspended:
            self._nodes.thaw()
            self._clock.go_on()
            self._presence.enter("compute")

    def _suspend(self) -> None:
        self._nodes.freeze()
        self._clock.stop()
        self._presence.enter("suspended")

    def _end(self, number: int) -> None:
        """Let COMMAND end by itself for a moment, then end the job.

        Raises:
            StoppedError: always, but for a second signal: the first one decides.
        """
        if self._ending is not None:
            return
        self._ending = number
        with contextlib.suppress(DockerjobError):
            if self._clock.suspended:
                self._nodes.thaw()
            if self._watched.ready:
                # A wrapper that is gone has no signal's name for COMMAND.
                self._nodes.signal_command(signal.SIGTERM if number == signal.SIGHUP else number)
                end = time.monotonic() + self._limits.kill_grace
                self._wait(lambda: end, lambda: _time_is_up(number), lambda: False)
        raise StoppedError(number)

    # -- what happens to the job ----------------------------------------------------------

    def _node_ended(self, message: NodeEnded) -> bool:
        """See whether that is how it should be: a job ends with FINISH first.

        Raises:
            DiscoveryError: a node has given up before all were READY.
            HostError: a host is lost, or a container ended under COMMAND.
        """
        with contextlib.suppress(KvsError):
            item = self._kvs.get(self._watched.finish_key)
            if item is not None and item.value != jobtree.RUNNING:
                self._watched.take(item.key, item.value)
                return False
        index = self._tree.hosts.index(message.host)
        node = names.node_name(self._tree.job_id, index)
        if not message.host_is_there:
            raise HostError(f"lost {message.host}, which runs {node}: the ssh connection to it has ended")
        if not self._watched.ready:
            raise DiscoveryError(f"{node} on {message.host} ended before all nodes were ready")
        if index == 0:
            # Its agent may not have reached etcd; what it left on the host tells.
            return True
        raise HostError(f"the container {node} on {message.host} ended before COMMAND did")

    def _rewatch(self) -> None:
        """Read the tree again and watch from there; etcd may be away for a while."""
        try:
            found = self._watch_tree()
        except KvsError:
            self._inbox.put_later(WatchFailed("etcd is still out of reach"), 1.0)
            return
        if not found:
            raise self._lease_ended()

    def _watch_tree(self) -> bool:
        """Read the job's tree and have its later changes put in the inbox; say whether there is a FINISH."""
        prefix = names.job_prefix(self._tree.job_id)
        snapshot = self._kvs.get_prefix(prefix)
        self._inbox.watch(self._kvs.watch_prefix(prefix, snapshot.revision + 1), self._watched.keys)
        for item in snapshot.items:
            self._watched.take(item.key, item.value)
        return any(item.key == self._watched.finish_key for item in snapshot.items)

    def _lease_ended(self) -> KvsError:
        return KvsError(f"the lease of job {self._tree.job_id} ended; etcd was out of reach for too long")

    # -- discovery ------------------------------------------------------------------------

    def _check_discovery(self) -> None:
        self._clock.check()
        limit = self._limits.discovery_timeout
        raise DiscoveryError(f"not ready within {limit} s: {', '.join(self._watched.waiting())}")


def too_much_output(limits: Limits) -> PolicyError:
    """Say that COMMAND has written more than it may: more than dockerd's log keeps for certain."""
    most = limits.output.human_readable()
    return PolicyError(
        f"COMMAND's output is larger than {most} (limits.output), of which a short line takes {LOG_ENTRY_BYTES} "
        "bytes more than it has; what came after that is lost: write such results to a file in JOBDIR"
    )


def _time_is_up(number: int) -> None:
    raise StoppedError(number)
