# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of jobs as a state machine: leases, reservations and the reaper on a real etcd.

The hosts are a model: what a host holds, by the run that it is of.  Everything else is real.
After every step: no two jobs whose traces are on a host share a network, a living job lacks
nothing, and no network is free while a host still holds something of its job.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerjob.broker import reaper
from dockerjob.broker.cleanup import clean_etcd
from dockerjob_core import ipam, jobtree, names
from dockerjob_core.ipam import NetworkPool
from dockerjob_core.jobtree import JobTree
from dockerjob_core.kvs import Kvs
from etcd_fixtures import EtcdServer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

pytestmark = pytest.mark.integration

POOL = NetworkPool("10.144.0.0/28", 30, "1-4")  # four networks: they are used again soon
HOSTS = ("a", "b", "c")
JOBS = ("1", "2", "3")


class FakeConfig:
    """As much of the configuration as the reaper looks at."""

    hosts = dict.fromkeys(HOSTS)


def model(kvs: Kvs) -> type[RuleBasedStateMachine]:
    """Build the machine for this connection."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.site: dict[str, set[tuple[str, str]]] = {host: set() for host in HOSTS}
            self.down: set[str] = set()
            self.alive: dict[str, JobTree] = {}
            self.networks: dict[tuple[str, str], ipam.JobNetwork] = {}
            self.patch = pytest.MonkeyPatch()
            self.patch.setattr(reaper, "_clean", self.clean)

        def clean(self, _config: Any, tree: JobTree, hosts: list[str], _directory: Path) -> dict[str, str]:
            for host in hosts:
                if host not in self.down:
                    self.site[host].discard((tree.job_id, tree.run))
            return {host: "down" for host in hosts if host in self.down}

        def reap(self, tree: JobTree) -> bool:
            with tempfile.TemporaryDirectory() as directory:
                return reaper.reap(kvs, FakeConfig, tree, Path(directory)).done  # type: ignore[arg-type]

        @rule(job=st.sampled_from(JOBS), hosts=st.sets(st.sampled_from(HOSTS), min_size=1))
        def begin(self, job: str, hosts: set[str]) -> None:
            """A broker starts a job, as Job._prepare does."""
            if job in self.alive:
                return
            earlier = jobtree.read_job_tree(kvs, job)
            if earlier:
                assert jobtree.is_dead(kvs, earlier)
                if not self.reap(earlier):
                    return
            record = {"hosts": sorted(hosts), "user": "alice"}
            lease, leader = jobtree.make_job_tree(kvs, job, len(hosts), 600, record)
            tree = JobTree(job, lease, len(hosts), record, jobtree.RUNNING, leader)
            self.networks[job, tree.run] = ipam.reserve(kvs, POOL, job)
            self.alive[job] = tree
            for host in hosts - self.down:
                self.site[host].add((job, tree.run))

        @rule(job=st.sampled_from(JOBS))
        def end(self, job: str) -> None:
            """A job ends, and its broker takes it down."""
            tree = self.alive.pop(job, None)
            if tree:
                unclean = self.clean(None, tree, list(tree.hosts), Path())
                clean_etcd(kvs, tree, hosts_are_clean=not unclean)

        @rule(job=st.sampled_from(JOBS))
        def die(self, job: str) -> None:
            """A broker's host loses power: the leases end."""
            tree = self.alive.pop(job, None)
            if tree:
                jobtree.end_leases(kvs, tree)

        @rule(job=st.sampled_from(JOBS))
        def crash_half_way(self, job: str) -> None:
            """A broker dies after it has removed the keys, and before the record."""
            tree = self.alive.pop(job, None)
            if tree:
                jobtree.retire(kvs, job)
                jobtree.end_leases(kvs, tree)

        @rule()
        def collect(self) -> None:
            """The reaper comes by."""
            for tree in reaper.dead_jobs(kvs):
                self.reap(tree)

        @precondition(lambda self: self.alive)
        @rule(data=st.data())
        def stale_reaper(self, data: st.DataObject) -> None:
            """A reaper that looked long ago acts now, on an earlier run of a job that lives again."""
            job = data.draw(st.sampled_from(sorted(self.alive)))
            now = self.alive[job]
            stale = JobTree(job, now.lease_id - 1, now.node_count, now.record)
            self.reap(stale)

        @rule(host=st.sampled_from(HOSTS))
        def host_goes(self, host: str) -> None:
            self.down.add(host)

        @rule(host=st.sampled_from(HOSTS))
        def host_comes(self, host: str) -> None:
            self.down.discard(host)

        @invariant()
        def a_living_job_lacks_nothing(self) -> None:
            for job, tree in self.alive.items():
                assert jobtree.read_job_tree(kvs, job) == tree
                assert kvs.identities.exists(job)
                assert ipam.find(kvs, job) == self.networks[job, tree.run]

        @invariant()
        def no_network_is_two_jobs(self) -> None:
            there = {run for held in self.site.values() for run in held}
            there |= {(job, tree.run) for job, tree in self.alive.items()}
            used = [self.networks[run] for run in there]
            assert len({network.vlan for network in used}) == len(used)
            assert len({network.subnet for network in used}) == len(used)

        @invariant()
        def what_is_on_a_host_has_its_network_reserved(self) -> None:
            reserved = ipam.list_networks(kvs)
            for held in self.site.values():
                for job, run in held:
                    assert reserved.get(job) == self.networks[job, run]

        def teardown(self) -> None:
            try:
                self.down.clear()
                for job in list(self.alive):
                    self.die(job)
                self.collect()
                assert not any(self.site.values())
                assert [item.key for item in kvs.get_prefix("/").items] == []
                assert not [user for user in kvs.auth.users() if user.startswith("job-")]
            finally:
                self.patch.undo()
                kvs.delete_prefix("/")
                for job in JOBS:
                    kvs.identities.remove(job)

    return Machine


@pytest.fixture
def own_kvs(etcd: EtcdServer) -> Iterator[Kvs]:
    with Kvs.connect(etcd.endpoint()) as kvs:
        assert kvs.get_prefix(names.BOOKKEEPING).items == ()
        yield kvs


def test_leases_reservations_and_the_reaper_hold_in_every_order(own_kvs: Kvs) -> None:
    run_state_machine_as_test(
        model(own_kvs),
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
        ),
    )
