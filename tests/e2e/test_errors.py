# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong is one clear line and a documented exit status, and leaves nothing behind."""

from __future__ import annotations

import re
from typing import Any

import pytest
from dockerjob_core import ipam, node_program
from dockerjob_lab.client import Cluster
from job_fixtures import job, link_down, refused, service_stopped

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"extra": "unset APPLICATION"}, 201, "APPLICATION is not set"),
        ({"extra": "export APPLICATION="}, 201, "APPLICATION is not set"),
        ({"extra": "unset COMMAND"}, 201, "COMMAND is not set"),
        ({"extra": "unset JOBDIR"}, 201, "JOBDIR is not set"),
        ({"extra": "unset LSB_JOBID"}, 201, "no batch job"),
        ({"extra": "unset LSB_HOSTS LSB_MCPU_HOSTS LSB_DJOB_HOSTFILE"}, 201, "none of LSB_MCPU_HOSTS"),
        ({"extra": 'export LSB_HOSTS="node1 node3"'}, 201, "different hosts"),
        (
            {"application": "nosuch:1"},
            201,
            "APPLICATION=nosuch:1 is not known here; the nearest of 4: .*openfoam",
        ),
        ({"jobdir": "/scratch/missing"}, 201, "No such file.*create it"),
        ({"jobdir": "/etc"}, 202, "JOBDIR=/etc is on no file system"),
        (
            {
                "extra": "unset LSB_HOSTS LSB_DJOB_HOSTFILE\n"
                'export LSB_MCPU_HOSTS="node1 1 nowhere 1 " LSB_DJOB_NUMPROC=2',
            },
            202,
            "host nowhere is not in this cluster",
        ),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_created(
    cluster: Cluster, changes: dict[str, Any], status: int, message: str
) -> None:
    refused(cluster.submit(job(**changes)), status, message)


def test_an_unreachable_host_is_named(cluster: Cluster) -> None:
    with service_stopped(cluster, "node2", "ssh"):
        refused(cluster.submit(job()), 210, "can't reach 1 of 2 hosts by ssh: node2")


def test_a_failing_set_up_on_one_host_takes_the_others_down(cluster: Cluster) -> None:
    profile = cluster.path("node2", "/etc/dockerjob/seccomp.json")
    profile.rename(f"{profile}.away")
    try:
        refused(cluster.submit(job()), 210, "could not start the container on 1 host.*node2.*seccomp")
    finally:
        cluster.path("node2", "/etc/dockerjob/seccomp.json.away").rename(profile)


def test_a_host_that_can_not_be_cleaned_keeps_its_network_reserved(cluster: Cluster) -> None:
    with service_stopped(cluster, "node2", "docker"):
        done = cluster.submit(job(), number=987655)
        refused(done, 210, "could not start the container on 1 host.*node2")
        assert re.search(r"left behind +node2: ", done.err)
        with cluster.kvs() as kvs:
            assert ipam.find(kvs, "987655")
    assert "failed=0" in cluster.teardown("987655")


def test_discovery_that_fails_names_the_nodes_and_shows_why(cluster: Cluster, site_config: Any) -> None:
    site_config("limits", discovery_timeout=6)
    with link_down(cluster, "node2", "eth1"):
        done = cluster.submit(job())
    refused(done, 204, r"\d+_node_\d on node\d")
    assert "hpc_submit_dockerjob: node2: " in done.err


def test_etcd_out_of_reach_is_said(cluster: Cluster) -> None:
    with service_stopped(cluster, "node1", "haproxy"):
        refused(cluster.submit(job()), 211, "etcd")


def test_no_free_network_is_said(cluster: Cluster, site_config: Any) -> None:
    site_config("network", vlans="4000-4000")
    with cluster.kvs() as kvs:
        ipam.reserve(kvs, ipam.NetworkPool("10.128.0.0/9", 24, "4000-4000"), "999999999")
        try:
            refused(cluster.submit(job()), 212, "VLAN")
        finally:
            ipam.release(kvs, "999999999")


def test_a_wrong_configuration_names_the_key(cluster: Cluster, site_config: Any) -> None:
    site_config("network", mtu="many")
    refused(cluster.submit(job()), 203, r"network\.mtu")


def test_a_broker_that_can_not_write_says_so(cluster: Cluster) -> None:
    directory = "/var/lib/dockerjob/run"
    cluster.run("node1", "mount", "-t", "tmpfs", "-o", "ro", "full", directory)
    try:
        refused(cluster.submit(job()), 200, "broker: .*Read-only file system.*cluster_setup.yml")
    finally:
        cluster.run("node1", "umount", directory)


def test_a_host_without_the_sudo_rule_is_named(cluster: Cluster) -> None:
    rule = cluster.path("node1", "/etc/sudoers.d/dockerjob")
    rule.rename(f"{rule}.away")  # sudo leaves out names with a dot
    try:
        refused(cluster.submit(job()), 203, "sudo does not let you call the broker on node1")
    finally:
        cluster.path("node1", "/etc/sudoers.d/dockerjob.away").rename(rule)


def test_the_hosts_have_the_program_that_the_broker_looks_for(cluster: Cluster) -> None:
    # Without it jobs run all the same, half a second slower.
    program = cluster.path("node1", node_program.directory())
    assert (program / "__main__.py").is_file()
    assert cluster.submit(job()).status == 0
    assert list((program / "dockerjob_core/__pycache__").glob("node_task.*.pyc"))


def test_the_broker_is_not_for_people(cluster: Cluster) -> None:
    out = cluster.run(
        "node1",
        "sh",
        "-c",
        "su alice -c 'sudo -n -u dockerjob /share/dockerjob/bin/dockerjob-broker x' 2>&1; true",
    )
    assert "password is required" in out or "not allowed" in out
