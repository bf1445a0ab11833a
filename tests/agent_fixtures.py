# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Job containers without a cluster: real images, dockerd and etcd, and a Linux bridge as the network.

What the broker and the hosts do for a job is done here by hand, so that the agent can be
tested alone: the job's files, its containers as the user, a veth each, the relay's socket.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dockerjob_agent.ssh import ssh_config
from dockerjob_core import names
from dockerjob_core.kvs import Kvs
from etcd_fixtures import EtcdServer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "images"))

from builder import STATE, Docker, private_dockerd  # noqa: E402  # the path is set above

UID = 4711
READ_ONLY = ("passwd", "/etc/passwd"), ("group", "/etc/group"), ("ssh_config", "/etc/ssh/ssh_config")


@dataclass
class JobContainers:
    """One job's containers; :meth:`start` them, then look at what they do."""

    docker: Docker
    server: EtcdServer
    job_id: str
    directory: Path
    switch: str
    count: int = 2
    image: str = "mpihello:1"
    slots: int = 2
    spec: dict[str, object] = field(default_factory=dict)
    docker_options: tuple[str, ...] = ()
    portable: Path | None = None
    """The portable infrastructure, for an image that has none."""
    lease: int = 0

    @property
    def nodes(self) -> list[str]:
        return [names.node_name(self.job_id, index) for index in range(self.count)]

    @property
    def jobdir(self) -> Path:
        return self.directory / "jobdir"

    def node_directory(self, index: int) -> Path:
        return self.directory / f"rw{index}"

    def prepare(self, command: str, ttl: int = 60) -> None:
        """Do what the broker does before the first container: lease, FINISH, identity, files."""
        self.jobdir.mkdir(exist_ok=True)
        os.chown(self.jobdir, UID, UID)
        with Kvs.connect(self.server.endpoint()) as kvs:
            kvs.identities.add(self.job_id)
            self.lease = kvs.lease_grant(ttl)
            kvs.put(names.finish_key(self.job_id), "FALSE", lease=self.lease)
        for index in range(self.count):
            self._write_files(index, command)

    def start(self, *indices: int) -> None:
        """Start the given nodes, or all; return once each has its interface."""
        chosen = indices or range(self.count)
        starting = [(index, self._docker_run(index)) for index in chosen]
        for index, process in starting:
            _, problem = process.communicate(timeout=60)
            assert process.returncode == 0, problem
            self._plug(index)

    def _write_files(self, index: int, command: str) -> None:
        read_only, writable = self.directory / f"ro{index}", self.node_directory(index)
        read_only.mkdir()
        writable.mkdir()
        spec = {
            "job_id": self.job_id,
            "node_index": index,
            "nodes": [
                {"name": name, "host": f"host{n}", "slots": self.slots, "address": f"10.128.0.{n + 1}"}
                for n, name in enumerate(self.nodes)
            ],
            "interface": "eth1",
            "prefix_length": 24,
            "jobdir": str(self.jobdir),
            "hostfile": "system/machines",
            "shell": "/bin/bash",
            "lease_id": self.lease,
            "lifetime": None,
            "discovery_timeout": 30,
            "ssh_port": 2222,
            "etcd": {"socket": str(self.directory / "etcd.sock"), "server_name": "etcd"},
            **self.spec,
        }
        (read_only / "spec.json").write_text(json.dumps(spec))
        (read_only / "command").write_text(command)
        (read_only / "environment.json").write_text(json.dumps({"GREETING": 'say "hello"', "USER": "alice"}))
        shell = names.login_shell("/bin/bash") if self.portable else "/bin/bash"
        (read_only / "passwd").write_text(
            f"root:x:0:0::/root:/bin/sh\nalice:x:{UID}:{UID}::{self.jobdir}:{shell}\n"
        )
        (read_only / "group").write_text(f"root:x:0:\nalice:x:{UID}:\n")
        (read_only / "ssh_config").write_text(ssh_config())
        cert, key = self.server.authority.issue(names.etcd_user(self.job_id))
        for source, name in ((self.server.authority.ca, "ca.pem"), (cert, "cert.pem"), (key, "key.pem")):
            shutil.copyfile(source, read_only / name)
        (read_only / "key.pem").chmod(0o400)
        (writable / "hosts").touch()
        for path in (read_only / "key.pem", writable, writable / "hosts"):
            os.chown(path, UID, UID)

    def _docker_run(self, index: int) -> subprocess.Popen[str]:
        read_only, writable = self.directory / f"ro{index}", self.node_directory(index)
        mounts = [
            f"{read_only}:{names.CONTAINER_READ_ONLY}:ro",
            f"{writable}:{names.CONTAINER_WRITABLE}",
            f"{writable}/hosts:/etc/hosts",
            f"{self.directory}/etcd.sock:{self.directory}/etcd.sock:ro",
            f"{self.jobdir}:{self.jobdir}",
            *(f"{read_only}/{name}:{target}:ro" for name, target in READ_ONLY),
            *([f"{self.portable}:{names.INFRA_TARGET}:ro"] if self.portable else []),
        ]
        argv = [
            *("/usr/bin/docker", "--host", self.docker.host, "run", "--detach", "--name", self.nodes[index]),
            *("--hostname", self.nodes[index], "--network", "none", "--user", f"{UID}:{UID}"),
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--workdir", "/"),
            *("--label", f"{names.LABEL_JOB}={self.job_id}", "--shm-size", "64m"),
            *(argument for mount in mounts for argument in ("--volume", mount)),
            *self.docker_options,
            *("--entrypoint", "/opt/dockerjob/bin/dockerjob-agent", self.image, "init"),
        ]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _plug(self, index: int) -> None:
        """Give the container its interface, as the hosts' port module does."""
        pid = self.docker.run("inspect", "--format", "{{.State.Pid}}", self.nodes[index]).strip()
        port = names.port_name(self.nodes[index])
        batch = [
            f"link add name {port} netns {self.switch} type veth peer name eth1 netns /proc/{pid}/ns/net"
        ]
        ip("-batch", "-", stdin="\n".join(batch))
        ip("-n", self.switch, "-batch", "-", stdin=f"link set {port} master br0 up")
        inside = f"address add 10.128.0.{index + 1}/24 dev eth1\nlink set eth1 up\nlink set lo up"
        run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"], stdin=inside)

    # -- what tests ask ------------------------------------------------------------------

    def log(self, index: int) -> str:
        path = self.node_directory(index) / "agent.log"
        return path.read_text() if path.exists() else ""

    def output(self) -> str:
        """The master's stdout and stderr as docker has them."""
        done = run(["/usr/bin/docker", "--host", self.docker.host, "logs", self.nodes[0]])
        return done.stdout + done.stderr

    def wait_for_log(self, index: int, text: str, timeout: float = 20) -> str:
        """Wait until *text* is in a node's log and return the log."""
        deadline = time.monotonic() + timeout
        while text not in self.log(index):
            assert time.monotonic() < deadline, f"no {text!r} in the log of node {index}:\n{self.log(index)}"
            time.sleep(0.05)
        return self.log(index)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        """Wait until *condition* holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it did not come to this in time"
            time.sleep(0.05)

    def state_of_command(self) -> str:
        """Process states of COMMAND's processes on the master."""
        listed = self.docker.run("top", self.nodes[0], "-eo", "pid,stat,args").splitlines()
        return "".join(line.split()[1] for line in listed if "/bin/bash -c" in line)

    def wait_for_end(self, index: int, timeout: float = 30) -> int:
        """Wait until a node's container has ended and return its exit status."""
        try:
            return int(self.docker.run("wait", self.nodes[index], timeout=timeout).strip())
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.nodes[index]} still runs:\n{self.log(index)}") from None

    def story(self) -> str:
        """All that is known of the job, for a failing test's report."""
        files = [
            f"--- {path.parent.name}/{path.name}\n{path.read_text(errors='replace')}"
            for index in range(self.count)
            for path in sorted(self.node_directory(index).glob("*"))
            if path.suffix in {".log", ".out"} or path.name == "agent_error"
        ]
        return "\n".join(["--- output", self.output(), *files])

    def finish_value(self) -> str | None:
        with Kvs.connect(self.server.endpoint()) as kvs:
            found = kvs.get(names.finish_key(self.job_id))
        return found.value.decode() if found else None

    def signal(self, name: str) -> None:
        self.docker.run("kill", "--signal", name, self.nodes[0])

    def revoke(self) -> None:
        """End the lease, as the wall clock or the teardown does."""
        with Kvs.connect(self.server.endpoint()) as kvs:
            kvs.lease_revoke(self.lease)

    def remove(self) -> None:
        """Take everything down again."""
        with suppress(Exception):
            self.docker.run("rm", "--force", *self.nodes, timeout=60)
        with Kvs.connect(self.server.endpoint()) as kvs:
            if self.lease:
                kvs.lease_revoke(self.lease)
            kvs.identities.remove(self.job_id)


