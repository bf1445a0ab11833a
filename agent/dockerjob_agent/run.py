# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent under supervisord: discovery, then COMMAND on the master, then the end."""

from __future__ import annotations

import os
import queue
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dockerjob_core.errors import DiscoveryError, DockerjobError, RequestError, WallClockError

from . import mpi, network
from .command import EXIT_STATUS_NAME, Command, read_command
from .discovery import Discovery, Verified
from .files import write_atomic
from .log import StoryLog
from .services import FORWARDED
from .spec import READ_ONLY, WRITABLE, JobSpec, load, load_environment
from .terminal import Attached, await_terminal
from .tree import RUNNING, Change, Tree

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PID_NAME = "agent.pid"


@dataclass(frozen=True)
class Ended:
    """COMMAND has ended by itself."""

    status: int


@dataclass(frozen=True)
class Signalled:
    """A signal that ends programs came while there was no COMMAND to take it."""

    number: int


class JobOverError(Exception):
    """The job is over although COMMAND did not say so on this node; the text is the reason."""

    def __init__(self, reason: str, exit_status: int) -> None:
        """Keep what the container's exit status shall be."""
        super().__init__(reason)
        self.exit_status = exit_status


Event = Change | Verified | Ended | Signalled | Attached


class Agent:
    """One node's part in the job."""

    def __init__(self, spec: JobSpec, read_only: Path, writable: Path, log: StoryLog) -> None:
        """Prepare; :meth:`run` does the work."""
        self._spec = spec
        self._read_only = read_only
        self._writable = writable
        self._log = log
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._tree = Tree(spec, read_only, log)
        self._command: Command | None = None
        self._terminal: Attached | None = None
        self._signal: int | None = None
        self._latest = None if spec.lifetime is None else time.monotonic() + spec.lifetime

    def run(self) -> int:
        """Take the node through the job and return the container's exit status.

        Raises:
            DockerjobError: The job can't go on, for a reason the user should read.
        """
        for number in FORWARDED:
            signal.signal(number, self._on_signal)
        if self._spec.terminal and self._spec.is_master:
            await_terminal(self._writable, self._events.put)
        self._prepare()
        follower = self._tree.follow(self._events.put)
        try:
            self._discover()
            follower.only_finish()
            return self._master() if self._spec.is_master else self._slave()
        except JobOverError as reason:
            self._log(f"JOB IS OVER: {reason}")
            self._end_command()
            return reason.exit_status

    def _on_signal(self, number: int, _frame: object) -> None:
        """Hand a signal to COMMAND; without one, a signal that ends programs ends the job."""
        self._log(f"SIGNAL {signal.Signals(number).name} RECEIVED")
        if self._command:
            self._command.signal(number)
        elif number in ENDING:
            # A SimpleQueue may be filled from a signal handler.
            self._events.put(Signalled(number))

    def _prepare(self) -> None:
        """Check what discovery can't, wait for the network, publish this node."""
        if not os.path.isdir(self._spec.jobdir):
            raise RequestError(
                f"JOBDIR {self._spec.jobdir} does not exist in {self._spec.me.name} on {self._spec.me.host}: "
                "is the file system mounted on that host, and given to job containers by the site?"
            )
        # The wrapper resolved the links, but whoever speaks to the broker need not be the wrapper.
        if os.path.realpath(self._spec.jobdir) != self._spec.jobdir:
            raise RequestError(
                f"JOBDIR {self._spec.jobdir} leads to {os.path.realpath(self._spec.jobdir)} in {self._spec.me.name}; "
                "name the directory itself"
            )
        me = self._spec.me
        if not network.wait_for_address(self._spec.interface, me.address, self._spec.discovery_timeout):
            raise DiscoveryError(
                f"{me.name} on {me.host} got no address {me.address} on {self._spec.interface} in "
                f"{self._spec.discovery_timeout:.0f} s"
            )
        self._log(f'INTERFACE "{self._spec.interface}" HAS ADDRESS "{me.address}"')
        self._tree.publish((self._writable / "id_ed25519.pub").read_text().strip())

    def _discover(self) -> None:
        """Feed discovery until every node is READY."""
        deadline = time.monotonic() + self._spec.discovery_timeout
        discovery = Discovery(self._spec, self._writable, self._log, self._events.put, self._tree.set_ready)
        try:
            while not discovery.done:
                changes, verified = self._collect(deadline)
                if not changes and not verified and time.monotonic() > deadline:
                    raise discovery.failure()
                discovery.take(changes, verified)
        finally:
            discovery.close()
        mpi.write_host_files(self._spec.nodes, self._writable)
        self._log("RECEIVED A READY STATE FOR ALL NODES")
        self._log(f"DISCOVERY COMPLETE {time.time() - node_started():.2f} s AFTER THE START OF THIS NODE")

    def _collect(self, deadline: float) -> tuple[list[Change], list[Verified]]:
        """Wait for an event, and take along what else has come; FINISH is seen to here."""
        changes: list[Change] = []
        verified: list[Verified] = []
        event = self._next(deadline)
        while event is not None:
            if isinstance(event, Attached):
                self._terminal = event
            elif isinstance(event, Verified):
                verified.append(event)
            elif isinstance(event, Change):
                self._check_finish(event)
                changes.append(event)
            event = None if self._events.empty() else self._events.get()
        return changes, verified

    def _next(self, deadline: float | None) -> Event | None:
        """Wait for the next event; None when *deadline* (monotonic) came first.

        Raises:
            JobOverError: The wall clock ran out, or a signal ended the job before COMMAND.
        """
        limits = [] if deadline is None else [deadline - time.monotonic()]
        if self._latest is not None:
            limits.append(self._latest - time.monotonic())
        try:
            event = self._events.get(timeout=max(0.0, min(limits)) if limits else None)
        except queue.Empty:
            if self._latest is not None and time.monotonic() >= self._latest:
                raise JobOverError("the wall-clock limit is reached", WallClockError.exit_status) from None
            return None
        if isinstance(event, Attached):
            self._terminal = event
        if isinstance(event, Signalled):
            self._signal = event.number
            raise JobOverError(f"signal {signal.Signals(event.number).name}", 128 + event.number)
        return event

    def _check_finish(self, change: Change) -> None:
        if change.leaf != "FINISH" or change.value == RUNNING:
            return
        if change.value is None:
            reason = "FINISH is gone: the lease ran out, or the job was taken down"
            raise JobOverError(reason, WallClockError.exit_status)
        if not self._command:
            raise JobOverError(f"FINISH is {change.value}", 0)

    def _master(self) -> int:
        """Run COMMAND, report its exit status and return it."""
        spec = self._spec
        if spec.hostfile:
            path = mpi.write_job_hostfile(spec.nodes, Path(spec.jobdir), spec.hostfile)
            self._log(f"HOSTFILE WRITTEN TO {path}")
        environment = mpi.job_environment(
            os.environ, load_environment(self._read_only), spec.interface, self._writable
        )
        text = read_command(self._read_only)
        self._log(f"<<< MASTER: starting COMMAND in {spec.jobdir} >>>")
        terminal = self._wait_for_terminal() if spec.terminal else None
        self._command = Command(spec, text, environment, terminal.slave if terminal else None)
        if terminal:
            terminal.begun()
        self._command.when_done(lambda status: self._events.put(Ended(status)))
        while True:
            event = self._next(None)
            if isinstance(event, Ended):
                self._log(f"<<< MASTER: COMMAND ended with status {event.status} >>>")
                if terminal:
                    terminal.ended()
                self._report(event.status)
                return event.status
            if isinstance(event, Change):
                self._check_finish(event)

    def _wait_for_terminal(self) -> Attached:
        """Wait until the broker's side has brought COMMAND's terminal.

        Raises:
            DiscoveryError: It has not, in the time that discovery may take.
        """
        deadline = time.monotonic() + self._spec.discovery_timeout
        while not self._terminal:
            event = self._next(deadline)
            if isinstance(event, Change):
                self._check_finish(event)
            if event is None:
                raise DiscoveryError(
                    f"no terminal for COMMAND came in {self._spec.discovery_timeout:.0f} s; is the broker gone?"
                )
        return self._terminal

    def _slave(self) -> NoReturn:
        """Wait for the master's FINISH, which ends the job here."""
        self._log("<<< SLAVE: going into slave mode and wait job to end >>>")
        while True:
            event = self._next(None)
            if isinstance(event, Change):
                self._check_finish(event)

    def _report(self, status: int) -> None:
        """Leave COMMAND's exit status on the host and in etcd."""
        write_atomic(self._writable / EXIT_STATUS_NAME, f"{status}\n", 0o644)
        self._tree.finish(status)

    def _end_command(self) -> None:
        """Stop COMMAND if it runs; a signal before it began counts as its end by that signal."""
        if self._command:
            status = self._command.end()
            self._log(f"COMMAND STOPPED, STATUS {status}")
        elif self._signal is not None and self._spec.is_master:
            self._report(128 + self._signal)


def node_started() -> float:
    """Return when ``init`` began, in seconds since the epoch."""
    return float(os.environ[mpi.STARTED])


def main() -> int:
    """Run the agent; the container ends when it returns."""
    log = StoryLog()
    (WRITABLE / PID_NAME).write_text(f"{os.getpid()}\n")
    try:
        spec = load(READ_ONLY)
        if spec.verbose and spec.is_master:
            # The container's stderr, which the user sees beside COMMAND's.
            log.also_to("/proc/1/fd/2")
        status = Agent(spec, READ_ONLY, WRITABLE, log).run()
    except DockerjobError as error:
        log.error(str(error))
        return error.exit_status
    log("AGENT ENDS")
    return status
