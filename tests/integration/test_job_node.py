# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's node on a private host: whole or gone, whatever happens and whoever is beside it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dockerjob_core import names, orphans
from dockerjob_lab import cgroups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host_fixtures import Host

pytestmark = pytest.mark.integration

USER, GROUP = 4711, 4712
IMAGE = "dockerjob-test:latest"
TESTS = os.path.dirname(os.path.dirname(__file__))
NODE = "/run/dockerjob/node"
SHIM = ("/usr/bin/containerd-shim-runc-v2", "-namespace", "moby", "-id")
_numbers = itertools.count(7000)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def arguments(job_id: str, script: str = "exec sleep 600", **changes: Any) -> dict[str, Any]:
    """The module's options for a node that runs *script* as its first process."""
    spec = {
        "node_index": 0,
        "image": IMAGE,
        "uid": USER,
        "gid": GROUP,
        "groups": [4800, 4801],
        "entrypoint": ["/bin/sh", "-c", script],
        "env": {"GREETING": "hello world"},
        "address": "10.8.0.1/24",
        "vlan": 31,
        "files": [
            {"name": "command", "content_b64": encoded("true")},
            {"name": "key.pem", "content_b64": encoded("the secret key"), "mode": "0400", "owner": "user"},
        ],
        "writable_files": [{"name": "hosts", "content_b64": encoded("127.0.0.1 localhost\n")}],
        "overlays": [{"file": "rw/hosts", "target": "/etc/hosts"}],
    }
    return {"job_id": job_id, "spec": {**spec, **changes}}


@pytest.fixture
def job(host: Host) -> Iterator[str]:
    """A job's id; after the test the host must hold what it held before."""
    job_id = str(next(_numbers))
    before = host.holds()
    try:
        yield job_id
        host.module("job_node", {"job_id": job_id, "state": "absent"})
        assert host.holds() == before
    finally:
        host.docker("rm", "-f", f"{job_id}_node_0", check=False)
        host.forget_ports()
        forget_files(host, job_id)


@contextmanager
def away(host: Host, *files: str) -> Iterator[None]:
    """Hide files of Open vSwitch's, as if they were not there."""
    for file in files:
        host.run("mv", f"/run/openvswitch/{file}", f"/run/openvswitch/{file}.away")
    try:
        yield
    finally:
        for file in files:
            host.run("mv", f"/run/openvswitch/{file}.away", f"/run/openvswitch/{file}")


def forget_files(host: Host, job_id: str) -> None:
    directory = f"/run/dockerjob/jobs/{job_id}"
    host.run("bash", "-c", f"umount -q {directory}/rw; rm -rf {directory}")


@contextmanager
def other_job(host: Host) -> Iterator[str]:
    job_id = f"{next(_numbers)}_3"
    try:
        yield job_id
    finally:
        host.module("job_node", {"job_id": job_id, "state": "absent"})


def inside(host: Host, job_id: str, *argv: str) -> str:
    return host.docker("exec", f"{job_id}_node_0", *argv)


@pytest.fixture(scope="module")
def image_with_variables(host: Host) -> Iterator[str]:
    """An image of others that sets variables which the loader reads, and has a volume."""
    name = "dockerjob-test:variables"
    host.docker("create", "--name", "variables", IMAGE, "/bin/true")
    changes = ("--change", "ENV LD_LIBRARY_PATH=/nowhere", "--change", "VOLUME /data")
    host.docker("commit", *changes, "variables", name)
    host.docker("rm", "variables")
    yield name
    host.docker("rmi", name)


def test_infrastructure_of_the_host(host: Host, job: str, image_with_variables: str, tmp_path: Path) -> None:
    """An image without the layer gets the host's, read-only; what its variables would do to it is prevented."""
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    (tmp_path / "0123/bin").mkdir(parents=True)
    (tmp_path / "0123/word").write_text("portable\n")
    agent = tmp_path / "0123/bin/dockerjob-agent"
    agent.write_text("#!/bin/sh\nexec sleep 600\n")
    agent.chmod(0o755)
    (tmp_path / "current").symlink_to("0123")
    wanted = arguments(job, image=image_with_variables, infra="auto", infra_directory=f"{tmp_path}/current")
    del wanted["spec"]["entrypoint"]
    wanted["spec"]["files"].append({"name": "passwd_injected", "content_b64": encoded("alice of ours\n")})
    wanted["spec"]["injected_overlays"] = [{"file": "ro/passwd_injected", "target": "/etc/passwd"}]
    assert host.module("job_node", wanted)["changed"]
    assert inside(host, job, "cat", "/opt/dockerjob/word", "/etc/passwd") == "portable\nalice of ours"
    variables = inside(host, job, "cat", "/proc/1/environ").split("\0")
    assert f"{names.IMAGE_VARIABLE}LD_LIBRARY_PATH=/nowhere" in variables
    assert not [entry for entry in variables if entry.startswith("LD_")]
    with pytest.raises(AssertionError, match="Read-only file system"):
        inside(host, job, "mkdir", "/opt/dockerjob/x")
    assert "tmpfs /data tmpfs rw,nosuid,nodev" in inside(host, job, "cat", "/proc/mounts")
    assert not host.module("job_node", wanted)["changed"]


