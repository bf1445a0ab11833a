# SPDX-License-Identifier: GPL-3.0-or-later
"""Something dies under a job: it ends with a true exit status and a line that says what, and others don't notice."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from typing import Any

import pytest
from dockerjob_core import names
from dockerjob_lab.client import Cluster
from job_fixtures import SOAK, WRAPPER, containers, finish, forgotten, job, running_job, started, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

SLEEP = "echo started; sleep 300"


def neighbour(cluster: Cluster) -> contextlib.AbstractContextManager[None]:
    """Run a job of somebody else's on the same hosts meanwhile, which must not notice anything."""
    return running_job(cluster, "bob", "node1,node2")


def ends(process: Any, status: int, message: str, timeout: float = 60) -> None:
    _, err = finish(process, timeout)
    assert process.returncode == status, err
    assert re.search(f"^hpc_submit_dockerjob: .*{message}", err, re.MULTILINE), err
    assert "left behind" not in err


@pytest.mark.parametrize("index", [0, 1])
def test_a_container_that_is_killed_ends_the_job(cluster: Cluster, index: int) -> None:
    with neighbour(cluster):
        process = started(cluster, job(SLEEP), number=988101)
        cluster.run(f"node{index + 1}", "docker", "kill", names.node_name("988101", index))
        if index:
            ends(process, 210, "the container 988101_node_1 on node2 ended before COMMAND did")
        else:
            ends(process, 204, "988101_node_0 on node1 ended, and COMMAND left no exit status")


def test_a_host_whose_processes_all_die_ends_the_job(cluster: Cluster) -> None:
    process = started(cluster, job(SLEEP), number=988102, hosts="node1,node3")
    cluster.run("node3", "pkill", "-KILL", "-f", "sshd: root")
    ends(process, 210, "lost node3, which runs 988102_node_1")


def test_a_command_that_leaves_processes_behind_takes_them_along(cluster: Cluster) -> None:
    done = cluster.submit(
        job("for i in 1 2 3; do setsid sleep 1000 </dev/null >/dev/null 2>&1 & done; echo $!; exit 4")
    )
    assert done.status == 4, done.err
    for host in cluster.compute:
        assert "sleep 1000" not in cluster.run(host, "ps", "axo", "args=")


def test_a_command_without_enough_memory_is_said(cluster: Cluster, site_config: Any) -> None:
    site_config("container", memory_per_slot="256MiB")
    done = cluster.submit(
        job('exec python3 -c "a = [bytearray(1 << 20) for _ in range(1000)]"', slots=1, ptile=1)
    )
    assert done.status == 137, done.err
    assert re.search(r"note +\d+_node_0 on node1 ran out of memory", done.err), done.err


def test_binary_output_comes_through(cluster: Cluster) -> None:
    data = bytes(range(256)) * 1000
    source, copy = (cluster.path("node1", f"/scratch/alice/{name}") for name in ("binary", "copy"))
    source.write_bytes(data)
    script = job("cat binary", slots=1, ptile=1).replace(WRAPPER, f"{WRAPPER} >/scratch/alice/copy")
    done = cluster.submit(script)
    assert done.status == 0, done.err
    assert copy.read_bytes() == data
    for path in (source, copy):
        path.unlink()


OUTPUT = 1000 if SOAK else 100
"""Megabytes that a COMMAND writes as fast as it can."""


@pytest.mark.timeout(900)
def test_much_output_is_neither_lost_nor_kept_in_memory(cluster: Cluster) -> None:
    line = b"0123456789abcdef" * 6 + b"...\n"
    count = OUTPUT * 1_000_000 // len(line)
    script = job(f"yes {line.decode().strip()} | head -n {count}", slots=1, ptile=1)
    process = cluster.start(script.replace(WRAPPER, f"{WRAPPER} | md5sum"))
    most = 0
    while process.poll() is None:
        brokers = cluster.run("node1", "ps", "-o", "rss=", "-u", "dockerjob", check=False).split()
        most = max([most, *map(int, brokers)])
        time.sleep(1)
    out, err = finish(process)
    expected = hashlib.md5(line * count, usedforsecurity=False)
    assert out.split()[0] == expected.hexdigest(), err
    assert most < 150_000  # KiB, of the largest process


def test_more_output_than_the_site_allows_ends_the_job(cluster: Cluster, site_config: Any) -> None:
    site_config("limits", "node1", output=1 << 20)
    done = cluster.submit(job("yes"))
    assert done.status == 202, done.err
    assert "COMMAND's output is larger than 1.0MiB (limits.output)" in done.err
    assert set(done.out) == {"y", "\n"}
    assert len(done.out) < 1 << 20


def test_the_broker_is_killed_during_teardown(cluster: Cluster) -> None:
    process = started(cluster, job("echo started; sleep 2"), number=988103)
    wait_until(lambda: "teardown" in phases(cluster, "988103"), 30, "the job is being taken down")
    cluster.run("node1", "pkill", "-KILL", "-u", "dockerjob", "-f", ".", check=False)
    finish(process, 30)
    wait_until(lambda: forgotten(cluster, 988103), 60, "etcd holds nothing of the job")


def phases(cluster: Cluster, job_id: str) -> str:
    with cluster.kvs() as kvs:
        item = kvs.get(names.leader_key(job_id))
        return item.value.decode() if item else "gone: teardown"


def test_etcd_loses_its_leader_and_then_its_quorum_and_the_job_goes_on(cluster: Cluster) -> None:
    with neighbour(cluster):
        process = started(cluster, job("echo started; sleep 25; echo done"), number=988104)
        for host in ("head", "node2"):
            cluster.run(host, "docker", "kill", "dockerjob-etcd")
            time.sleep(2)
        time.sleep(6)
        for host in ("head", "node2"):
            cluster.run(host, "docker", "start", "dockerjob-etcd")
        out, err = finish(process, 120)
        assert (out, process.returncode) == ("done\n", 0), err


@pytest.mark.parametrize("host", ["node1", "node2"])
def test_a_restart_of_dockerd_does_not_disturb_a_job(cluster: Cluster, host: str) -> None:
    """Containers live on (live-restore), and what COMMAND writes meanwhile is not lost."""
    count = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.1; done"
    process = started(cluster, job(f"echo started; {count}"), number=988105)
    cluster.run(host, "service", "docker", "restart")
    out, err = finish(process, 120)
    assert (process.returncode, out.split()) == (0, [str(n) for n in range(1, 201)]), err
    assert containers(cluster, "988105") == {}


def test_the_same_job_id_right_after_its_end(cluster: Cluster) -> None:
    for _ in range(3):
        assert cluster.submit(job("hostname"), number=988106).out == "988106_node_0\n"
