# SPDX-License-Identifier: GPL-3.0-or-later
"""What each host is told; who the user is; what is refused before anything is created."""

from __future__ import annotations

import base64
import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dockerjob.broker.certificates import ClientCertificate
from dockerjob.broker.identity import Identity, caller
from dockerjob.broker.limits import job_limits
from dockerjob.broker.plan import JobPlan
from dockerjob.broker.policy import choose_application
from dockerjob.config import Config, Device, Gpus, load_config
from dockerjob.request import JobRequest
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import ConfigError, PolicyError, RequestError
from dockerjob_core.ipam import JobNetwork
from dockerjob_core.jobtree import JobTree
from dockerjob_core.schedulers.base import BatchRecord

ALICE = Identity("alice", 2001, 2001, (2001, 100), "/home/alice", "/bin/bash")
IMAGE = "sha256:" + "0" * 64
RECORD = BatchRecord("RUN", "running", {"node1": 2, "node2": 1})
HOSTILE = b"{{ lookup('pipe','id') }} $(id) \"'\n;"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "ca.pem").write_text("CA")
    path = tmp_path / "config.yml"
    path.write_text(
        f"""
hosts: {{node1: {{address: 192.0.2.1}}, node2: {{address: 192.0.2.2}}}}
ansible: {{private_key: /k, known_hosts: /h}}
etcd: {{ca: {tmp_path}/ca.pem, cert: /c, key: /k, auth_cert: /a, auth_key: /a}}
job_ca: {{cert: /c, key: /k}}
applications: {{"openfoam:1912": {{image: "{IMAGE}", hostfile: system/machines}}}}
mounts: [{{path: /scratch}}]
batch: {{}}
"""
    )
    return load_config(path)


def request(**changes: Any) -> JobRequest:
    hosts = (HostSlots("node1", 2), HostSlots("node2", 1))
    values = {
        "allocation": Allocation("lsf", 7, 3, hosts),
        "application": "openfoam:1912",
        "command": HOSTILE,
        "jobdir": "/scratch/case",
        "environment": {"USER": "root", "ODD": "{{ x }}"},
    }
    return JobRequest(**{**values, **changes})


def plan_of(config: Config, record: BatchRecord = RECORD) -> JobPlan:
    return JobPlan(
        config,
        ALICE,
        request(),
        choose_application(config, "openfoam:1912"),
        job_limits(config.container, record, request().allocation),
        JobNetwork("10.128.4.0/24", 104),
        JobTree("7_3", 17, 2),
        1.0,
        ClientCertificate(b"CERT", b"KEY"),
    )


@pytest.fixture
def specs(config: Config) -> dict[str, dict[str, Any]]:
    return plan_of(config).host_specs()


def files(spec: dict[str, Any]) -> dict[str, bytes]:
    return {file["name"]: base64.b64decode(file["content_b64"]) for file in spec["files"]}


def test_each_host_gets_its_node(specs: dict[str, dict[str, Any]]) -> None:
    assert [specs[host]["address"] for host in ("node1", "node2")] == ["10.128.4.1/24", "10.128.4.2/24"]
    assert specs["node2"]["hostname"] == "7_3_node_1"
    assert {spec["vlan"] for spec in specs.values()} == {104}
    told = json.loads(files(specs["node2"])["spec.json"])
    assert told["node_index"] == 1
    assert [node["slots"] for node in told["nodes"]] == [2, 1]
    assert told["hostfile"] == "system/machines"


def test_the_users_text_is_nowhere_but_in_encoded_files(specs: dict[str, dict[str, Any]]) -> None:
    assert files(specs["node1"])["command"] == HOSTILE
    assert "lookup" not in json.dumps(specs)
    assert "{{" not in json.dumps(specs)


def test_only_the_key_is_the_users_and_nobody_elses(specs: dict[str, dict[str, Any]]) -> None:
    owners = {(file["name"], file["mode"]) for file in specs["node1"]["files"] if file["owner"] == "user"}
    assert owners == {("key.pem", "0400")}


def test_who_the_user_is_can_not_be_set_by_a_variable(specs: dict[str, dict[str, Any]]) -> None:
    environment = json.loads(files(specs["node1"])["environment.json"])
    assert environment["USER"] == "alice"
    assert environment["HOME"] == "/scratch/case"  # /home is not mounted
    assert "alice:x:2001:2001::/scratch/case:/bin/bash" in files(specs["node1"])["passwd"].decode()


def test_an_image_of_others_gets_a_login_shell_that_is_there(specs: dict[str, dict[str, Any]]) -> None:
    """sshd refuses a user whose shell is missing, and only the host finds out what the image is."""
    spec = specs["node1"]
    assert spec["infra"] == "auto"
    assert spec["injected_overlays"] == [{"file": "ro/passwd_injected", "target": "/etc/passwd"}]
    told = files(spec)["passwd_injected"].decode()
    assert "alice:x:2001:2001::/scratch/case:/opt/dockerjob/shells/bash" in told