def test_host_without_infrastructure_says_what_to_do(host: Host, job: str) -> None:
    failed = host.module("job_node", arguments(job, infra="auto", infra_directory="/nowhere"), fails=True)
    assert "cluster_setup.yml --tags infra" in failed["msg"]


def wait_for(host: Host, job_id: str) -> None:
    host.docker("wait", f"{job_id}_node_0")


class TestPresent:
    def test_twice(self, host: Host, job: str) -> None:
        first = host.module("job_node", arguments(job))
        assert first["changed"]
        assert first["diff"]["before"]["containers"] == []
        second = host.module("job_node", arguments(job))
        assert not second["changed"]
        assert second["container"] == first["container"]
        assert second["diff"]["before"] == second["diff"]["after"]
        assert {"connect", "look", "port"} == {step["name"] for step in second["steps"]}

    def test_check_mode_makes_nothing(self, host: Host, job: str) -> None:
        before = host.holds()
        result = host.module("job_node", arguments(job), check_mode=True)
        assert result["changed"]
        assert result["diff"]["after"]["containers"] == [f"{job}_node_0"]
        assert host.holds() == before

    def test_runs_as_the_user_and_nothing_more(self, host: Host, job: str) -> None:
        result = host.module("job_node", arguments(job))
        status = inside(host, job, "cat", "/proc/1/status").splitlines()
        fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        assert fields["Uid"].split() == [str(USER)] * 4
        assert fields["Gid"].split() == [str(GROUP)] * 4
        assert fields["Groups"].split() == [str(GROUP), "4800", "4801"]
        assert (int(fields["CapBnd"], 16), fields["NoNewPrivs"].strip()) == (0, "1")
        (inspected,) = json.loads(host.docker("inspect", result["container"]["id"]))
        assert inspected["HostConfig"]["NetworkMode"] == "none"
        links = json.loads(host.in_container(result["container"]["pid"], "ip", "-json", "link").stdout)
        assert [(link["ifname"], "UP" in link["flags"]) for link in links] == [("lo", True), ("eth1", True)]

    def test_files(self, host: Host, job: str) -> None:
        host.module("job_node", arguments(job))
        shown = host.run("stat", "-c", "%n %u %a", *self._files(job)).stdout.split("\n")
        top = f"/run/dockerjob/jobs/{job}"
        assert shown[:-1] == [
            f"{top} 0 700",
            f"{top}/ro 0 755",
            f"{top}/rw {USER} 700",
            f"{top}/ro/command 0 444",
            f"{top}/ro/key.pem {USER} 400",
            f"{top}/rw/hosts {USER} 644",
        ]
        assert inside(host, job, "cat", "/run/dockerjob/job/key.pem") == "the secret key"
        assert inside(host, job, "cat", "/etc/hosts") == "127.0.0.1 localhost"
        refused = host.run(
            "/usr/bin/docker", "exec", f"{job}_node_0", "mkdir", "/run/dockerjob/job/x", check=False
        )
        assert "Read-only file system" in refused.stderr

    @staticmethod
    def _files(job: str) -> list[str]:
        names = ("", "/ro", "/rw", "/ro/command", "/ro/key.pem", "/rw/hosts")
        return [f"/run/dockerjob/jobs/{job}{name}" for name in names]

    def test_limits(self, host: Host, job: str) -> None:
        limits = {
            "memory": 64 << 20,
            "cpuset": "0",
            "shm_size": 8 << 20,
            "pids": 50,
            "ulimits": [{"name": "nofile", "soft": 100, "hard": 200}],
        }
        host.module("job_node", arguments(job, limits=limits))
        config = json.loads(host.docker("inspect", "-f", "{{json .HostConfig}}", f"{job}_node_0"))
        assert (config["Memory"], config["MemorySwap"]) == (64 << 20, 64 << 20)
        assert (config["CpusetCpus"], config["ShmSize"], config["PidsLimit"]) == ("0", 8 << 20, 50)
        (files,) = (
            line for line in inside(host, job, "cat", "/proc/1/limits").splitlines() if "open files" in line
        )
        assert files.split()[3:5] == ["100", "200"]

    def test_seccomp_profile(self, host: Host, job: str, tmp_path: Path) -> None:
        profile = tmp_path / "seccomp.json"
        refused = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
        profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}))
        host.module("job_node", arguments(job, seccomp_profile=str(profile)))
        done = host.run("/usr/bin/docker", "exec", f"{job}_node_0", "mkdir", f"{NODE}/x", check=False)
        assert "Operation not permitted" in done.stderr

    def test_other_specification_replaces(self, host: Host, job: str) -> None:
        first = host.module("job_node", arguments(job))
        second = host.module("job_node", arguments(job, env={"GREETING": "servus"}))
        assert second["changed"]
        assert second["container"]["id"] != first["container"]["id"]
        assert (
            len(
                host.ovs(
                    "--bare", "--columns=name", "find", "Port", f"external_ids:dockerjob_job={job}"
                ).split()
            )
            == 1
        )

    def test_lost_port_is_repaired(self, host: Host, job: str) -> None:
        first = host.module("job_node", arguments(job))
        (port,) = first["diff"]["after"]["ports"]
        host.ovs("del-port", port)
        result = host.module("job_node", arguments(job))
        assert result["changed"]
        assert result["container"] == first["container"]
        assert host.ovs("get", "Port", port, "tag") == "31"
        assert not host.module("job_node", arguments(job))["changed"]

    def test_lost_flows_are_put_back(self, host: Host, job: str) -> None:
        """ovs-vswitchd has them in its memory only; without them nothing passes."""
        host.module("job_node", arguments(job))
        whole = host.flows()
        host.run("ovs-ofctl", "del-flows", "br-job")
        checked = host.module("job_node", arguments(job), check_mode=True)
        assert checked["changed"]
        assert checked["diff"]["before"]["flows"] == []
        assert len(checked["diff"]["after"]["flows"]) == 3
        assert host.flows() == []
        assert host.module("job_node", arguments(job))["changed"]
        assert host.flows() == whole
        assert not host.module("job_node", arguments(job))["changed"]

    def test_changed_hardware_address_is_put_back(self, host: Host, job: str) -> None:
        pid = host.module("job_node", arguments(job))["container"]["pid"]
        host.in_container(pid, "ip", "link", "set", "eth1", "address", "02:00:00:00:00:99")
        assert host.module("job_node", arguments(job))["changed"]
        assert not host.module("job_node", arguments(job))["changed"]

    def test_no_key_in_the_result(self, host: Host, job: str) -> None:
        assert encoded("the secret key") not in json.dumps(host.module("job_node", arguments(job)))


