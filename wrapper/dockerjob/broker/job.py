# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of one job: prepare, start, discover, compute, take down.

What each phase leaves if the broker dies right there, and who removes it:

* prepare: a lease, the job's keys under it, an etcd user, a network reservation.  The
  keys go when the lease ends; user and reservation stay for the reaper, or until the
  same job id comes again.
* start and after: containers, ports and files on the hosts as well.  The agents end the
  containers when the lease ends; ``playbooks/job_teardown.yml`` removes what is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dockerjob_core import ipam, jobtree, names
from dockerjob_core.allocation import inventory_of
from dockerjob_core.errors import (
    DiscoveryError,
    DockerjobError,
    HostError,
    KvsError,
    WallClockError,
)
from dockerjob_core.kvs import Endpoint, Kvs

from ..config import Config
from ..request import JobRequest
from .certificates import issue
from .connections import Connections
from .identity import Identity
from .inbox import Inbox, OutputEnded, Signalled, TreeChanged, WatchFailed
from .plan import JobPlan, check_placement, choose_application
from .playbooks import HostResults, PlaybookRun
from .report import Report

_END_OF_OUTPUT = 10.0


class StoppedError(DockerjobError):
    """A signal ended the job before COMMAND did."""

    def __init__(self, number: int) -> None:
        """Keep the shell's exit status for death by signal *number*."""
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_status = 128 + number


