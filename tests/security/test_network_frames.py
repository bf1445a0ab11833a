# SPDX-License-Identifier: GPL-3.0-or-later
"""A job that forges frames, beside another one on the same hosts: nothing of it arrives anywhere.

A container has no capability to send such frames; root sends them from its network
namespace, as if it had.  tests/integration/test_network_guard.py has the single cases.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import frames
import pytest
from dockerjob_core import names
from dockerjob_lab.client import Cluster
from job_fixtures import job

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

HOSTS = ("node1", "node2")
TAG = ("ovs-vsctl", "--bare", "--columns=tag", "find", "Port")


@dataclasses.dataclass(frozen=True)
class Node:
    """A job's container on a host, and what it may send from."""

    host: str
    pid: int
    mac: str
    address: str
    vlan: int

    def argv(self, cluster: Cluster, *arguments: str) -> list[str]:
        """The command that runs ``frames.py`` in the container's network."""
        host = ("nsenter", "-t", str(cluster.pids[self.host]), "-a")
        inside = ("nsenter", "-t", str(self.pid), "-n")
        return [*host, *inside, "python3", "-c", inspect.getsource(frames), *arguments]


def nodes_of(cluster: Cluster, user: str) -> Iterator[tuple[Node, Node]]:
    """Run a job of *user* over both hosts; yields its nodes."""
    process = cluster.start(job("echo started; exec sleep 600", slots=4), user=user)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    known = {host: set(_names(cluster, host)) for host in HOSTS}
    [job_id] = {name.split("_node_")[0] for name in known["node1"] if _user(cluster, name) == user}
    first, second = (_node(cluster, host, f"{job_id}_node_{n}", job_id) for n, host in enumerate(HOSTS))
    yield first, second
    cluster.run("node1", "pkill", "-INT", "-u", user, "-f", "bin/hpc_submit_dockerjob")
    process.communicate(timeout=60)


def _names(cluster: Cluster, host: str) -> list[str]:
    return cluster.run(host, "docker", "ps", "--format", "{{.Names}}").split()


def _user(cluster: Cluster, name: str) -> str:
    uid = json.loads(cluster.run("node1", "docker", "inspect", name))[0]["Config"]["User"].split(":")[0]
    return cluster.run("node1", "id", "-nu", uid).strip()


def _node(cluster: Cluster, host: str, name: str, job_id: str) -> Node:
    pid = json.loads(cluster.run(host, "docker", "inspect", name))[0]["State"]["Pid"]
    address = cluster.run(host, "docker", "exec", name, "hostname", "-I").split()[0]
    vlan = int(cluster.run(host, *TAG, f"external_ids:{names.OVS_JOB}={job_id}"))
    return Node(host, pid, names.mac_address(names.port_name(name)), address, vlan)


def apply_role_ovs(cluster: Cluster) -> None:
    """Apply the role as an admin does."""
    done = cluster.playbook("cluster_setup.yml", "--tags", "ovs")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def hostile(cluster: Cluster) -> Iterator[tuple[Node, Node]]:
    yield from nodes_of(cluster, "alice")


@pytest.fixture
def neighbour(cluster: Cluster) -> Iterator[tuple[Node, Node]]:
    yield from nodes_of(cluster, "bob")


def test_forged_frames_arrive_nowhere(
    cluster: Cluster, hostile: tuple[Node, Node], neighbour: tuple[Node, Node]
) -> None:
    attacker, mate = hostile
    honest = frames.honest(attacker.mac, attacker.address, mate.address)
    forged = frames.forged(attacker.mac, attacker.address, mate.address, attacker.vlan, neighbour[0].vlan)
    watched = {"mate": mate, "neighbour": neighbour[0], "neighbour over the uplink": neighbour[1]}
    with ExitStack() as stack:
        running = {
            key: stack.enter_context(
                subprocess.Popen(
                    node.argv(cluster, "watch", "4", "eth1"), stdout=subprocess.PIPE, text=True, cwd="/"
                )
            )
            for key, node in watched.items()
        }
        for process in running.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "watching\n"
        text = frames.as_lines({**honest, **forged})
        subprocess.run(
            attacker.argv(cluster, "send", "eth1"), input=text, text=True, check=True, cwd="/", timeout=30
        )
        came = {key: set(process.communicate(timeout=30)[0].splitlines()) for key, process in running.items()}
    assert came == {
        "mate": {f"{name} 0" for name in honest},
        "neighbour": set(),
        "neighbour over the uplink": set(),
    }


def test_lost_flows_close_the_network_and_the_role_puts_them_back(
    cluster: Cluster, hostile: tuple[Node, Node]
) -> None:
    """What a crash of ovs-vswitchd does to a job that runs."""
    first, second = hostile
    inside = ("nsenter", "-t", str(first.pid), "-n", "ping", "-n", "-c2", "-W1", second.address)
    whole = cluster.state()["node1"]["flows"]
    assert " 0% packet loss" in cluster.run("node1", *inside)
    cluster.run("node1", "ovs-ofctl", "del-flows", "br-job")
    try:
        time.sleep(1)
        assert "100% packet loss" in cluster.run("node1", *inside, check=False)
    finally:
        apply_role_ovs(cluster)
    assert cluster.state()["node1"]["flows"] == whole
    assert " 0% packet loss" in cluster.run("node1", *inside)