class TestFailure:
    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"image": "nonesuch:1"}, "the image nonesuch:1 is not on this host"),
            ({"vlan": 5000}, "5000"),
            ({"address": "10.8.0.1/99"}, "10.8.0.1/99"),
            ({"address": "fd00::1/64"}, "not an IPv4 address"),
            ({"entrypoint": ["/bin/nonesuch"]}, "/bin/nonesuch"),
            ({"files": [{"name": "../x", "content_b64": ""}]}, "not the name of a job's file"),
            ({"files": [{"name": "x", "content_b64": "%"}]}, "file x:"),
            ({"mounts": [{"source": "/nonesuch", "target": "/mnt"}]}, "/nonesuch"),
            ({"seccomp_profile": "/nonesuch.json"}, "/nonesuch.json"),
            ({"devices": [{"path": "/dev/nonesuch"}]}, "there is no device /dev/nonesuch on this host"),
            ({"devices": [{"path": "/dev/fd"}]}, "/dev/fd is refused: it is or leads through a link"),
            ({"devices": [{"path": "/dev/loop-contro[l]"}]}, "changes the host itself"),
            # A daemon without either says so; no test has a GPU.
            ({"gpus": {"names": ["nvidia.com/gpu=0"]}}, "cdi"),
            ({"gpus": {"names": ["nvidia.com/gpu=0"], "driver": "nvidia"}}, "nvidia"),
        ],
    )
    def test_leaves_nothing(self, host: Host, job: str, wrong: dict[str, Any], said: str) -> None:
        before = host.holds()
        result = host.module("job_node", arguments(job, **wrong), fails=True)
        assert said in result["msg"]
        assert "\n" not in result["msg"]
        assert host.holds() == before

    def test_missing_bridge_leaves_nothing(self, host: Host, job: str) -> None:
        before = host.holds()
        result = host.module("job_node", {**arguments(job), "bridge": "br-none"}, fails=True)
        assert result["msg"] == "Open vSwitch has no bridge br-none on this host; run cluster_setup"
        assert host.holds() == before

    def test_container_that_ends_at_once_says_why(self, host: Host, job: str) -> None:
        script = f"echo no image for me >{NODE}/agent.log; exit 3"
        before = host.holds()
        result = host.module("job_node", arguments(job, script), fails=True)
        assert "no image for me" in result["msg"]
        assert host.holds() == before

    def test_no_docker_daemon(self, host: Host, job: str) -> None:
        wrong = {**arguments(job), "docker_host": "unix:///run/nonesuch.sock"}
        assert "unix:///run/nonesuch.sock" in host.module("job_node", wrong, fails=True)["msg"]

    def test_container_of_somebody_else_is_left_alone(self, host: Host, job: str) -> None:
        host.docker("create", "--name", f"{job}_node_0", IMAGE, "/bin/sleep", "600")
        try:
            before = host.holds()
            result = host.module("job_node", arguments(job), fails=True)
            assert "does not carry job" in result["msg"]
            assert not host.module("job_node", {"job_id": job, "state": "absent"})["changed"]
            assert host.holds() == before
        finally:
            host.docker("rm", "-f", f"{job}_node_0")


