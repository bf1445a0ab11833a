# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of one job: prepare, start, discover, compute, take down.

What each phase leaves if the broker dies right there, and who removes it, is in
docs/lifecycle.md; in short: the guards take down the hosts at once, and the reaper does the
rest by the job's record, which is made before anything else.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dockerjob_core import ipam, jobtree, names
from dockerjob_core.container import DOCKER_HOST
from dockerjob_core.errors import (
    DiscoveryError,
    DockerjobError,
    HostError,
    KvsError,
    PolicyError,
    RegistryError,
)
from dockerjob_core.jobtree import JobTree
from dockerjob_core.kvs import Kvs
from dockerjob_core.schedulers.base import BatchRecord

from ..config import Config
from ..request import JobRequest
from ..schedulers import confirm, meaning_of_status, message, on_compute_hosts, prove, run_limit
from .audit import Audit
from .certificates import issue
from .cleanup import clean_etcd, clean_hosts
from .clock import WallClock
from .connections import Connections
from .identity import Identity
from .inbox import AllocationLost, Inbox, NodeEnded, OutputEnded, Suspended, TerminalLost
from .inventory import job_inventory
from .lead import Lead, too_much_output
from .limits import NodeLimits, bound_cpus, job_limits
from .nodes import Nodes
from .output import Output, say
from .plan import JobPlan
from .playbooks import HostResults, PlaybookRun
from .policy import check_request, in_registry
from .presence import Presence
from .reaper import reap
from .recheck import Recheck
from .report import Phase, Report

if TYPE_CHECKING:
    from .terminal import TerminalLink

_END_OF_OUTPUT = 10.0
_END_OF_ANSIBLE = 10.0
_LEASE_SLACK = 5.0
_TERMINAL_SLACK = 3.0