class Job:
    """One job, from a checked request to its exit status."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        request: JobRequest,
        inbox: Inbox,
        directory: Path,
        setup: PlaybookRun,
    ) -> None:
        """Check the request against the site; nothing is created yet.

        Args:
            config: the site's configuration.
            identity: the user.
            request: what the user asks for.
            inbox: where signals come in.
            directory: private directory of the job, which the caller removes.
            setup: the run of ``job_setup.yml`` that waits for its inventory.

        Raises:
            RequestError, PolicyError: see :mod:`.plan`.
        """
        self._config = config
        self._identity = identity
        self._request = request
        self._inbox = inbox
        self._application = choose_application(config, request.application)
        check_placement(config, request)
        self._hosts = [host.name for host in request.allocation.hosts]
        self.job_id = request.job_id
        self.report = Report(
            self.job_id, identity.name, request.application, self._hosts, self._application.image
        )
        self._directory = directory
        self._setup = setup
        self._teardown: PlaybookRun | None = None
        self._node_results: dict[str, dict[str, Any]] = {}
        self._connections = Connections(config, self._hosts, self._directory / "ssh")
        self._wall_clock = min(request.wall_clock or config.limits.wall_clock, config.limits.wall_clock)
        self._deadline = time.time() + self._wall_clock
        self._lease = 0
        self._started = False

    def run(self) -> int:
        """Lead the job to its end and return its exit status; errors are in the report."""
        try:
            self.report.status = self._run()
        except DockerjobError as error:
            self.report.status, self.report.error = error.exit_status, str(error)
        return self.report.status

    def _run(self) -> int:
        with self._connected() as kvs:
            try:
                plan = self._prepare(kvs)
                self._start(plan)
                status = self._lead(kvs)
            finally:
                with self.report.phase("teardown"):
                    self._take_down(kvs)
        return self._final_status(status)

    # -- set-up -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Kvs]:
        """Open etcd and the hosts side by side; close both at the end."""
        settings = self._config.etcd
        endpoint = Endpoint(
            target=f"unix:{settings.socket}",
            ca=settings.ca,
            cert=settings.cert,
            key=settings.key,
            server_name=settings.server_name,
        )
        with self.report.phase("prepare"), ThreadPoolExecutor(1) as pool:
            hosts = pool.submit(self._connections.open)
            try:
                kvs = Kvs.connect(endpoint)
                kvs.get(names.job_index_key(self.job_id))
                hosts.result()
            except DockerjobError:
                self._connections.close()
                raise
        try:
            yield kvs
        finally:
            kvs.close()
            self._connections.close()

    def _prepare(self, kvs: Kvs) -> JobPlan:
        """Reserve the network, make the job's tree, its lease and its identity in etcd."""
        with self.report.phase("prepare"):
            settings, limits = self._config.network, self._config.limits
            pool = ipam.NetworkPool(settings.pool, settings.prefix_length, settings.vlans)
            network = ipam.reserve(kvs, pool, self.job_id)
            self.report.network = f"{network.subnet}, VLAN {network.vlan}"
            record = {
                "user": self._identity.name,
                "uid": self._identity.uid,
                "application": self._request.application,
                "hosts": self._hosts,
                "broker_host": os.uname().nodename,
                "deadline": self._deadline,
            }
            self._lease = jobtree.create_job_tree(
                kvs, self.job_id, len(self._hosts), limits.lease_ttl, record
            )
            lifetime = self._deadline - time.time() + limits.grace
            certificate = issue(self._config.job_ca, names.etcd_user(self.job_id), lifetime)
            self._check_signal()
            return JobPlan(
                self._config,
                self._identity,
                self._request,
                self._application,
                network,
                self._lease,
                self._deadline,
                certificate,
            )

    def _start(self, plan: JobPlan) -> None:
        """Bring up the node on every host."""
        with self.report.phase("start"):
            self._started = True
            self._setup.release(self._inventory(plan.host_specs()))
            while not self._setup.wait(self._hosts, 0.2):
                if self._inbox.ended_by is not None:
                    self._setup.cancel()
            results = self._setup.results(self._hosts)
            self._check_signal()
            self.report.hosts_detail = {
                host: result.get("steps", []) for host, result in results.returned.items()
            }
            if results.failed:
                raise HostError(_describe("could not start the container", results.failed))

    # -- discovery and compute ----------------------------------------------------------

    def _lead(self, kvs: Kvs) -> int | None:
        """Stream the output and wait for FINISH; None if COMMAND left no status in etcd."""
        output = self._follow_output()
        try:
            with self.report.phase("discovery"):
                snapshot = kvs.get_prefix(names.job_prefix(self.job_id))
                self._inbox.watch(kvs.watch_prefix(names.job_prefix(self.job_id), snapshot.revision + 1))
                state = {item.key: item.value for item in snapshot.items}
                limit = time.time() + self._config.limits.discovery_timeout + 5
                status = self._wait(kvs, state, limit, lambda: self._ready(state) == len(self._hosts))
            if status is None:
                # Loads now and then only waits: so the end of COMMAND need not wait for it.
                self._teardown = self._new_teardown()
                with self.report.phase("compute"):
                    status = self._wait(kvs, state, self._deadline, lambda: False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                output.wait(_END_OF_OUTPUT)
            return status
        finally:
            output.terminate()

    def _wait(self, kvs: Kvs, state: dict[str, bytes], limit: float, done: Callable[[], bool]) -> int | None:
        """Take messages until COMMAND has ended (its status) or *done* (None)."""
        renewal = time.monotonic()
        while not done():
            finish = state.get(names.finish_key(self.job_id), jobtree.RUNNING)
            if finish != jobtree.RUNNING:
                return int(finish)
            if time.time() > limit:
                raise self._overdue(state)
            if time.monotonic() >= renewal:
                self._renew(kvs)
                renewal = time.monotonic() + self._config.limits.lease_ttl / 3
            message = self._inbox.get(min(renewal - time.monotonic(), limit - time.time() + 0.1))
            if isinstance(message, TreeChanged):
                event = message.event
                if event.type == "put":
                    state[event.key] = event.value
                elif event.key == names.finish_key(self.job_id):
                    raise KvsError(
                        f"the lease of job {self.job_id} ended; etcd was out of reach for too long"
                    )
            elif isinstance(message, Signalled):
                self._check_signal()
            elif isinstance(message, WatchFailed):
                self._rewatch(kvs, state)
            elif isinstance(message, OutputEnded) and message.status == 0:
                # Node 0's container has ended.  A status it has left is in etcd by now.
                item = kvs.get(names.finish_key(self.job_id))
                if item is None or item.value == jobtree.RUNNING:
                    raise DiscoveryError(f"{names.node_name(self.job_id, 0)} on {self._hosts[0]} ended early")
                state[item.key] = item.value
        return None

    def _rewatch(self, kvs: Kvs, state: dict[str, bytes]) -> None:
        """Read the tree again and watch from there; etcd may be away for a while."""
        while True:
            try:
                snapshot = kvs.get_prefix(names.job_prefix(self.job_id))
                self._inbox.watch(kvs.watch_prefix(names.job_prefix(self.job_id), snapshot.revision + 1))
            except KvsError:
                self._check_signal()
                if time.time() > self._deadline:
                    raise
                time.sleep(1)
                continue
            break
        if not any(item.key == names.finish_key(self.job_id) for item in snapshot.items):
            raise KvsError(f"the lease of job {self.job_id} ended; etcd was out of reach for too long")
        state.update((item.key, item.value) for item in snapshot.items)

    def _renew(self, kvs: Kvs) -> None:
        """Keep the lease; while etcd is away the agents go on until it ends by itself."""
        with contextlib.suppress(KvsError):
            kvs.lease_keepalive(self._lease)

    def _ready(self, state: dict[str, bytes]) -> int:
        return sum(
            state.get(names.node_key(self.job_id, index, "READY")) == b"True"
            for index in range(len(self._hosts))
        )

    def _overdue(self, state: dict[str, bytes]) -> DockerjobError:
        if time.time() >= self._deadline:
            return WallClockError(f"the wall-clock limit of {self._wall_clock} s is reached")
        waiting = [
            f"{names.node_name(self.job_id, index)} on {host}"
            for index, host in enumerate(self._hosts)
            if state.get(names.node_key(self.job_id, index, "READY")) != b"True"
        ]
        limit = self._config.limits.discovery_timeout
        return DiscoveryError(f"not ready within {limit} s: {', '.join(waiting)}")

    def _follow_output(self) -> subprocess.Popen[bytes]:
        """Stream node 0's output to ours: both file descriptors are inherited, nothing is copied here."""
        node = names.node_name(self.job_id, 0)
        process = subprocess.Popen(
            self._connections.argv(self._hosts[0], "docker", "logs", "--follow", node),
            stdin=subprocess.DEVNULL,
        )
        self._inbox.follow(process)
        return process

    def _inventory(self, host_specs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Build the inventory of a playbook run; without specs it is that of a teardown."""
        variables = {
            host: {
                "ansible_host": self._config.hosts[host].address,
                "dockerjob_node_spec": dict(host_specs.get(host, {})),
            }
            for host in self._hosts
        }
        inventory = inventory_of(self._request.allocation, variables)
        settings = self._config.ansible
        inventory["all"]["children"]["allocation"]["vars"].update(
            ansible_user=settings.user,
            ansible_ssh_private_key_file=settings.private_key,
            ansible_python_interpreter=settings.python_interpreter,
            ansible_pipelining=True,
            ansible_ssh_args=" ".join(["-F", "none", *self._connections.options()]),
            dockerjob_bridge=self._config.network.bridge,
        )
        return inventory

    def _check_signal(self) -> None:
        if self._inbox.ended_by is not None:
            raise StoppedError(self._inbox.ended_by)

    # -- the end ------------------------------------------------------------------------

    def _take_down(self, kvs: Kvs) -> None:
        """Remove everything; what can't be removed now is said in the report, never raised."""
        results = HostResults()
        if self._started:
            results = self._clean_hosts(self._teardown or self._new_teardown())
            if self._teardown and not results.returned:
                # It had waited since COMMAND began, and may have been killed meanwhile.
                results = self._clean_hosts(self._new_teardown())
        self._node_results = results.returned
        self.report.leftovers += [f"{host}: {reason}" for host, reason in results.failed.items()]
        try:
            jobtree.remove_job_tree(kvs, self.job_id)
            if not results.failed:
                ipam.release(kvs, self.job_id)
        except KvsError as error:
            self.report.leftovers.append(f"etcd: {error}")

    def _new_teardown(self) -> PlaybookRun:
        return PlaybookRun(self._directory, "job_teardown.yml", self._config.limits.setup_timeout)

    def _clean_hosts(self, run: PlaybookRun) -> HostResults:
        run.release(self._inventory({}))
        run.join()
        return run.results(self._hosts)

    def _final_status(self, status: int | None) -> int:
        if time.time() >= self._deadline:
            raise WallClockError(f"the wall-clock limit of {self._wall_clock} s is reached")
        if status is None:
            raise DiscoveryError("COMMAND left no exit status")
        return status

    def explain(self) -> Iterator[str]:
        """Yield the last lines of each node's agent log, for a job that failed before COMMAND."""
        for host, result in self._node_results.items():
            for node in result.get("nodes", []):
                for line in str(node.get("agent_log") or "").splitlines()[-12:]:
                    yield f"{host}: {line}"


def _describe(what: str, failed: dict[str, str]) -> str:
    return f"{what} on {len(failed)} host(s): " + "; ".join(
        f"{host}: {reason}" for host, reason in failed.items()
    )