class TestAbsent:
    def test_twice(self, host: Host, job: str) -> None:
        host.module("job_node", arguments(job))
        gone = {"job_id": job, "state": "absent"}
        assert host.module("job_node", gone, check_mode=True)["changed"]
        first = host.module("job_node", gone)
        assert first["changed"]
        (node,) = first["nodes"]
        assert (node["name"], node["running"], node["exit_code"]) == (f"{job}_node_0", True, None)
        second = host.module("job_node", gone)
        assert (second["changed"], second["nodes"]) == (False, [])

    def test_reports_how_the_node_ended(self, host: Host, job: str) -> None:
        lines = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done"
        script = f"sleep 1; echo 7 >{NODE}/exit_status; ({lines}) >{NODE}/agent.log; exit 9"
        host.module("job_node", arguments(job, script))
        wait_for(host, job)
        (node,) = host.module("job_node", {"job_id": job, "state": "absent"})["nodes"]
        assert (node["running"], node["exit_code"], node["exit_status"]) == (False, 9, "7")
        assert node["agent_log"].splitlines() == [f"line {number}" for number in range(100, 300)]

    def test_returns_the_end_of_the_output(self, host: Host, job: str) -> None:
        host.module("job_node", arguments(job, "sleep 1; echo one; echo two; printf three; printf four >&2"))
        wait_for(host, job)
        (node,) = host.module("job_node", {"job_id": job, "state": "absent"})["nodes"]
        out, err = (base64.b64decode(end) for end in node["last_output_b64"])
        assert (out.splitlines()[-1], err) == (b"three", b"four")

    def test_container_killed_and_removed_by_hand(self, host: Host, job: str) -> None:
        host.module("job_node", arguments(job, f"echo 5 >{NODE}/exit_status; exec sleep 600"))
        host.docker("rm", "-f", f"{job}_node_0")
        (node,) = host.module("job_node", {"job_id": job, "state": "absent"})["nodes"]
        assert (node["name"], node["exit_status"]) == (None, "5")

    def test_half_built(self, host: Host, job: str) -> None:
        """A pair that is in no bridge yet, and files, as a set-up leaves them that was killed."""
        alias = f"dockerjob.job={job}"
        host.run("ip", "link", "add", f"dj{job}", "type", "veth", "peer", "name", f"pj{job}")
        host.run("ip", "link", "set", f"dj{job}", "alias", alias)
        host.run("mkdir", "-p", f"/run/dockerjob/jobs/{job}/ro")
        result = host.module("job_node", {"job_id": job, "state": "absent"})
        assert result["diff"]["before"] == {
            "containers": [],
            "ports": [],
            "links": [f"dj{job}"],
            "directory": True,
            "flows": [],
            "cgroup": False,
        }

    def test_task_that_docker_has_forgotten(self, host: Host, job: str) -> None:
        """As a dockerd leaves it that is restarted while it starts a container."""
        name = f"{job}_node_0"
        created = host.docker("create", "--name", name, "--label", f"{names.LABEL_JOB}={job}", IMAGE, "true")
        container = created.strip()
        groups = [f"{hierarchy}/{container}" for hierarchy in cgroups.hierarchies()]
        host.run("mkdir", "-p", f"{orphans.RUNC_ROOT}/{container}", *groups)
        shim = subprocess.Popen(
            host.inside(
                "bash",
                "-c",
                'exec -a "$0" /usr/bin/python3 -c "import time; time.sleep(600)" "$@"',
                *SHIM,
                container,
            )
        )
        try:
            assert host.module("job_node", {"job_id": job, "state": "absent"})["changed"]
            assert shim.wait(10) == -signal.SIGKILL
            assert host.run("ls", "-d", f"{orphans.RUNC_ROOT}/{container}", *groups, check=False).stdout == ""
        finally:
            shim.kill()
            shim.wait()
            host.run("rmdir", *groups, check=False)

    def test_flows_without_port_container_and_files(self, host: Host, job: str) -> None:
        (link,) = host.module("job_node", arguments(job))["diff"]["after"]["ports"]
        host.ovs("del-port", link)
        host.docker("rm", "-f", f"{job}_node_0")
        forget_files(host, job)
        gone = {"job_id": job, "state": "absent"}
        checked = host.module("job_node", gone, check_mode=True)
        assert checked["changed"]
        assert checked["diff"]["before"]["ports"] == []
        assert len(checked["diff"]["before"]["flows"]) == 3
        assert host.module("job_node", gone)["changed"]
        assert not host.module("job_node", gone)["changed"]

    def test_switch_that_is_down_has_no_flows(self, host: Host, job: str) -> None:
        """Its container and files go all the same."""
        host.module("job_node", arguments(job))
        (link,) = host.module("job_node", arguments(job))["diff"]["after"]["ports"]
        host.ovs("del-port", link)
        host.run("ovs-ofctl", "del-flows", "br-job", f"cookie={names.flow_cookie(job):#x}/-1")
        with away(host, "br-job.mgmt", "ovs-vswitchd.pid"):
            result = host.module("job_node", {"job_id": job, "state": "absent"})
        assert result["diff"]["before"]["flows"] == []
        assert result["diff"]["before"]["containers"] == [f"{job}_node_0"]

    def test_switch_that_does_not_answer_may_have_flows(self, host: Host, job: str) -> None:
        """So the takedown fails, and is tried again by whoever called it."""
        host.module("job_node", arguments(job))
        with away(host, "br-job.mgmt"):
            result = host.module("job_node", {"job_id": job, "state": "absent"}, fails=True)
        assert "br-job" in result["msg"]
        assert host.module("job_node", {"job_id": job, "state": "absent"})["changed"]

    def test_while_the_set_up_is_still_at_work(self, host: Host, job: str) -> None:
        """A set-up outlives its ssh connection; the teardown waits for it and takes down all of it."""
        code = "import json, sys, module_runner as m; print(m.run('job_node', json.load(sys.stdin)))"
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS}/../.build"}
        argv = host.inside(sys.executable, "-c", code)
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as set_up:
            assert set_up.stdin
            set_up.stdin.write(json.dumps(arguments(job)))
            set_up.stdin.close()
            directory = f"/run/dockerjob/jobs/{job}"
            host.run("bash", "-c", f"until test -d {directory}; do sleep 0.01; done", timeout=20)
            result = host.module("job_node", {"job_id": job, "state": "absent"})
            set_up.wait()
        assert result["diff"]["before"]["ports"]
        assert host.docker("ps", "-aq") == ""

    def test_neighbour_stays(self, host: Host, job: str) -> None:
        with other_job(host) as neighbour:
            host.module("job_node", arguments(neighbour))
            held = host.holds()
            host.module("job_node", arguments(job, address="10.8.0.2/24"))
            host.module("job_node", {"job_id": job, "state": "absent"})
            assert host.holds() == held
            assert not host.module("job_node", arguments(neighbour))["changed"]

    def test_job_whose_id_begins_alike_stays(self, host: Host, job: str) -> None:
        """``70`` is not ``70_1``, and a label filter must not take one for the other."""
        element = f"{job}_1"
        host.module("job_node", arguments(element))
        try:
            assert not host.module("job_node", {"job_id": job, "state": "absent"})["changed"]
            assert not host.module("job_node", arguments(element))["changed"]
        finally:
            host.module("job_node", {"job_id": element, "state": "absent"})