_HEAD_START = 0.3
"""Seconds of COMMAND in which nothing else of the job takes a processor."""


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
        audit: Audit,
        terminal: TerminalLink | None = None,
    ) -> None:
        """Check the request against the site; nothing is created yet.

        Args:
            config: the site's configuration.
            identity: the user.
            request: what the user asks for.
            inbox: where signals come in.
            directory: private directory of the job, which the caller removes.
            setup: the run of ``job_setup.yml`` that waits for its inventory.
            audit: where it is recorded when the job is let in.
            terminal: the link to the terminal that COMMAND shall have.

        Raises:
            RequestError, PolicyError, ConfigError, RegistryError: see :mod:`.policy`.
        """
        self._config = config
        self._identity = identity
        allocation = on_compute_hosts(config.batch, request.allocation)
        # Launch nodes come first.
        self._on_first_host = allocation.hosts[0] == request.allocation.hosts[0]
        self._request = request = dataclasses.replace(request, allocation=allocation)
        self._inbox = inbox
        self._audit = audit
        self._application = check_request(config, request)
        self._hosts = [host.name for host in request.allocation.hosts]
        self.job_id = request.job_id
        audit.know(image=self._application.image, hosts=self._hosts)
        self.report = Report(
            self.job_id, identity.name, request.application, self._hosts, self._application.image
        )
        self._directory = directory
        self._setup = setup
        self._terminal = terminal
        self._teardown: PlaybookRun | None = None
        self._output: Output | None = None
        self._node_results: dict[str, dict[str, Any]] = {}
        self._connections = Connections(config, self._hosts, self._directory / "ssh")
        self._nodes = Nodes(self._connections, self.job_id, self._hosts)
        wall_clock = min(request.wall_clock or config.limits.wall_clock, config.limits.wall_clock)
        self._clock = WallClock(wall_clock, config.limits.suspension)
        self._limits: dict[str, NodeLimits] = {}
        # Now: with the job's cgroup the broker leaves the job's CPUs.
        self._cpus = bound_cpus()
        self._tree: JobTree | None = None
        self._presence: Presence | None = None
        self._started = False

    def run(self) -> int:
        """Lead the job to its end and return its exit status; errors are in the report."""
        try:
            self.report.status = self._run()
        except DockerjobError as error:
            self.report.status, self.report.error = error.exit_status, str(error)
        self.report.suspended = self._clock.suspended_seconds
        if meaning := meaning_of_status(self._request.allocation, self.report.status):
            self.report.notes.append(f"exit status {self.report.status}: {meaning}")
        self._tell_batch_system()
        return self.report.status

    def _tell_batch_system(self) -> None:
        """Have the batch system keep what the job used, if the site wants that; no failure changes the job's status."""
        if not self.report.usage:
            return
        failed = message(self._config.batch, self._request.allocation, self.report.summary())
        if failed:
            self.report.notes.append(f"what the job used was not given to the batch system: {failed}")

    def _run(self) -> int:
        with self._connected() as kvs:
            try:
                plan = self._prepare(kvs)
                self._start(plan)
                status = self._lead(kvs, plan.tree)
            finally:
                with self._phase("teardown"):
                    self._take_down(kvs)
        return self._left_status() if status is None else status

    @contextlib.contextmanager
    def _phase(self, name: Phase) -> Iterator[None]:
        """Measure a phase, and let everybody see that the job is in it."""
        if self._presence:
            self._presence.enter(name)
        with self.report.phase(name):
            yield

    # -- set-up -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Kvs]:
        """Have the allocation proven, and open etcd and the hosts, side by side; close both at the end."""
        with self.report.phase("prepare"), ThreadPoolExecutor(2) as pool:
            proof = pool.submit(self._prove)
            hosts = pool.submit(self._open_hosts)
            try:
                kvs = self._config.etcd.connect()
                kvs.get(names.job_index_key(self.job_id))
                self._take_limits(proof.result())
                hosts.result()
            except DockerjobError:
                # What is still connecting would stay behind, if it were closed now.
                wait((hosts,))
                self._connections.close()
                raise
        try:
            yield kvs
        finally:
            kvs.close()
            self._connections.close()

    def _open_hosts(self) -> None:
        self._connections.open()
        if in_registry(self._config, self._application.image):
            self._connections.ask_for_image(self._application.image)
        self._connections.leave_job()

    def _prove(self) -> BatchRecord:
        user = self._identity
        return prove(self._config.batch, self._request.allocation, user.name, user.uid)

    def _take_limits(self, record: BatchRecord) -> None:
        """Let the batch system's own limits hold here, too.

        Raises:
            RequestError: with these no container would start.
        """
        allocation = self._request.allocation
        self._limits = job_limits(
            self._config.container, record, allocation, self._cpus if self._on_first_host else ()
        )
        self.report.limits = {host: dataclasses.asdict(limits) for host, limits in self._limits.items()}
        self.report.run_limit, self.report.memory_limit = record.run_limit, record.memory_limit
        if limit := run_limit(self._config.batch, allocation, record):
            self._clock.bound(*limit)

    def _prepare(self, kvs: Kvs) -> JobPlan:
        """Make the job's record, its tree, lease and identity in etcd, and reserve its network."""
        settings, limits = self._config.network, self._config.limits
        with self._phase("prepare"):
            self._outlive_earlier_run(kvs)
            self._audit.accepted()
            self._tree = tree = self._make_tree(kvs)
            self._presence = Presence(kvs, tree, limits.lease_ttl)
            self._presence.enter("prepare")
            self._arm(tree)
            pool = ipam.NetworkPool(settings.pool, settings.prefix_length, settings.vlans)
            network = ipam.reserve(kvs, pool, self.job_id)
            self.report.network = f"{network.subnet}, VLAN {network.vlan}"
            lifetime = self._clock.lifetime
            user = names.etcd_user(self.job_id)
            certificate = issue(self._config.job_ca, user, lifetime + limits.grace)
            self._inbox.check()
            return JobPlan(
                self._config,
                self._identity,
                self._request,
                self._application,
                self._limits,
                network,
                tree,
                lifetime,
                certificate,
            )

    def _make_tree(self, kvs: Kvs) -> JobTree:
        record = {
            "user": self._identity.name,
            "uid": self._identity.uid,
            "application": self._request.application,
            "image": self._application.image,
            "hosts": self._hosts,
            "broker_host": os.uname().nodename,
            "begin": round(time.time(), 3),
            "deadline": round(time.time() + self._clock.remaining, 3),
        }
        count = len(self._hosts)
        ttl = self._config.limits.lease_ttl
        lease, leader = jobtree.make_job_tree(kvs, self.job_id, count, ttl, record)
        return JobTree(self.job_id, lease, count, record, jobtree.RUNNING, leader)

    def _arm(self, tree: JobTree) -> None:
        """From now on, the guards on the hosts take everything down if this process dies."""
        options = {
            "state": "absent",
            "job_id": self.job_id,
            "run": tree.run,
            "bridge": self._config.network.bridge,
            "runtime_root": names.RUNTIME_ROOT,
            "docker_host": DOCKER_HOST,
        }
        self._connections.arm(options, [str(self._directory), f"{self._directory}.lock"])

    def _outlive_earlier_run(self, kvs: Kvs) -> None:
        """See that no other broker leads this job, and clean up after one that died.

        A requeued job may come sooner than the lease of its killed broker ends.  A broker that
        lives renews its lease for ever, and then this one is a second wrapper.

        Raises:
            PolicyError: the job is led by another broker, or is not the user's any more.
            HostError: a host still holds something of the earlier run.
        """
        patience = time.monotonic() + self._config.limits.lease_ttl + _LEASE_SLACK
        waited = False
        while (tree := jobtree.read_job_tree(kvs, self.job_id)) and not jobtree.is_dead(kvs, tree):
            if time.monotonic() > patience:
                host = tree.record.get("broker_host")
                raise PolicyError(f"job {self.job_id} is already run by another wrapper, on {host}")
            self._inbox.check()
            time.sleep(0.5)
            waited = True
        if tree:
            left = reap(kvs, self._config, tree, self._directory).unclean
            if left:
                raise HostError(_describe("an earlier run of this job could not be removed", left))
        if waited:
            self._prove()

    def _start(self, plan: JobPlan) -> None:
        """Bring up the node on every host, when all of them have the image."""
        self._get_image()
        with self._phase("start"):
            self._started = True
            self._setup.release(self._inventory(plan.host_specs()), self._config.limits.setup_timeout)
            while not self._setup.wait(self._hosts, 0.2):
                self._keep_alive()
                if self._inbox.ended_by is not None:
                    self._setup.cancel()
            results = self._setup.results(self._hosts)
            self._inbox.check()
            self.report.hosts_detail = {
                host: result.get("steps", []) for host, result in results.returned.items()
            }
            if results.failed:
                raise HostError(_describe("could not start the container", results.failed))
            containers = {host: result["container"] for host, result in results.returned.items()}
            self._connections.watch(
                {host: (container["pid"], container["id"]) for host, container in containers.items()},
                lambda host, there: self._inbox.put(NodeEnded(host, there)),
                lambda now: self._inbox.put(Suspended(now)),
            )

    def _get_image(self) -> None:
        """Have the hosts that lack the image pull it: before any node starts, since its peers wait for each one.

        Raises:
            RegistryError: a host could not get it.
            PolicyError: the batch system has ended the job meanwhile.
        """
        lacking = self._connections.lacking()
        if not lacking or not self._config.registry:
            return
        from .pulls import Pulls  # most jobs find their image there

        def keep_waiting() -> None:
            self._keep_alive()
            self._inbox.check()
            self._clock.check()

        with self._phase("pull"):
            pulls = Pulls(self._config, self._application.image, len(self._hosts), self._connections.argv)
            failed = pulls.run(
                lacking,
                keep_waiting,
                lambda text: say(f"hpc_submit_dockerjob: {self._request.application}: {text}"),
            )
        if failed:
            raise RegistryError(_describe(f"could not get {self._application.image}", failed))
        # That may have taken long: the job may be over, and its hosts another's.
        self._prove()

    # -- discovery and compute ----------------------------------------------------------

    def _lead(self, kvs: Kvs, tree: JobTree) -> int | None:
        """Stream the output and wait for FINISH; None if COMMAND left no status in etcd."""
        assert self._presence  # noqa: S101  # made with the tree
        limits = self._config.limits
        self._output = output = Output(
            self._nodes.output_argv(),
            lambda status, too_much: self._inbox.put(OutputEnded(status, too_much)),
            # What is not of the terminal goes where the report goes.
            targets=(2, 2) if self._terminal else (1, 2),
            limit=limits.output,
        )
        lead = Lead(
            kvs,
            tree,
            self._config.limits,
            self._clock,
            self._inbox,
            self._nodes,
            self._presence,
        )
        batch, allocation, user = self._config.batch, self._request.allocation, self._identity
        recheck = Recheck(
            batch.recheck,
            lambda: confirm(batch, allocation, user.name, user.uid),
            lambda reason: self._inbox.put(AllocationLost(reason)),
            lambda now: self._inbox.put(Suspended(now)),
        )
        try:
            if self._terminal:
                self._terminal.start(self._nodes.terminal_argv(), self._lost_terminal)
            with self._phase("discovery"):
                status = lead.discovery()
            if status is None:
                with self._phase("compute"), self._teardown_in_time():
                    status = lead.compute()
            output.wait(_END_OF_OUTPUT)
            if self._terminal:
                self._terminal.wait(_END_OF_OUTPUT)
            if output.too_much:
                raise too_much_output(limits)
            return status
        finally:
            recheck.stop()
            self._output.stop()
            if self._terminal:
                self._terminal.stop()

    def _lost_terminal(self, reason: str) -> None:
        """End the job, unless what has ended the terminal is the end of the job or of a node, which is just coming."""
        self._inbox.put_later(TerminalLost(reason), _TERMINAL_SLACK)

    def _inventory(self, host_specs: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
        run = self._tree.run if self._tree else ""
        return job_inventory(self._config, self._request.allocation, self._connections, run, host_specs)

    def _keep_alive(self) -> None:
        if self._presence:
            self._presence.renew()

    # -- the end ------------------------------------------------------------------------

    def _take_down(self, kvs: Kvs) -> None:
        """Remove everything; what can't be removed now is said in the report, never raised."""
        results = HostResults()
        run: PlaybookRun | None = None
        if self._started:
            run = self._teardown or self._new_teardown()
            results = self._clean_hosts(run)
            if self._teardown and not results.returned:
                # It had waited since COMMAND began, and may have been killed meanwhile.
                run = self._new_teardown()
                results = self._clean_hosts(run)
        self._node_results = results.returned
        self.report.usage = {
            host: used["usage"] for host, used in results.returned.items() if "usage" in used
        }
        self._complete_output()
        self._note_lack_of_memory()
        self.report.leftovers += [f"{host}: {reason}" for host, reason in results.failed.items()]
        if self._tree:
            try:
                clean_etcd(kvs, self._tree, hosts_are_clean=not results.failed)
            except KvsError as error:
                self.report.leftovers.append(f"etcd: {error}")
        if run:
            run.join(_END_OF_ANSIBLE)

    @contextlib.contextmanager
    def _teardown_in_time(self) -> Iterator[None]:
        """Have Ansible loaded by the end of COMMAND, and not while that is just beginning.

        It loads for a second, and then only waits.
        """

        def load() -> None:
            self._teardown = self._new_teardown()

        loading = threading.Timer(_HEAD_START, load)
        loading.start()
        try:
            yield
        finally:
            loading.cancel()
            loading.join()

    def _new_teardown(self) -> PlaybookRun:
        return PlaybookRun(self._directory, "job_teardown.yml")

    def _clean_hosts(self, run: PlaybookRun) -> HostResults:
        limit = self._config.limits.setup_timeout
        return clean_hosts(run, self._inventory(), self._hosts, limit, self._keep_alive)

    def _ended_nodes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield, host by host, what the teardown found of each container."""
        for host in self._hosts:
            for node in self._node_results.get(host, {}).get("nodes", []):
                yield host, node

    def _complete_output(self) -> None:
        """Write what the follower has missed of node 0's last lines."""
        first = names.node_name(self.job_id, 0)
        for _, node in self._ended_nodes():
            if self._output and node["name"] == first and not node["running"]:
                self._output.complete([base64.b64decode(part) for part in node["last_output_b64"]])

    def _note_lack_of_memory(self) -> None:
        self.report.notes += [
            f"{node['name']} on {host} ran out of memory; the kernel killed a process of it"
            for host, node in self._ended_nodes()
            if node["oom_killed"]
        ]

    def _left_status(self) -> int:
        """Return the exit status that node 0 left on its host, when it could not tell etcd.

        Raises:
            DiscoveryError: it left none.
        """
        for host, node in self._ended_nodes():
            text = node["exit_status"] or ""
            if host == self._hosts[0] and text.isascii() and text.isdigit() and int(text) <= 255:
                return int(text)
        raise DiscoveryError(
            f"{names.node_name(self.job_id, 0)} on {self._hosts[0]} ended, and COMMAND left no exit status"
        )

    def explain(self) -> Iterator[str]:
        """Yield the last lines of each node's agent log, for a job that failed before COMMAND."""
        for host, node in self._ended_nodes():
            for line in str(node.get("agent_log") or "").splitlines()[-12:]:
                yield f"{host}: {line}"


def _describe(what: str, failed: dict[str, str]) -> str:
    return f"{what} on {len(failed)} host(s): " + "; ".join(
        f"{host}: {reason}" for host, reason in failed.items()
    )