def test_an_unknown_application_names_the_known_ones(config: Config) -> None:
    with pytest.raises(RequestError, match="nearest of 1: openfoam:1912"):
        choose_application(config, "nosuch:1")


def test_more_hosts_than_addresses_is_refused() -> None:
    with pytest.raises(ConfigError, match="shorter prefix"):
        JobNetwork("10.0.0.0/30", 1).address(2)


@pytest.mark.parametrize("environment", [{}, {"SUDO_UID": "alice"}, {"SUDO_UID": "-1"}, {"SUDO_UID": "0"}])
def test_no_caller_no_job(environment: dict[str, str]) -> None:
    with pytest.raises(PolicyError):
        caller(environment, 1000)


def test_unknown_and_system_accounts_are_refused() -> None:
    with pytest.raises(PolicyError, match="no account"):
        caller({"SUDO_UID": "3999999999"}, 1000)
    daemon = pwd.getpwnam("daemon")
    with pytest.raises(PolicyError, match="system account"):
        caller({"SUDO_UID": str(daemon.pw_uid)}, 1000)
    # Of Debian's system accounts, the one with a program for a shell.
    sync = str(pwd.getpwnam("sync").pw_uid)
    assert caller({"SUDO_UID": sync, "USER": "root"}, 1).name == "sync"
    assert os.getuid() not in caller({"SUDO_UID": sync}, 1).groups


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Make NSS know one account of these properties; returns what sudo would set."""

    def make(gid: int = 2001, shell: str = "/bin/bash", groups: tuple[int, ...] = ()) -> dict[str, str]:
        entry = pwd.struct_passwd(("mallory", "x", 2003, gid, "", "/home/mallory", shell))
        monkeypatch.setattr(pwd, "getpwuid", lambda _uid: entry)
        monkeypatch.setattr(os, "getgrouplist", lambda _name, _gid: [gid, *groups])
        return {"SUDO_UID": "2003"}

    return make


def test_the_system_s_groups_stay_outside(account: Callable[..., dict[str, str]]) -> None:
    """root, disk, shadow and docker are other groups in an image, or on another host."""
    environment = account(gid=100, groups=(0, 6, 42, 999, 1000, 5000))
    assert caller(environment, 1000).groups == (100, 1000, 5000)
    assert caller(environment, 1000, 500).groups == (100, 999, 1000, 5000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gid": 0}, "primary group of mallory is root's"),
        ({"shell": "/usr/sbin/nologin"}, "is closed: its shell is /usr/sbin/nologin"),
        ({"shell": "/bin/false"}, "is closed"),
    ],
)
def test_accounts_nobody_may_work_with_are_refused(
    account: Callable[..., dict[str, str]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        caller(account(**changes), 1000)


def test_limits_follow_the_slots_of_each_host(config: Config) -> None:
    container = config.container.model_copy(
        update={
            "memory_per_slot": 1 << 30,
            "swap_per_slot": 1 << 20,
            "cpus_per_slot": 1.5,
            "apparmor_profile": "site",
        }
    )
    plan = plan_of(config.model_copy(update={"container": container}))
    limits = [spec["limits"] for spec in plan.host_specs().values()]
    assert [(each["memory"], each["cpus"]) for each in limits] == [(2 << 30, 3.0), (1 << 30, 1.5)]
    assert [each["swap"] for each in limits] == [2 << 20, 1 << 20]
    assert {(each["pids"], each["tmp_size"]) for each in limits} == {(4096, 1 << 30)}
    assert {spec["apparmor_profile"] for spec in plan.host_specs().values()} == {"site"}
    json.dumps(limits)


def test_without_settings_a_slot_is_a_cpu_and_mpi_finds_its_limits(specs: dict[str, dict[str, Any]]) -> None:
    limits = specs["node1"]["limits"]
    assert (limits["memory"], limits["swap"], limits["cpus"], limits["cpuset"]) == (None, 0, 2.0, None)
    hard = {limit["name"]: limit["hard"] for limit in limits["ulimits"]}
    assert hard == {"memlock": -1, "stack": -1, "nofile": 65536}


def test_devices_are_those_of_the_application_and_what_the_batch_system_permits_is_asked_on_the_host(
    config: Config,
) -> None:
    devices = (
        Device(path="/dev/infiniband"),
        Device(path="/dev/nvidia[0-9]*", permit="batch", applications=("openfoam:*",)),
        Device(path="/dev/x", applications=("other:*",)),
    )
    gpus = Gpus(names=("nvidia.com/gpu=0",), applications=("other:*",))
    container = config.container.model_copy(update={"devices": devices, "gpus": gpus})
    spec = plan_of(config.model_copy(update={"container": container})).host_specs()["node2"]
    assert [(rule["path"], rule["permit"]) for rule in spec["devices"]] == [
        ("/dev/infiniband", "always"),
        ("/dev/nvidia[0-9]*", "batch"),
    ]
    assert spec["gpus"] is None
    assert spec["device_cgroups"] == spec["limits"]["cpuset_of"] == ["lsf/*/job.7[[]3].*"]