BURN = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
ENDLESS = "while :; do :; done"


class TestUsage:
    """What a job has used is read when its container has ended, which takes its own cgroup along."""

    def used(self, host: Host, job: str, script: str, **changes: Any) -> dict[str, Any]:
        host.module("job_node", arguments(job, f"sleep 1; {script}", **changes))
        wait_for(host, job)
        result = host.module("job_node", {"job_id": job, "state": "absent"})
        assert result["diff"]["before"]["cgroup"]
        return result

    def test_cpu_and_memory(self, host: Host, job: str) -> None:
        usage = self.used(host, job, f"{BURN}; head -c 50000000 /dev/zero >/var/tmp/big")["usage"]
        assert 0.02 < usage["cpu"] < 60
        assert abs(usage["cpu_user"] + usage["cpu_system"] - usage["cpu"]) < 0.1
        assert 50_000_000 < usage["memory"] < 200_000_000

    def test_of_children_that_have_ended_and_of_those_that_are_killed(self, host: Host, job: str) -> None:
        host.module("job_node", arguments(job, f"sh -c '{BURN}'; {ENDLESS}"))
        host.run("sleep", "3")
        result = host.module("job_node", {"job_id": job, "state": "absent"})
        assert result["nodes"][0]["running"]
        assert result["usage"]["cpu"] > 0.2

    def test_traffic_of_a_container_that_still_has_its_link(self, host: Host, job: str) -> None:
        made = host.module("job_node", arguments(job))
        host.in_container(made["container"]["pid"], "ping", "-c", "1", "-W", "1", "10.8.0.9", check=False)
        usage = host.module("job_node", {"job_id": job, "state": "absent"})["usage"]
        assert usage["network_sent"] >= 42  # an ARP request at least

    def test_traffic_is_unknown_when_the_link_went_with_the_container(self, host: Host, job: str) -> None:
        """Without a guard, which holds the container's network until the takedown."""
        assert self.used(host, job, "true")["usage"]["network_sent"] is None

    def test_what_v1_forgets_is_unknown(self, host: Host, job: str) -> None:
        usage = self.used(host, job, "true")["usage"]
        v1 = host.run("test", "-d", "/sys/fs/cgroup/blkio", check=False).returncode == 0
        assert (usage["block_read"] is None) == v1

    def test_the_same_job_again_begins_with_nothing(self, host: Host, job: str) -> None:
        first = self.used(host, job, "head -c 50000000 /dev/zero >/var/tmp/big")["usage"]
        second = self.used(host, job, "true")["usage"]
        assert second["memory"] < first["memory"] - 30_000_000

    def test_a_cgroup_alone_is_found_and_removed(self, host: Host, job: str) -> None:
        host.run("mkdir", "-p", f"/sys/fs/cgroup/memory{host.cgroup}/dockerjob_{job}/stale")
        result = host.module("job_node", {"job_id": job, "state": "absent"})
        assert result["changed"]
        assert result["diff"]["before"]["cgroup"]

    def test_a_host_that_is_not_prepared(self, host: Host, job: str) -> None:
        host.run("mv", names.CGROUP_PARENT_FILE, f"{names.CGROUP_PARENT_FILE}.away")
        try:
            host.module("job_node", arguments(job, f"sleep 1; {BURN}"))
            wait_for(host, job)
            result = host.module("job_node", {"job_id": job, "state": "absent"})
        finally:
            host.run("mv", f"{names.CGROUP_PARENT_FILE}.away", names.CGROUP_PARENT_FILE)
        assert set(result["usage"].values()) == {None}


