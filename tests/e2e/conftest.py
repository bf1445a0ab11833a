# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs in a lab that is a set-up cluster; tests/run.sh and ``make e2e`` bring it up."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerjob_core.kvs import Endpoint, Kvs

ROOT = Path(__file__).parents[2]
LAB_NAME = os.environ.get("LAB_NAME", "test")
WRAPPER = "/share/bin/hpc_submit_dockerjob"
CONFIG = "/etc/dockerjob/config.yml"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The lab, as an admin and as a batch system reach it."""

    pids: dict[str, int]

    @property
    def compute(self) -> list[str]:
        return sorted(host for host in self.pids if host.startswith("node"))

    def path(self, host: str, path: str) -> Path:
        """A path of a host, as seen from outside."""
        return Path(f"/proc/{self.pids[host]}/root{path}")

    def run(self, host: str, *argv: str, check: bool = True) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self.pids[host]), "-a", *argv],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(f"{host}: {argv}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, script: str, user: str = "alice", hosts: str = "node1,node2") -> subprocess.Popen[str]:
        """Submit a script's text; its output comes through pipes."""
        name = f"/var/tmp/dockerjob-e2e-{os.getpid()}-{time.monotonic_ns()}.bsub"
        Path(name).write_text(script)
        argv = [sys.executable, str(ROOT / "lab/lab.py"), "--name", LAB_NAME, "submit", name]
        try:
            return subprocess.Popen(
                [*argv, "--user", user, "--hosts", hosts],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        finally:
            # lab.py reads the script as its first act.
            time.sleep(0.5)
            Path(name).unlink()

    def submit(self, script: str, user: str = "alice", hosts: str = "node1,node2") -> Outcome:
        process = self.start(script, user, hosts)
        try:
            out, err = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Outcome(process.returncode, out, err)

    def kvs(self) -> Kvs:
        """The broker's own view of etcd."""
        config = yaml.safe_load(self.path("node1", CONFIG).read_text())["etcd"]
        return Kvs.connect(
            Endpoint(
                target=f"unix:{self.path('node1', config.get('socket', '/run/dockerjob/relay/etcd.sock'))}",
                ca=str(self.path("node1", config["ca"])),
                cert=str(self.path("node1", config["cert"])),
                key=str(self.path("node1", config["key"])),
                server_name=config.get("server_name", "etcd"),
            )
        )

    def state(self) -> dict[str, Any]:
        """Everything a job could leave behind."""
        found: dict[str, Any] = {}
        for host in self.compute:
            found[host] = {
                "containers": self.run(host, "docker", "ps", "-aq").split(),
                "ports": self.run(host, "ovs-vsctl", "list-ports", "br-job").split(),
                "links": sorted(
                    line.split(":")[1].strip() for line in self.run(host, "ip", "-o", "link").splitlines()
                ),
                "jobs": self.run(host, "sh", "-c", "ls -A /run/dockerjob/jobs 2>/dev/null; true").split(),
                "runs": self.run(host, "sh", "-c", "ls -A /var/lib/dockerjob/run 2>/dev/null; true").split(),
                "processes": self.run(
                    host, "sh", "-c", "ps -o pid=,args= -u alice,bob,dockerjob 2>/dev/null; true"
                ).splitlines(),
                "mounts": len(self.path(host, "/proc/self/mountinfo").read_text().splitlines()),
            }
        with self.kvs() as kvs:
            found["keys"] = [item.key for item in kvs.get_prefix("/").items]
            found["identities"] = kvs.list_identities()
        return found


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a submitted script ended."""

    status: int
    out: str
    err: str


def job(
    command: str = "true",
    *,
    application: str = "mpihello:1",
    slots: int = 4,
    ptile: int = 2,
    jobdir: str = "/scratch/$USER",
    extra: str = "",
) -> str:
    """A submit script; *command* stands between single quotes."""
    return f"""#!/bin/bash
#BSUB -J e2e
#BSUB -n {slots}
#BSUB -R "span[ptile={ptile}]"
export APPLICATION={application}
export COMMAND='{command}'
export JOBDIR={jobdir}
{extra}
{WRAPPER}
"""


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    done = subprocess.run(
        [sys.executable, str(ROOT / "lab/lab.py"), "--name", LAB_NAME, "status", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"lab {LAB_NAME!r} is not up; run LAB_NAME={LAB_NAME} lab/ensure_cluster.sh")
    return Cluster({host["name"]: host["pid"] for host in json.loads(done.stdout)["hosts"]})


@pytest.fixture
def nothing_left(cluster: Cluster) -> Iterator[None]:
    """Hosts and etcd hold after the test what they held before it."""
    before = cluster.state()
    yield
    for _ in range(20):
        after = cluster.state()
        if after == before:
            return
        time.sleep(0.5)
    assert after == before


@pytest.fixture
def site_config(cluster: Cluster) -> Iterator[Any]:
    """Change keys of the first host's config.yml for one test."""
    path = cluster.path("node1", CONFIG)
    original = path.read_text()

    def change(section: str, **keys: Any) -> None:
        document = yaml.safe_load(path.read_text())
        document.setdefault(section, {}).update(keys)
        path.write_text(yaml.safe_dump(document))

    yield change
    path.write_text(original)


@contextlib.contextmanager
def service_stopped(cluster: Cluster, host: str, service: str) -> Iterator[None]:
    """Stop a service of a host, and start it again at the end."""
    cluster.run(host, "service", service, "stop", check=False)
    try:
        yield
    finally:
        cluster.run(host, "service", service, "start")