def run(argv: list[str], stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program that must succeed."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done


def ip(*arguments: str, stdin: str = "") -> str:
    return run(["ip", *arguments], stdin=stdin).stdout


@contextmanager
def relay(path: Path, server: EtcdServer) -> Iterator[subprocess.Popen[bytes]]:
    """Relay the unix socket *path* to etcd, as HAProxy does on a host."""
    configuration = path.with_suffix(".cfg")
    configuration.write_text(
        "global\n  maxconn 200\ndefaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n"
        f"  timeout server 1h\nlisten etcd\n  bind unix@{path} mode 666\n  server etcd {server.target}\n"
    )
    with subprocess.Popen(["haproxy", "-db", "-q", "-f", str(configuration)]) as process:
        try:
            while not path.exists():
                assert process.poll() is None, "haproxy did not start"
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def job_images() -> dict[str, dict[str, str]]:
    """The images, built if need be; ``images.json`` as a dictionary."""
    run([sys.executable, str(ROOT / "images/build.py")], timeout=1800)
    record: dict[str, dict[str, str]] = json.loads((STATE / "out/images.json").read_text())
    return record


@pytest.fixture(scope="session")
def image_docker(job_images: dict[str, dict[str, str]]) -> Iterator[Docker]:
    """A private dockerd that has the images."""
    with private_dockerd(STATE / "docker") as docker:
        for name, image in job_images.items():
            if docker.image_id(name) != image["id"]:
                docker.run("load", "--input", image["archive"])
        yield docker


@pytest.fixture(scope="session")
def portable(job_images: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The portable infrastructure, as the role job_infra has it on a host."""
    record = json.loads((STATE / "out/infra.json").read_text())["portable"]
    directory = tmp_path_factory.mktemp("infra")
    # Pytest's own directories are closed to others, and containers run as somebody else.
    for path in (directory, directory.parent, directory.parent.parent):
        path.chmod(0o755)
    run(["tar", "--extract", "--gzip", "--file", record["archive"], "--directory", str(directory)])
    return directory


@pytest.fixture(scope="session")
def switch() -> Iterator[str]:
    """A bridge in a network namespace of its own: no firewall of the machine sees its frames."""
    name = f"agent-test-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "-batch", "-", stdin="link add br0 type bridge\nlink set br0 up")
        yield name
    finally:
        ip("netns", "delete", name)


@pytest.fixture
def job(image_docker: Docker, switch: str, etcd: EtcdServer, job_id: str) -> Iterator[JobContainers]:
    """A job of two nodes that nothing was done for yet."""
    directory = Path(tempfile.mkdtemp(prefix="dj-", dir="/run"))
    directory.chmod(0o755)
    containers = JobContainers(image_docker, etcd, job_id, directory, switch)
    try:
        with relay(directory / "etcd.sock", etcd):
            yield containers
            if containers.lease:
                # Shown by pytest only when the test failed.
                print(containers.story())
    finally:
        containers.remove()
        shutil.rmtree(directory)