class TestLimits:
    def cgroup(self, host: Host, job: str, controller: str, file: str) -> str:
        """Read a file of the container's cgroup, in v1 or v2."""
        container = host.docker("inspect", "--format", "{{.Id}}", f"{job}_node_0")
        below = f"{host.cgroup}/dockerjob_{job}/{container}/{file}"
        return host.run(
            "sh", "-c", f"cat /sys/fs/cgroup/{controller}{below} || cat /sys/fs/cgroup{below}"
        ).stdout

    def test_two_that_compute_on_half_a_cpu_are_held_back(self, host: Host, job: str) -> None:
        script = f"({ENDLESS}) & ({ENDLESS}) & exec sleep 600"
        host.module("job_node", arguments(job, script, limits={"cpus": 0.5}))
        host.run("sleep", "3")
        stat = dict(line.split() for line in self.cgroup(host, job, "cpu", "cpu.stat").splitlines())
        assert int(stat["nr_throttled"]) > 3
        begin = float(host.run("cut", "-d", " ", "-f1", "/proc/uptime").stdout)
        used = int(self.cgroup(host, job, "cpuacct", "cpuacct.usage"))
        host.run("sleep", "3")
        used = int(self.cgroup(host, job, "cpuacct", "cpuacct.usage")) - used
        passed = float(host.run("cut", "-d", " ", "-f1", "/proc/uptime").stdout) - begin
        assert used / 1e9 / passed < 0.65

    def test_memory_beyond_the_limit_is_not_swapped_but_refused(self, host: Host, job: str) -> None:
        limits = {"memory": 64 << 20}
        script = "sleep 1; busybox dd if=/dev/zero of=/dev/null bs=100000000 count=1; echo $?"
        host.module("job_node", arguments(job, script, limits=limits))
        swap = "memory.memsw.limit_in_bytes"
        assert int(self.cgroup(host, job, "memory", swap)) == 64 << 20
        wait_for(host, job)
        result = host.module("job_node", {"job_id": job, "state": "absent"})
        # SIGKILL; that this was for lack of memory is for tests/e2e, where Docker has the time to notice.
        assert base64.b64decode(result["nodes"][0]["last_output_b64"][0]) == b"137\n"
        assert result["usage"]["memory"] < 65 << 20  # the job's cgroup has a little of its own

    def test_swap_that_the_site_allows_comes_on_top(self, host: Host, job: str) -> None:
        host.module("job_node", arguments(job, limits={"memory": 64 << 20, "swap": 32 << 20}))
        assert int(self.cgroup(host, job, "memory", "memory.memsw.limit_in_bytes")) == 96 << 20


STAND_INS = """
mkdir {directory} && mount -t tmpfs -o mode=755 tmpfs {directory} && cd {directory} && mkdir caps &&
mknod -m 666 uverbs0 c 1 5 && mknod -m 666 caps/cap1 c 1 3 && mknod -m 666 disk b 7 0 && ln -s /dev/kmsg link &&
mknod -m 660 owned c 1 5 && chgrp 4801 owned && mkdir refused && mknod -m 666 refused/uverbs1 c 10 200
"""


@pytest.fixture
def stand_ins(host: Host) -> Iterator[str]:
    """A directory below /dev that this host alone sees, of devices and of what must not pass for one."""
    directory = f"/dev/djtest-{secrets.token_hex(4)}"
    try:
        host.run("sh", "-c", STAND_INS.format(directory=directory))
        yield directory
    finally:
        host.run("sh", "-c", f"umount {directory}; rmdir {directory}")


