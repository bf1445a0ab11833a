# SPDX-License-Identifier: GPL-3.0-or-later
"""What each host is told; who the user is; what is refused before anything is created."""

from __future__ import annotations

import base64
import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from dockerjob.broker.certificates import ClientCertificate
from dockerjob.broker.identity import Identity, caller
from dockerjob.broker.plan import JobPlan, check_placement, choose_application
from dockerjob.config import Config, load_config
from dockerjob.request import JobRequest
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import ConfigError, PolicyError, RequestError
from dockerjob_core.ipam import JobNetwork

ALICE = Identity("alice", 2001, 2001, (2001, 100), "/home/alice", "/bin/bash")
HOSTILE = b"{{ lookup('pipe','id') }} $(id) \"'\n;"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "ca.pem").write_text("CA")
    path = tmp_path / "config.yml"
    path.write_text(
        f"""
hosts: {{node1: {{address: 192.0.2.1}}, node2: {{address: 192.0.2.2}}}}
ansible: {{private_key: /k, known_hosts: /h}}
etcd: {{ca: {tmp_path}/ca.pem, cert: /c, key: /k}}
job_ca: {{cert: /c, key: /k}}
applications: {{"openfoam:1912": {{image: "sha256:0", hostfile: system/machines}}}}
mounts: [{{path: /scratch}}]
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


@pytest.fixture
def specs(config: Config) -> dict[str, dict[str, Any]]:
    plan = JobPlan(
        config,
        ALICE,
        request(),
        choose_application(config, "openfoam:1912"),
        JobNetwork("10.128.4.0/24", 104),
        17,
        1.0,
        ClientCertificate(b"CERT", b"KEY"),
    )
    return plan.host_specs()


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


def test_an_unknown_application_names_the_known_ones(config: Config) -> None:
    with pytest.raises(RequestError, match="there is: openfoam:1912"):
        choose_application(config, "nosuch:1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jobdir": "/scratchy/x"}, "no file system that the containers see"),
        ({"allocation": Allocation("lsf", 7, 0, (HostSlots("evil", 1),))}, "evil is not in this cluster"),
    ],
)
def test_placement_is_checked(config: Config, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_placement(config, request(**changes))


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
    assert caller({"SUDO_UID": str(daemon.pw_uid), "USER": "root"}, 1).name == "daemon"
    assert os.getuid() not in caller({"SUDO_UID": str(daemon.pw_uid)}, 1).groups
