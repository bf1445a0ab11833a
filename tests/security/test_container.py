# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of the user's own container, which may run any program: see intruder.py."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from dockerjob_lab.client import Cluster

from . import intruder
from .attack import script, write_as

pytestmark = pytest.mark.lab

PROBE = "/scratch/alice/intruder.py"
DEVICE = "/scratch/alice/fuse"
DENIED = {"EPERM", "EACCES", "EROFS", "ENOENT", "ENOTDIR", "ENETUNREACH", "ECONNREFUSED", "ENOSYS"}
"""Answers to an attempt: not allowed, not there, no way."""


def address_of(cluster: Cluster, host: str) -> str:
    """Address of a host in the management network."""
    text = cluster.run(host, "ip", "-4", "-o", "address", "show", "eth0")
    return str(re.findall(r"inet ([\d.]+)", text)[0])


@pytest.fixture(scope="module")
def came(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """What one job of alice's has tried and found, with a secret of bob's beside it."""
    private = "/scratch/bob/private"
    cluster.run(
        "node1",
        "sh",
        "-c",
        f"install -d -o bob -m 0700 {private}; echo hidden >{private}/secret; echo x >/dev/shm/of-the-host;"
        f"mknod -m 666 {DEVICE} c 10 229",
    )
    write_as(cluster, "alice", PROBE, inspect.getsource(intruder))
    world = {
        "bob": cluster.run("node1", "id", "-u", "bob").strip(),
        "management": address_of(cluster, "node1"),
        "head": address_of(cluster, "head"),
    }
    words = " ".join(f"{name}={value}" for name, value in world.items())
    try:
        done = cluster.submit(script(f"/opt/dockerjob/bin/python {PROBE} {words}".encode()), hosts="node1")
        assert done.status == 0, done
        yield json.loads(done.out)
    finally:
        cluster.run("node1", "rm", "-rf", private, PROBE, DEVICE, "/dev/shm/of-the-host")
    assert not cluster.path("node1", "/home/bob/spoofed").exists()


@pytest.mark.parametrize("attempt", intruder.ATTEMPTS)
def test_an_attempt_is_denied(came: dict[str, Any], attempt: str) -> None:
    assert came["attempts"][attempt] in DENIED


def test_every_process_is_the_users_and_no_more(cluster: Cluster, came: dict[str, Any]) -> None:
    facts = came["facts"]
    uid, gid = (cluster.run("node1", "id", option, "alice").strip() for option in ("-u", "-g"))
    assert facts["Uid"] == [" ".join([uid] * 4)]
    assert facts["Gid"] == [" ".join([gid] * 4)]
    groups = cluster.run("node1", "id", "-G", "alice").split()
    assert facts["groups"] == sorted(int(group) for group in groups)
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert facts[capabilities] == ["0" * 16]
    assert facts["NoNewPrivs"] == ["1"]
    assert facts["Seccomp"] == ["2"]
    assert facts["key"] == "0o400"


def test_there_is_nothing_of_the_host_in_it(came: dict[str, Any]) -> None:
    facts = came["facts"]
    assert facts["processes"] < 30
    assert "of-the-host" not in facts["shared memory"]
    assert set(facts["devices"]) <= {
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero", "infiniband",
    }  # fmt: skip
    # The kernel puts its tunnels into every network namespace; they are down.
    assert set(facts["interfaces"]) <= {
        "lo",
        "eth1",
        "tunl0",
        "sit0",
        "ip6tnl0",
        "gre0",
        "gretap0",
        "erspan0",
    }
    assert facts["routes"] == 1
    assert set(facts["ipv6"]) <= {"lo"}


def test_what_was_tried_is_what_is_listed() -> None:
    """An attempt that is only written down twice, under one name, would be lost."""
    [table] = [
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(intruder)))
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ATTEMPTS"
    ]
    assert isinstance(table, ast.Dict)
    assert len(table.keys) == len(intruder.ATTEMPTS)