@contextmanager
def batch_cgroup(host: Host, *permitted: str) -> Iterator[str]:
    """A cgroup such as a batch system makes for a job; yields its path below the mount point."""
    group = Path(f"/sys/fs/cgroup/devices{host.cgroup}/uid_1/job_7")
    group.mkdir(parents=True)
    try:
        (group / "devices.deny").write_text("a")
        for device in permitted:
            (group / "devices.allow").write_text(device)
        yield f"{host.cgroup.strip('/')}/uid_*/job_7"
    finally:
        group.rmdir()
        group.parent.rmdir()


class TestDevices:
    """Stand-ins with numbers of devices that do no harm; a container sees what its rules give and no more."""

    def listed(self, host: Host, job: str, directory: str) -> list[str]:
        return inside(host, job, "sh", "-c", f"cd {directory} && busybox find . ! -type d").split()

    def test_of_a_directory(self, host: Host, job: str, stand_ins: str) -> None:
        host.run("rm", "-r", f"{stand_ins}/refused")
        rules = [{"path": stand_ins}, {"path": "/dev/djtest-none[0-9]", "required": False}]
        host.module("job_node", arguments(job, devices=rules))
        assert sorted(self.listed(host, job, stand_ins)) == ["./caps/cap1", "./owned", "./uverbs0"]
        zeros = inside(
            host, job, "sh", "-c", f"busybox dd if={stand_ins}/uverbs0 bs=4 count=1 | busybox wc -c"
        )
        assert zeros == "4"
        inside(host, job, "sh", "-c", f"echo x >{stand_ins}/caps/cap1")
        assert not host.module("job_node", arguments(job, devices=rules))["changed"]

    def test_the_group_of_a_device_counts(self, host: Host, job: str, stand_ins: str) -> None:
        rules = [{"path": f"{stand_ins}/own*"}]
        read = ("sh", "-c", f"busybox dd if={stand_ins}/owned bs=4 count=1 2>&1")
        host.module("job_node", arguments(job, devices=rules))
        assert "1+0 records in" in inside(host, job, *read)
        host.module("job_node", arguments(job, devices=rules, groups=[4800]))
        done = host.run("/usr/bin/docker", "exec", f"{job}_node_0", *read, check=False)
        assert "Permission denied" in done.stdout

    def test_of_what_the_batch_system_permits(self, host: Host, job: str, stand_ins: str) -> None:
        rule = {"path": f"{stand_ins}/*", "permit": "batch"}
        with batch_cgroup(host, "c 1:5 rwm", "b 7:* rwm") as pattern:
            host.module("job_node", arguments(job, devices=[rule], device_cgroups=[pattern]))
            assert sorted(self.listed(host, job, stand_ins)) == ["./owned", "./uverbs0"]
        with batch_cgroup(host, "c 1:3 rwm", "c 1:5 r") as pattern:
            host.module("job_node", arguments(job, devices=[rule], device_cgroups=[pattern]))
            assert inside(host, job, "sh", "-c", f"test -e {stand_ins} || echo none") == "none"
        failed = host.module("job_node", arguments(job, devices=[rule], device_cgroups=[pattern]), fails=True)
        assert "the batch system has no devices cgroup (v1) for the job" in failed["msg"]

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("disk", "no character device"),
            ("link", "leads through a link, to /dev/kmsg"),
            # By its number it is the host's network; its name says something else.
            ("refused", "refused/uverbs1 is refused: with /dev/net/tun a process reads and changes the host"),
            ("refused/uver*", "with /dev/net/tun"),
        ],
    )
    def test_what_is_refused_on_the_host(
        self, host: Host, job: str, stand_ins: str, name: str, said: str
    ) -> None:
        before = host.holds()
        failed = host.module(
            "job_node", arguments(job, devices=[{"path": f"{stand_ins}/{name}"}]), fails=True
        )
        assert said in failed["msg"]
        assert host.holds() == before

    def test_a_node_in_a_mounted_directory_opens_nothing(
        self, host: Host, job: str, stand_ins: str, tmp_path: Path
    ) -> None:
        """As a file system of the site's may have one, and anybody open it on the host."""
        tmp_path.chmod(0o755)
        host.run("mknod", "-m", "666", str(tmp_path / "fuse"), "c", "10", "229")
        mount = {"source": str(tmp_path), "target": "/mnt"}
        host.module("job_node", arguments(job, mounts=[mount], devices=[{"path": f"{stand_ins}/uverbs0"}]))
        script = f"(exec 3</mnt/fuse) && echo opened; busybox mknod {NODE}/fuse c 10 229 && echo made"
        done = host.run("/usr/bin/docker", "exec", f"{job}_node_0", "sh", "-c", script, check=False)
        assert done.stdout == ""
        assert done.stderr.count("Operation not permitted") == 2, done.stderr
        assert host.run("sh", "-c", f"(exec 3<{tmp_path}/fuse) && echo opened").stdout == "opened\n"


