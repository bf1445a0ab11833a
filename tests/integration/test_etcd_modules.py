# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The etcd modules against a real etcd: in this process, and a few times through Ansible."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import (  # type: ignore[import-untyped]  # ansible-core has no types
    patch_module_args,
)
from dockerjob_core import ipam, jobtree, names
from dockerjob_core.kvs import Endpoint, Kvs
from etcd_fixtures import EtcdServer, running_etcd

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PACKAGE = "ansible_collections.hpc.dockerjob.plugins.modules"

Module = Callable[..., dict[str, Any]]


def connection(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "target": endpoint.target,
        "ca_cert": endpoint.ca,
        "client_cert": endpoint.cert,
        "client_key": endpoint.key,
    }


@pytest.fixture
def module(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Module:
    """Run a module of the collection in this process; ``_server`` says which etcd, if not ``etcd``."""
    monkeypatch.syspath_prepend(str(ROOT / ".build"))

    def run(name: str, _check: bool = False, _server: EtcdServer = etcd, **options: Any) -> dict[str, Any]:
        arguments = {**connection(_server.endpoint()), **options, "_ansible_check_mode": _check}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            importlib.import_module(f"{PACKAGE}.{name}").main()
        answer = json.loads(capsys.readouterr().out)
        assert isinstance(answer, dict)
        return answer

    return run


@pytest.fixture
def prefix(kvs: Kvs, job_id: str) -> Iterator[str]:
    """The job's prefix, empty again at the end of the test."""
    prefix = names.job_prefix(job_id)
    yield prefix
    kvs.delete_prefix(prefix)


# -- etcd_key ---------------------------------------------------------------------------


def test_key_check_then_set_then_nothing_then_delete(module: Module, kvs: Kvs, prefix: str) -> None:
    key = prefix + "a"
    lease = kvs.lease_grant(60)
    want = {"key": key, "value": "{{ not a template }}", "lease": lease}

    predicted = module("etcd_key", _check=True, **want)
    assert kvs.get(key) is None
    done = module("etcd_key", **want)
    assert predicted["changed"]
    assert done["changed"]
    assert predicted["diff"] == done["diff"]
    assert done["diff"] == {"before": {}, "after": {key: {"value": "{{ not a template }}", "lease": lease}}}
    found = kvs.get(key)
    assert found is not None
    assert (found.value, found.lease) == (b"{{ not a template }}", lease)
    assert not module("etcd_key", **want)["changed"]

    assert module("etcd_key", key=key, value="{{ not a template }}")["changed"]  # off the lease
    assert module("etcd_key", _check=True, key=key, state="absent")["changed"]
    assert kvs.get(key) is not None
    assert module("etcd_key", key=key, state="absent")["changed"]
    assert not module("etcd_key", key=key, state="absent")["changed"]
    kvs.lease_revoke(lease)


def test_key_wants_a_value(module: Module) -> None:
    answer = module("etcd_key", key="/a")
    assert answer["failed"]
    assert "state is present but all of the following are missing: value" in answer["msg"]


def test_errors_of_etcd_are_one_line(module: Module, etcd: EtcdServer) -> None:
    answer = module("etcd_key", key="/a", value="b", **connection(etcd.endpoint("stranger")))
    assert answer["failed"]
    assert answer["msg"].startswith(f"etcd at {etcd.target}: get /a: etcdserver: ")


# -- etcd_key_info ----------------------------------------------------------------------


def test_key_info_reads_a_key_and_a_prefix(module: Module, kvs: Kvs, prefix: str) -> None:
    kvs.put(prefix + "a", "1")
    kvs.put(prefix + "ab", b"\xff")
    answer = module("etcd_key_info", key=prefix + "a")
    assert not answer["changed"]
    assert [(entry["key"], entry["value"], entry["lease"]) for entry in answer["entries"]] == [
        (prefix + "a", "1", 0)
    ]
    assert [e["value"] for e in module("etcd_key_info", prefix=prefix)["entries"]] == ["1", "\\xff"]
    assert module("etcd_key_info", key=prefix + "none")["entries"] == []


@pytest.mark.parametrize(
    ("wait", "change", "value"),
    [
        ({"wait_for": "different", "wait_value": "FALSE"}, "0", ["0"]),
        ({"wait_for": "equal", "wait_value": "3"}, "3", ["3"]),
        ({"wait_for": "absent"}, None, []),
    ],
)
def test_key_info_waits_by_watching(
    module: Module, kvs: Kvs, prefix: str, wait: dict[str, str], change: str | None, value: list[str]
) -> None:
    key = prefix + "FINISH"
    kvs.put(key, "FALSE")

    def act() -> None:
        kvs.put(key + "x", "another key")
        if change is None:
            kvs.delete(key)
        else:
            kvs.put(key, change)

    timer = threading.Timer(0.3, act)
    timer.start()
    started = time.monotonic()
    answer = module("etcd_key_info", key=key, wait_timeout=20, **wait)
    assert [entry["value"] for entry in answer["entries"]] == value
    assert 0.2 < time.monotonic() - started < 5
    timer.join()


def test_key_info_waits_through_a_restart_of_etcd(module: Module, tmp_path: Path) -> None:
    with running_etcd(tmp_path / "etcd") as server, Kvs.connect(server.endpoint()) as own:

        def act() -> None:
            server.stop()
            server.start()
            own.put("/1/FINISH", "0")

        timer = threading.Timer(0.3, act)
        timer.start()
        answer = module("etcd_key_info", _server=server, key="/1/FINISH", wait_for="present", timeout=20)
        assert [entry["value"] for entry in answer["entries"]] == ["0"]
        timer.join()


def test_key_info_gives_up_with_what_it_saw(module: Module, kvs: Kvs, prefix: str) -> None:
    answer = module("etcd_key_info", key=prefix + "a", wait_for="present", wait_timeout=0.1)
    assert answer["msg"] == f"{prefix}a did not become what was waited for in 0.1 s: there is no such key"
    kvs.put(prefix + "a", "FALSE")
    answer = module("etcd_key_info", key=prefix + "a", wait_for="equal", wait_value="0", wait_timeout=0.1)
    assert answer["msg"].endswith("in 0.1 s: its value is b'FALSE'")


# -- etcd_job_tree ----------------------------------------------------------------------


def test_job_tree_is_made_once_and_removed(module: Module, kvs: Kvs, job_id: str) -> None:
    want = {"job_id": job_id, "node_count": 2, "ttl": 60, "record": {"hosts": ["n1", "n2"]}}
    predicted = module("etcd_job_tree", _check=True, **want)
    assert jobtree.read_job_tree(kvs, job_id) is None
    done = module("etcd_job_tree", **want)
    assert predicted["changed"]
    assert done["changed"]
    assert predicted["diff"] == done["diff"]
    assert "lease_id" not in predicted
    again = module("etcd_job_tree", **want)
    assert not again["changed"]
    assert again["lease_id"] == done["lease_id"]
    assert done["user"] in kvs.auth.users()

    kvs.put(names.finish_key(job_id), "0", done["lease_id"])  # the job has ended and is requeued
    requeued = module("etcd_job_tree", **want)
    assert requeued["changed"]
    assert requeued["lease_id"] != done["lease_id"]

    assert module("etcd_job_tree", _check=True, job_id=job_id, state="absent")["changed"]
    assert jobtree.read_job_tree(kvs, job_id) is not None
    assert module("etcd_job_tree", job_id=job_id, state="absent")["changed"]
    assert not module("etcd_job_tree", job_id=job_id, state="absent")["changed"]
    assert kvs.get_prefix(names.job_prefix(job_id)).items == ()


def test_job_tree_removes_a_half_made_one(module: Module, kvs: Kvs, job_id: str) -> None:
    kvs.identities.add(job_id)
    assert module("etcd_job_tree", _check=True, job_id=job_id, state="absent")["changed"]
    assert module("etcd_job_tree", job_id=job_id, state="absent")["changed"]
    assert not module("etcd_job_tree", job_id=job_id, state="absent")["changed"]


def test_job_tree_wants_a_job_id(module: Module) -> None:
    assert "not a job id: '../1'" in module("etcd_job_tree", job_id="../1", state="absent")["msg"]


# -- etcd_network -----------------------------------------------------------------------


def test_network_is_reserved_once_and_released(module: Module, kvs: Kvs, job_id: str) -> None:
    want = {"job_id": job_id, "supernet": "10.128.0.0/23", "prefix_length": 24, "vlans": "100-101"}
    predicted = module("etcd_network", _check=True, **want)
    assert predicted["changed"]
    assert "network" not in predicted
    assert predicted["diff"]["after"] == {"subnet": "one of 10.128.0.0/23", "vlan": "one of 100-101"}
    assert ipam.find(kvs, job_id) is None
    done = module("etcd_network", **want)
    assert done["changed"]
    assert done["network"] in [
        {"subnet": subnet, "prefix_length": 24, "vlan": vlan}
        for subnet in ("10.128.0.0/24", "10.128.1.0/24")
        for vlan in (100, 101)
    ]
    again = module("etcd_network", **want)
    assert (again["changed"], again["network"]) == (False, done["network"])
    gone = module("etcd_network", job_id=job_id, state="absent")
    assert (gone["changed"], gone["network"]) == (True, done["network"])
    assert not module("etcd_network", job_id=job_id, state="absent")["changed"]


def test_network_pool_is_exhausted(module: Module, kvs: Kvs) -> None:
    pool = {"supernet": "10.128.0.0/24", "vlans": "100-3999"}
    module("etcd_network", job_id="1", **pool)
    answer = module("etcd_network", job_id="2", **pool)
    assert answer["failed"]
    assert answer["msg"].startswith("no free job network: all /24 subnets in 10.128.0.0/24 are reserved")
    ipam.release(kvs, "1")


# -- etcd_auth --------------------------------------------------------------------------

ADMINISTRATOR = [{"name": "root", "roles": ["root"]}]


def test_auth_is_turned_on_and_off(module: Module, open_etcd: EtcdServer) -> None:
    want = {"users": ADMINISTRATOR, "enabled": True}
    predicted = module("etcd_auth", _check=True, _server=open_etcd, **want)
    assert not module("etcd_auth", _server=open_etcd)["enabled"]
    done = module("etcd_auth", _server=open_etcd, **want)
    assert predicted["diff"] == done["diff"]
    assert done["diff"] == {
        "before": {"enabled": False, "users": {}, "roles": {}},
        "after": {"enabled": True, "users": {"root": ["root"]}, "roles": {}},
    }
    assert not module("etcd_auth", _server=open_etcd, **want)["changed"]
    off = module("etcd_auth", _server=open_etcd, users=ADMINISTRATOR, enabled=False, state="absent")
    assert off["changed"]
    assert off["diff"]["after"] == {"enabled": False, "users": {}, "roles": {}}
    with Kvs.connect(open_etcd.endpoint()) as kvs:
        assert kvs.auth.users() == []


def test_auth_needs_root_before_it_is_turned_on(module: Module, open_etcd: EtcdServer) -> None:
    assert "root user does not exist" in module("etcd_auth", _server=open_etcd, enabled=True)["msg"]


def test_auth_gives_exactly_what_is_listed(module: Module, etcd: EtcdServer, kvs: Kvs) -> None:
    role = {"name": "watcher", "permissions": [{"prefix": "/dockerjob/", "access": "read"}, {"key": "/a"}]}
    user = {"name": "watcher", "roles": ["watcher"]}
    done = module("etcd_auth", roles=[role], users=[user])
    assert done["diff"]["after"]["roles"] == {"watcher": ["read /dockerjob/*", "readwrite /a"]}
    assert not module("etcd_auth", roles=[role], users=[user])["changed"]
    with Kvs.connect(etcd.endpoint("watcher")) as watcher:
        watcher.get_prefix("/dockerjob/jobs/")
        watcher.put("/a", "1")
    kvs.delete("/a")
    less = {"name": "watcher", "permissions": [{"prefix": "/dockerjob/", "access": "readwrite"}]}
    assert module("etcd_auth", _check=True, roles=[less])["changed"]
    changed = module("etcd_auth", roles=[less])
    assert changed["diff"]["before"]["roles"] == {"watcher": ["read /dockerjob/*", "readwrite /a"]}
    assert not module("etcd_auth", roles=[less])["changed"]
    assert module("etcd_auth", users=[{"name": "watcher"}])["changed"]  # no roles any more
    assert module("etcd_auth", roles=[less], users=[user], state="absent")["changed"]
    assert not module("etcd_auth", roles=[less], users=[user], state="absent")["changed"]


def test_auth_refuses_to_list_the_role_root(module: Module) -> None:
    assert "root is built in" in module("etcd_auth", roles=[{"name": "root"}])["msg"]


# -- through Ansible, as on a host ------------------------------------------------------


def test_through_ansible_with_debians_python(etcd: EtcdServer, kvs: Kvs, job_id: str, tmp_path: Path) -> None:
    """One playbook: every module is packed, shipped and run by the system's Python as on a host."""
    options = connection(etcd.endpoint())
    tree = {**options, "job_id": job_id, "node_count": 1, "ttl": 60}
    key = {**options, "key": names.job_prefix(job_id) + "COMMAND", "value": "{{ command }}"}
    network = {**options, "job_id": job_id, "supernet": "10.128.0.0/16", "vlans": "100-3999"}
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {
            "ansible_python_interpreter": "/usr/bin/python3",
            "command": {"__ansible_unsafe": "echo {{ no_template }}"},
        },
        "tasks": [
            {"hpc.dockerjob.etcd_auth": {**options, "users": ADMINISTRATOR, "enabled": True}},
            {"hpc.dockerjob.etcd_network": network},
            {"hpc.dockerjob.etcd_job_tree": tree, "check_mode": True, "diff": True},
            {"hpc.dockerjob.etcd_job_tree": tree, "register": "tree"},
            {"hpc.dockerjob.etcd_key": {**key, "lease": "{{ tree.lease_id }}"}},
            {"hpc.dockerjob.etcd_key_info": {**options, "prefix": names.job_prefix(job_id)}},
        ],
    }
    playbook = tmp_path / "play.json"
    playbook.write_text(json.dumps([play]))
    try:
        result = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-c", "local", playbook],
            env=os.environ
            | {
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build"),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        tasks = json.loads(result.stdout[result.stdout.index("{") :])["plays"][0]["tasks"]
        answers = [task["hosts"]["localhost"] for task in tasks]
        assert [answer["changed"] for answer in answers] == [False, True, True, True, True, False]
        assert answers[2]["diff"]["after"] == {"FINISH": "FALSE", "node_count": 1, "record": {}}
        assert [(entry["key"], entry["value"], entry["lease"]) for entry in answers[5]["entries"]] == [
            (key["key"], "echo {{ no_template }}", answers[3]["lease_id"]),
            (names.finish_key(job_id), "FALSE", answers[3]["lease_id"]),
        ]
    finally:
        jobtree.remove_job_tree(kvs, job_id)
        ipam.release(kvs, job_id)
