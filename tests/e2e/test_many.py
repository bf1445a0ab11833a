# SPDX-License-Identifier: GPL-3.0-or-later
"""Many jobs: at the same time, and one after the other with something killed at a random moment of each.

``make soak`` runs them in full; ``make test`` runs a few of the same.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from dockerjob_core import names
from dockerjob_lab.client import Cluster, Outcome
from job_fixtures import SOAK, finish, flat, job, running_job, started

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

SEED = int(os.environ.get("DOCKERJOB_SEED", "20261125"))
AT_ONCE = 30 if SOAK else 5
IN_TURN = 100 if SOAK else 6
RACES = 10 if SOAK else 2
PAIRS = ("node1,node2", "node2,node3", "node3,node1")


class Ports(threading.Thread):
    """Looks at the bridges all the time: which VLAN is whose job's."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._over = threading.Event()
        self.seen: set[tuple[int, str]] = set()
        self.shared: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.5):
            for host in self._cluster.compute:
                self._look(host)

    def _look(self, host: str) -> None:
        columns = "--format=json", "--columns=tag,external_ids", "list", "port"
        rows = json.loads(self._cluster.run(host, "ovs-vsctl", *columns))["data"]
        owners: dict[int, set[str]] = {}
        for tag, ids in rows:
            owner = dict(ids[1]).get(names.OVS_JOB)
            if owner and isinstance(tag, int):
                owners.setdefault(tag, set()).add(owner)
        self.seen |= {(tag, owner) for tag, jobs in owners.items() for owner in jobs}
        self.shared += [
            f"{host}: VLAN {tag}: {sorted(jobs)}" for tag, jobs in owners.items() if len(jobs) > 1
        ]

    def stop(self) -> None:
        self._over.set()
        self.join()


@pytest.mark.timeout(3600)
def test_jobs_that_start_at_once_all_finish_and_share_nothing(cluster: Cluster, site_config: Any) -> None:
    """All of the lab's hosts are on the same few cores, so the limits of time are wider here."""
    for host in cluster.compute:
        site_config("limits", host, discovery_timeout=600, setup_timeout=1800, lease_ttl=120)
        site_config("ansible", host, connect_timeout=300)
        site_config("etcd", host, timeout=120)
        site_config("batch", host, lsf={"bjobs": "/share/lsf/bin/bjobs", "timeout": 300})
    numbers = range(988400, 988400 + AT_ONCE)

    def one(number: int) -> Outcome:
        reach = f"hostname; ssh {number}_node_1 hostname; sleep 2; exit {number - 988400 + 1}"
        user, hosts = ("alice", "bob")[number % 2], PAIRS[number % len(PAIRS)]
        return cluster.submit(job(reach), user=user, hosts=hosts, number=number, timeout=3000)

    ports = Ports(cluster)
    ports.start()
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            done = dict(zip(numbers, pool.map(one, numbers), strict=True))
    finally:
        ports.stop()
    for number, outcome in done.items():
        assert outcome.status == number - 988400 + 1, outcome.err
        assert outcome.out == f"{number}_node_0\n{number}_node_1\n", outcome.err
        assert "left behind" not in outcome.err
    assert {owner for _, owner in ports.seen} == {str(number) for number in numbers}
    assert ports.shared == []


