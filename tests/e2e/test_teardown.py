# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking down: twice, half-built, after the broker was killed, and beside a neighbour's job."""

from __future__ import annotations

import re
import time

import pytest
from dockerjob_core import names
from dockerjob_lab.client import Cluster
from job_fixtures import job

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]


def containers(cluster: Cluster, job_id: str) -> list[str]:
    return [
        line
        for host in ("node1", "node2")
        for line in cluster.run(
            host, "docker", "ps", "-q", "--filter", f"label={names.LABEL_JOB}={job_id}"
        ).split()
    ]


def test_when_the_broker_is_killed_the_lease_ends_the_job_and_teardown_cleans_twice(
    cluster: Cluster, site_config: object
) -> None:
    site_config("limits", lease_ttl=10)  # type: ignore[operator]
    process = cluster.start(job("echo started; sleep 300"), number=987656)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    cluster.run("node1", "pkill", "-KILL", "-u", "dockerjob")
    process.communicate(timeout=60)
    for _ in range(60):
        if not containers(cluster, "987656"):
            break
        time.sleep(1)
    assert not containers(cluster, "987656")
    first, second = cluster.teardown("987656"), cluster.teardown("987656")
    assert re.search(r"node1 .*changed=[1-9]", first)
    assert re.findall(r"changed=(\d+)", second) == ["0", "0"]
    cluster.run("node1", "sh", "-c", "rm -rf /var/lib/dockerjob/run/987656*")


def test_teardown_of_one_job_leaves_its_neighbour_alone(cluster: Cluster) -> None:
    neighbour = cluster.start(job("echo started; sleep 20; echo done"), number=987657)
    assert neighbour.stdout is not None
    assert neighbour.stdout.readline() == "started\n"
    assert cluster.submit(job("true"), user="bob", number=987658).status == 0
    cluster.teardown("987658")
    assert len(containers(cluster, "987657")) == 2
    out, _ = neighbour.communicate(timeout=90)
    assert (out, neighbour.returncode) == ("done\n", 0)


def test_half_built_leftovers_are_removed(cluster: Cluster) -> None:
    directory = names.host_job_directory("987659")
    cluster.run("node1", "mkdir", "-p", f"{directory}/rw")
    cluster.run("node2", "ovs-vsctl", "add-port", "br-job", "djleft", "tag=99", "--", "set", "interface", "djleft",
                "type=internal", "--", "set", "port", "djleft", f"external_ids:{names.OVS_JOB}=987659")  # fmt: skip
    assert re.findall(r"changed=(\d+)", cluster.teardown("987659")) == ["1", "1"]