class TestHostileUser:
    """The user's processes own ``rw/`` and may put there what they like."""

    def end(self, host: Host, job: str, script: str) -> dict[str, Any]:
        host.module("job_node", arguments(job, f"sleep 1; cd {NODE}; {script}"))
        wait_for(host, job)
        result = host.module("job_node", {"job_id": job, "state": "absent"})
        node: dict[str, Any] = result["nodes"][0]
        return node

    def test_links_are_not_followed(self, host: Host, job: str) -> None:
        node = self.end(host, job, "ln -s /etc/shadow agent.log; ln -s /etc/passwd exit_status")
        assert (node["agent_log"], node["exit_status"]) == (None, None)

    def test_link_to_a_directory_keeps_what_it_leads_to(self, host: Host, job: str) -> None:
        host.run("mkdir", "-p", "/run/precious/deep")
        try:
            self.end(host, job, "ln -s /run/precious a; mkdir b; ln -s /run/precious b/c")
            assert host.run("test", "-d", "/run/precious/deep").returncode == 0
        finally:
            host.run("rm", "-rf", "/run/precious")

    def test_pipe_does_not_block(self, host: Host, job: str) -> None:
        node = self.end(host, job, "busybox mkfifo agent.log; mkdir exit_status")
        assert (node["agent_log"], node["exit_status"]) == (None, None)

    def test_large_and_strange_files_are_cut(self, host: Host, job: str) -> None:
        node = self.end(
            host, job, "head -c 3000000 /dev/urandom >agent.log; head -c 5000 /dev/zero >exit_status"
        )
        assert len(node["agent_log"]) <= 256 * 1024
        assert len(node["exit_status"]) <= 64

    def test_what_is_written_there_is_limited(self, host: Host, job: str) -> None:
        """Neither the host's /run, nor its inodes, nor the disk of the Docker daemon can be filled."""
        tries = (
            "head -c 100000000 /dev/zero >big; big=$(wc -c <big); rm big; echo $big >agent.log",
            "i=0; while [ $i -lt 9000 ] && true >f$i; do i=$((i+1)); done; rm -f f*; echo $i >>agent.log",
            "head -c 100000000 /dev/zero >/var/tmp/big; wc -c </var/tmp/big >>agent.log",
            "for d in / /etc /var /bin /dev /run; do true >$d/x && echo $d >>agent.log; done",
            "echo 'exit 0' >x; chmod +x x; ./x && echo ran >>agent.log",
        )
        script = f"sleep 1; cd {NODE}; ({'; '.join(tries)}) 2>/dev/null"
        host.module("job_node", arguments(job, script, limits={"tmp_size": 5 << 20}))
        wait_for(host, job)
        node = host.module("job_node", {"job_id": job, "state": "absent"})["nodes"][0]
        big, files, temporary = map(int, node["agent_log"].split())
        assert 16 << 20 < big <= 32 << 20
        assert 3000 < files < 4096
        assert temporary == 5 << 20

    def test_its_file_system_goes_with_the_job(self, host: Host, job: str) -> None:
        def mounted() -> list[str]:
            table = host.run("cat", "/proc/self/mountinfo").stdout.splitlines()
            return [line for line in table if f"/jobs/{job}/" in line]

        host.module("job_node", arguments(job))
        assert len(mounted()) == 1
        options = set(mounted()[0].split()[5].split(","))
        assert options >= {"nosuid", "nodev", "noexec"}
        host.module("job_node", arguments(job, env={"GREETING": "again"}))
        assert len(mounted()) == 1
        host.module("job_node", {"job_id": job, "state": "absent"})
        assert mounted() == []

    def test_deep_directories_are_removed(self, host: Host, job: str) -> None:
        self.end(host, job, "i=0; while [ $i -lt 1100 ]; do mkdir d; cd d; i=$((i+1)); done")


class TestUnderAnsible:
    def test_with_debians_python_and_docker_library(self, host: Host, job: str, tmp_path: Path) -> None:
        """Through Ansible itself, which sends the module to the interpreter a real host has."""
        play = {
            "hosts": "localhost",
            "gather_facts": False,
            "tasks": [
                {"name": name, "hpc.dockerjob.job_node": options, "register": name}
                for name, options in (
                    ("made", arguments(job)),
                    ("again", arguments(job)),
                    ("gone", {"job_id": job, "state": "absent"}),
                )
            ],
        }
        shown = "{{ {'made': made, 'again': again, 'gone': gone} }}"
        play["tasks"].append(  # type: ignore[attr-defined]
            {"name": "Show", "ansible.builtin.copy": {"content": shown, "dest": str(tmp_path / "out.json")}}
        )
        (tmp_path / "play.json").write_text(json.dumps([play]))
        playbook = os.path.join(os.path.dirname(sys.executable), "ansible-playbook")
        interpreter = "ansible_python_interpreter=/usr/bin/python3"
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": os.path.join(os.getcwd(), ".build"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path),
        }
        done: subprocess.CompletedProcess[str] = host.run(
            playbook, "-i", "localhost,", "-c", "local", "-e", interpreter, str(tmp_path / "play.json"),
            check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        results = json.loads((tmp_path / "out.json").read_text())
        assert [results[name]["changed"] for name in ("made", "again", "gone")] == [True, False, True]