class Collectors:
    """``dockerjob gc`` on two hosts, again and again, beside the service that watches."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(2)
        self.said: list[str] = []

    def __enter__(self) -> Collectors:
        for host in ("node2", "node3"):
            self._pool.submit(self._collect, host)
        return self

    def _collect(self, host: str) -> None:
        while not self._over.is_set():
            self.said.append(self._cluster.run(host, "/share/dockerjob/bin/dockerjob", "gc", check=False))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()


@pytest.mark.timeout(1800)
def test_the_reaper_never_touches_a_living_job(cluster: Cluster) -> None:
    """Three reapers race a job that lives on and one that is killed and started again with the same id."""
    count = "for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.3; done"
    with running_job(cluster, "bob", "node1,node2"), Collectors(cluster) as collectors:
        for _ in range(RACES):
            first = started(cluster, job("echo started; sleep 300"), number=988350)
            cluster.kill(988350)
            finish(first, 60)
            second = cluster.submit(job(count), number=988350)
            assert (second.status, second.out.split()) == (0, list("123456789")), second.err
            assert "left behind" not in second.err
    assert len(collectors.said) > 2 * RACES


@dataclass(frozen=True)
class Fault:
    """Something that dies: *act* does it."""

    name: str
    act: Callable[[Cluster, int], None]


def killing(host: str, *pkill: str, signal: str = "KILL") -> Callable[[Cluster, int], None]:
    return lambda cluster, _: cluster.run(host, "pkill", f"-{signal}", *pkill, check=False) and None


def run(host: str, *argv: str) -> Callable[[Cluster, int], None]:
    return lambda cluster, _: cluster.run(host, *argv, check=False) and None


def etcd_member(cluster: Cluster, _: int) -> None:
    cluster.run("head", "docker", "kill", "dockerjob-etcd")
    time.sleep(2)
    cluster.run("head", "docker", "start", "dockerjob-etcd")


def reaper(cluster: Cluster, _: int) -> None:
    cluster.run("node3", "pkill", "-KILL", "-f", "gc --watch", check=False)
    cluster.run("node3", "service", "dockerjob-reaper", "restart")


FAULTS = (
    Fault("none", lambda *_: None),
    Fault("wrapper killed", killing("node1", "-f", "hpc_submit_dockerjob")),
    Fault("wrapper ended", killing("node1", "-f", "hpc_submit_dockerjob", signal="TERM")),
    Fault("broker killed", killing("node1", "-u", "dockerjob", "-f", "dockerjob-broker")),
    Fault("all of the job on its first host killed", lambda cluster, number: cluster.kill(number)),
    Fault("Ansible killed", killing("node1", "-u", "dockerjob", "-f", "ansible-playbook")),
    Fault("guard killed", killing("node2", "-f", "dockerjob.* guard")),
    Fault("ssh sessions killed", killing("node2", "-f", "^sshd: root")),
    Fault(
        "containers killed",
        run("node2", "sh", "-c", "docker kill $(docker ps -q --filter label=dockerjob.job)"),
    ),
    Fault("agents killed", killing("node1", "-u", "alice", "-f", "dockerjob.agent")),
    Fault("dockerd restarted", run("node2", "service", "docker", "restart")),
    Fault("relay restarted", run("node1", "service", "haproxy", "restart")),
    Fault("etcd member killed", etcd_member),
    Fault("reaper killed", reaper),
)


@pytest.mark.timeout(7200)
def test_jobs_under_random_kills_leave_nothing(cluster: Cluster) -> None:
    """Each ends, with 0 only if COMMAND did; nothing is left when the last is over. Seeded."""
    chance = random.Random(SEED)  # noqa: S311 - the same moments every time
    before = everything(cluster)
    for turn in range(IN_TURN):
        # Each id twice: a job that was killed is started again at once, as a requeue does.
        number, fault, delay = 988500 + turn // 2, chance.choice(FAULTS), chance.uniform(0, 6)
        print(f"turn {turn}: job {number}, {fault.name} after {delay:.2f} s", flush=True)
        process = cluster.start(job("echo started; sleep 2; echo done"), number=number)
        time.sleep(delay)
        fault.act(cluster, number)
        out, err = finish(process, 150)
        assert "Traceback" not in err, err
        if process.returncode == 0:
            assert out == "started\ndone\n", err
        else:
            assert fault.name != "none", err
            assert process.returncode != 255, err
    deadline = time.monotonic() + 120
    while (left := flat(everything(cluster)) ^ flat(before)) and time.monotonic() < deadline:
        time.sleep(2)
    assert left == set()


def everything(cluster: Cluster) -> dict[str, Any]:
    """What a job could leave behind, and some more."""
    found = cluster.state()
    with cluster.kvs() as kvs:
        rpc, lease = kvs._channel.rpc, kvs._channel.lease
        found["leases"] = [str(len(lease.LeaseLeases(rpc.LeaseLeasesRequest()).leases))]
        found["roles"] = [
            str(role) for role in kvs._channel.stub("Auth").RoleList(rpc.AuthRoleListRequest()).roles
        ]
    return found
