# SPDX-License-Identifier: GPL-3.0-or-later
"""A part of the cluster fails or hangs under jobs: what the user is told, and that everything is clean in the end."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dockerjob_core import names
from dockerjob_core.kvs import Kvs
from dockerjob_lab.client import Cluster
from job_fixtures import (
    containers,
    finish,
    forgotten,
    job,
    link_down,
    refused,
    running_job,
    started,
    stored_image,
    wait_until,
)

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

SLEEP = "echo started; sleep 300"
LOST = 100
"""Seconds until a host that says nothing is given up, and what is left of it removed: ssh asks four times in 60 s."""


@contextlib.contextmanager
def frozen(cluster: Cluster, host: str, *which: str) -> Iterator[Callable[[], None]]:
    """Stop processes (pkill's arguments) with SIGSTOP; yields what lets them go on before the end."""
    cluster.run(host, "pkill", "-STOP", *which)

    def thaw() -> None:
        cluster.run(host, "pkill", "-CONT", *which, check=False)

    try:
        yield thaw
    finally:
        thaw()


class TestSsh:
    def test_a_host_whose_sshd_hangs_is_named(self, cluster: Cluster) -> None:
        with frozen(cluster, "node2", "-o", "-x", "sshd"):
            begin = time.monotonic()
            refused(cluster.submit(job()), 210, "can't reach 1 of 2 hosts by ssh: node2")
            assert time.monotonic() - begin < 60

    def test_a_host_that_hangs_under_a_job_is_given_up(self, cluster: Cluster) -> None:
        process = started(cluster, job(SLEEP), number=988301)
        with frozen(cluster, "node2", "-f", "^sshd: root"):
            _, err = finish(process, LOST)
            assert process.returncode == 210, err
            assert "lost node2, which runs 988301_node_1" in err


class TestNetworks:
    def test_the_job_network_is_cut(self, cluster: Cluster) -> None:
        """COMMAND sees it, as it would with a broken cable, and says itself what it makes of it."""
        reach = "ssh -o ConnectTimeout=2 988302_node_1 true"
        process = started(
            cluster, job(f"{reach} && echo started; while {reach}; do sleep 0.2; done; exit 7"), number=988302
        )
        with link_down(cluster, "node2", "eth1"):
            _, err = finish(process, 60)
        assert process.returncode == 7, err

    def test_the_management_network_is_cut(self, cluster: Cluster) -> None:
        process = started(cluster, job(SLEEP), number=988303, hosts="node1,node3")
        with link_down(cluster, "node3", "eth0"):
            _, err = finish(process, LOST)
            assert process.returncode == 210, err
            assert "lost node3" in err
        wait_until(lambda: forgotten(cluster, "988303"), LOST, "the reaper has removed the rest")


class TestHosts:
    @pytest.mark.parametrize("moment", ["discovery", "compute"])
    def test_every_process_of_a_host_dies(self, cluster: Cluster, moment: str) -> None:
        number = 988304
        with running_job(cluster, "bob", "node1,node2"):
            if moment == "compute":
                process = started(cluster, job(SLEEP), number=number, hosts="node1,node3")
                crash(cluster, "node3")
            else:
                with link_down(cluster, "node3", "eth1"):
                    process = cluster.start(job(SLEEP), number=number, hosts="node1,node3")
                    wait_until(lambda: len(containers(cluster, number, "running")) == 2, 60, "both run")
                    crash(cluster, "node3")
            try:
                _, err = finish(process, LOST)
                assert process.returncode == 210, err
                assert "node3" in err
                label = f"label={names.LABEL_JOB}={number}"
                assert cluster.run("node1", "docker", "ps", "-aq", "--filter", label) == ""
            finally:
                boot(cluster, "node3")
            wait_until(lambda: forgotten(cluster, number), LOST, "the reaper has removed the rest")
            # The host is good for the next job, which also puts back the flows of the uplink.
            assert cluster.submit(job("true"), hosts="node1,node3").status == 0

    def test_a_host_that_is_slow_is_waited_for(self, cluster: Cluster) -> None:
        with frozen(cluster, "node2", "-x", "dockerd") as thaw:
            process = cluster.start(job("hostname"), number=988305)
            time.sleep(10)
            thaw()
            out, err = finish(process, 60)
        assert (out, process.returncode) == ("988305_node_0\n", 0), err

    def test_dockerd_dies_under_a_job(self, cluster: Cluster) -> None:
        """Its containers live on, COMMAND's status is true; the host is cleaned when its daemon is back."""
        process = started(cluster, job("echo started; sleep 3; exit 3"), number=988306)
        cluster.run("node2", "pkill", "-KILL", "-x", "dockerd")
        try:
            _, err = finish(process, 60)
            assert process.returncode == 3, err
            assert re.search(r"left behind +node2: ", err), err
        finally:
            cluster.run("node2", "service", "docker", "start")
        wait_until(lambda: forgotten(cluster, 988306), LOST, "the reaper has removed the rest")

    def test_open_vswitch_is_restarted(self, cluster: Cluster) -> None:
        """Debian's init script does not save the flows; the guards put them back."""
        reach = "ssh -o ConnectTimeout=2 988307_node_1 true"
        gate = cluster.path("node1", "/scratch/alice/gate")
        gate.unlink(missing_ok=True)
        process = started(
            cluster,
            job(
                f"{reach} && echo started; while [ ! -e gate ]; do sleep 0.2; done; rm gate; {reach} && echo reached"
            ),
            number=988307,
        )
        cluster.run("node2", "service", "openvswitch-switch", "restart")
        gate.touch()
        gate.chmod(0o666)
        out, err = finish(process, 60)
        assert (out, process.returncode) == ("reached\n", 0), err

    def test_an_image_that_one_host_lacks_where_there_is_no_registry(
        self, cluster: Cluster, site_config: Callable[..., None]
    ) -> None:
        reference, image = stored_image(cluster, "node2", "mpihello:1")
        site_config("applications", **{"mpihello:1": {"image": image}})
        cluster.run("node2", "docker", "rmi", "-f", image)
        try:
            done = cluster.submit(job())
        finally:
            cluster.run("node2", "docker", "pull", "--quiet", reference)
        refused(
            done,
            210,
            "could not start the container on 1 host.*node2: the image .* is not on this host; cluster_setup.yml",
        )

    def test_no_space_in_run(self, cluster: Cluster) -> None:
        jobs = names.host_job_directory("1").rpartition("/")[0]
        cluster.run("node2", "mount", "-t", "tmpfs", "-o", "size=16k,mode=711", "full", jobs)
        try:
            cluster.run("node2", "dd", "if=/dev/zero", f"of={jobs}/.fill", "bs=4k", check=False)
            refused(
                cluster.submit(job()), 210, "could not start the container on 1 host.*node2.*No space left"
            )
        finally:
            cluster.run("node2", "umount", jobs)


class TestEtcd:
    def test_all_members_are_restarted(self, cluster: Cluster) -> None:
        """Keys and leases are on disk, identities are certificates: the job doesn't notice."""
        with running_job(cluster, "bob", "node2,node3"):
            process = started(cluster, job("echo started; sleep 15; echo done; exit 5"), number=988308)
            for host in members(cluster):
                cluster.run(host, "docker", "restart", "-t", "0", "dockerjob-etcd")
            out, err = finish(process, 90)
            assert (out, process.returncode) == ("done\n", 5), err
            assert "left behind" not in err

    def test_its_space_is_used_up(self, cluster: Cluster) -> None:
        """No job can start; one that runs ends with its own status."""
        process = started(cluster, job("echo started; sleep 6; exit 6"), number=988309)
        with cluster.kvs() as kvs:
            space_alarm(kvs, "ACTIVATE")
            try:
                refused(cluster.submit(job(), user="bob"), 211, "space")
                _, err = finish(process, 60)
            finally:
                space_alarm(kvs, "DEACTIVATE")
        assert process.returncode == 6, err
        wait_until(lambda: forgotten(cluster, 988309), LOST, "etcd holds nothing of the job")


CLOCK = """#!{python}
import datetime, runpy, sys, time
class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time() + ({offset}), tz)
datetime.datetime = Shifted
sys.argv[0] = {program!r}
runpy.run_path({program!r}, run_name="__main__")
"""
"""A broker on a host whose clock is wrong: the lab's hosts share one, so the program gets it."""


@pytest.mark.parametrize("offset", [240, -240])
def test_clocks_that_differ(cluster: Cluster, offset: int) -> None:
    """Certificates allow five minutes, and nothing else goes by the time of day."""
    program = "/share/dockerjob/bin/dockerjob-broker"
    path = cluster.path("node1", program)
    python = path.read_text().split("\n", 1)[0].removeprefix("#!")
    kept = path.rename(f"{path}.kept")
    try:
        path.write_text(CLOCK.format(python=python, offset=offset, program=f"{program}.kept"))
        path.chmod(0o755)
        done = cluster.submit(job("date +%s"))
    finally:
        kept.rename(path)
    assert done.status == 0, done.err
    assert abs(int(done.out) - time.time()) < 60
    record = json.loads(cluster.path("node1", "/var/log/dockerjob/jobs.jsonl").read_text().splitlines()[-1])
    ended = datetime.datetime.fromisoformat(record["time"]).timestamp()
    assert abs(ended - time.time() - offset) < 60, "the broker's clock was not off"


def space_alarm(kvs: Kvs, action: str) -> None:
    """Raise or clear what etcd raises itself when its quota is used up (etcd's maintenance guide)."""
    channel = kvs._channel
    rpc = channel.rpc
    member = channel.stub("Cluster").MemberList(rpc.MemberListRequest()).members[0].ID
    request = rpc.AlarmRequest(action=getattr(rpc.AlarmRequest, action), memberID=member, alarm=rpc.NOSPACE)
    channel.call(f"{action} the alarm", channel.stub("Maintenance").Alarm, request)


def members(cluster: Cluster) -> list[str]:
    """Hosts that run a member of etcd."""
    found = {
        host: cluster.run(host, "docker", "ps", "-q", "--filter", "name=dockerjob-etcd")
        for host in cluster.pids
    }
    return [host for host, listed in found.items() if listed]


KILL_ALL = """
import os
for word in os.listdir("/proc"):
    if word.isdigit() and int(word) not in (1, os.getpid()):
        with open(f"/proc/{word}/cmdline") as file:
            if file.read() != "sleep\\0infinity\\0":  # with which a lab's host ends
                os.kill(int(word), 9)
"""


def crash(cluster: Cluster, host: str) -> None:
    """Kill every process of a host but its init, twice for those that are just being made."""
    for _ in range(2):
        cluster.run(host, "python3", "-c", KILL_ALL, check=False)


def boot(cluster: Cluster, host: str) -> None:
    """Start what a host starts when it boots."""
    for service in ("ssh", "openvswitch-switch", "haproxy", "docker", "dockerjob-reaper"):
        if Path(cluster.path(host, f"/etc/init.d/{service}")).exists():
            cluster.run(host, "service", service, "start")
