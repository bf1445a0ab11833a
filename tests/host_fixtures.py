# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private host for tests: namespaces of its own with a real Open vSwitch and a real dockerd.

Its processes live in a PID namespace, so they all end with the first of them, and its
files on tmpfs or below a temporary directory, so nothing of it is left on the machine.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
ENTER = ("nsenter", "--mount", "--uts", "--ipc", "--net", "--pid")
IMAGE = "dockerjob-test:latest"

# /run and the daemons' state directories are empty and private; all else is the machine's.
SETUP = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
for directory in /run /etc/openvswitch /var/lib/openvswitch /var/log/openvswitch /etc/docker /etc/dockerjob; do
    mkdir -p $directory
    mount -t tmpfs -o mode=755 tmpfs $directory
done
ip link set lo up
ip link add eth1 type veth peer name fabric
ip link set fabric up
mkdir -p /run/openvswitch /run/dockerjob/relay /run/dockerjob/jobs
ovsdb-tool create /etc/openvswitch/conf.db
ovsdb-server /etc/openvswitch/conf.db --remote=punix:/run/openvswitch/db.sock --no-chdir \\
    --detach --pidfile --log-file=/dev/null -vconsole:off
ovs-vsctl --no-wait init
ovs-vswitchd --detach --no-chdir --pidfile --log-file="$STATE/vswitchd.log" -vconsole:off
echo "$CGROUP" >/etc/dockerjob/cgroup_parent
exec /usr/sbin/dockerd --iptables=false --bridge=none --cgroup-parent="$CGROUP" --host="$SOCKET" \\
    --data-root="$STATE/docker" --exec-opt=native.cgroupdriver=cgroupfs >"$STATE/dockerd.log" 2>&1
"""


CGROUPS = "find /sys/fs/cgroup{group} /sys/fs/cgroup/*{group} -mindepth 1 -type d"


@dataclass
class Host:
    """The private host: a way in, and what tests often ask it."""

    pid: int
    state: Path
    cgroup: str

    def inside(self, *argv: str) -> list[str]:
        """Build the command that runs *argv* on the host."""
        return [*ENTER, f"--target={self.pid}", *argv]

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program on the host."""
        done = subprocess.run(
            self.inside(*argv), check=False, capture_output=True, text=True, **{"timeout": 60, **options}
        )
        if check and done.returncode:
            raise AssertionError(f"{argv} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def module(
        self, name: str, arguments: dict[str, Any], *, check_mode: bool = False, fails: bool = False
    ) -> dict[str, Any]:
        """Run a module of the collection on the host."""
        given = {**arguments, "_ansible_check_mode": check_mode, "_ansible_diff": True}
        runner = self._runner
        assert runner.stdin
        assert runner.stdout
        runner.stdin.write(json.dumps({"module": name, "arguments": given}) + "\n")
        runner.stdin.flush()
        text = json.loads(runner.stdout.readline())
        assert text.lstrip().startswith("{"), text
        result: dict[str, Any] = json.loads(text)
        assert bool(result.get("failed")) == fails, result
        return result

    @cached_property
    def _runner(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / ".build")}
        argv = self.inside(sys.executable, str(ROOT / "tests" / "module_runner.py"))
        return subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ovs(self, *arguments: str) -> str:
        """Ask ovs-vsctl."""
        return self.run("ovs-vsctl", "--timeout=10", *arguments).stdout.strip()

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Ask the docker command line."""
        return self.run("/usr/bin/docker", *arguments, check=check).stdout.strip()

    def flows(self, bridge: str = "br-job") -> list[str]:
        """All flows of a bridge, whoever made them."""
        shown = self.run("ovs-ofctl", "--names", "--no-stats", "dump-flows", bridge).stdout
        return sorted(line.strip() for line in shown.splitlines())

    def in_container(self, pid: int, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program of the host in a container's network."""
        return self.run("nsenter", f"--net=/proc/{pid}/ns/net", *argv, **options)

    def links(self) -> set[str]:
        """Names of the host's links."""
        return {link["ifname"] for link in json.loads(self.run("ip", "-json", "link").stdout)}

    def forget_ports(self) -> None:
        """Remove what ports a failed test may have left, and their flows."""
        found = "ovs-vsctl --bare --columns=name find Interface 'external_ids!={}'"
        self.run(
            "bash", "-c", f"{found} | xargs --no-run-if-empty --max-args=1 ovs-vsctl --if-exists del-port"
        )
        self.module("ovs_bridge", {"name": "br-job"})  # which removes the flows of ports that are gone

    def holds(self) -> dict[str, Any]:
        """All a job can leave on a host; equal before and after means: nothing was left."""
        return {
            "containers": sorted(self.docker("ps", "-aq", "--no-trunc").split()),
            "volumes": sorted(self.docker("volume", "ls", "-q").split()),
            "ports": sorted(self.ovs("--bare", "--columns=name", "list", "Port").split()),
            "links": sorted(self.links()),
            "flows": self.flows(),
            "jobs": sorted(self.run("find", "/run/dockerjob").stdout.split()),
            # What goes away while find looks at it is not left.
            "cgroups": sorted(
                self.run("sh", "-c", CGROUPS.format(group=self.cgroup), check=False).stdout.split()
            ),
        }


def _image() -> bytes:
    """A root file system with busybox and the mount points a job's container needs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for directory in ("bin", "etc", "etc/ssh", "proc", "sys", "dev", "tmp", "run"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        archive.add("/bin/busybox", "bin/busybox", recursive=False)
        for name in ("sh", "sleep", "nc", "cat", "ln", "id", "mkdir"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        for name in ("etc/hosts", "etc/passwd", "etc/group", "etc/ssh/ssh_config"):
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def _await_docker(host: Host, first: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while host.run("test", "-S", "/run/docker.sock", check=False).returncode:
        log = host.state / "dockerd.log"
        assert first.poll() is None, log.read_text() if log.exists() else "the host did not start"
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no dockerd"
        time.sleep(0.1)


def _remove_cgroups(name: str) -> None:
    for path in sorted(Path("/sys/fs/cgroup").glob(f"**/{name}/**/"), key=lambda p: -len(p.parts)):
        with suppress(OSError):
            path.rmdir()


@contextmanager
def private_host(state: Path, more_environment: Mapping[str, str] | None = None) -> Iterator[Host]:
    """Start a host whose files lie in *state*, its daemons with these variables; at the end nothing of it is left."""
    group = f"djtest-{secrets.token_hex(4)}"
    state.mkdir()
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "STATE": str(state),
        "CGROUP": f"/{group}",
        "SOCKET": "unix:///run/docker.sock",
        **(more_environment or {}),
    }
    namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child"]
    # Should pytest be killed, the host dies with it.
    start = ["setpriv", "--pdeathsig", "KILL", "unshare"]
    outer = subprocess.Popen([*start, *namespaces, "bash", "-c", SETUP], env=environment)
    try:
        host = Host(_first_process(outer.pid), state, f"/{group}")
        _await_docker(host, outer)
        host.run(
            "/usr/bin/docker", "import", "-", IMAGE, input=_image().decode("latin-1"), encoding="latin-1"
        )
        yield host
    finally:
        outer.kill()
        outer.wait()
        _remove_cgroups(group)
        shutil.rmtree(state, ignore_errors=True)
        with suppress(OSError):  # where the machine has one of its own, it is not empty
            Path("/etc/dockerjob").rmdir()


def _first_process(outer: int) -> int:
    """Wait for the process that is number 1 in the new namespaces."""
    children = Path(f"/proc/{outer}/task/{outer}/children")
    for _ in range(100):
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.05)
    raise AssertionError("the host's first process did not appear")


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One private host for all tests; each test leaves it as it found it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with private_host(tmp_path_factory.mktemp("host") / "state") as started:
        started.module("ovs_bridge", {"name": "br-job", "datapath_type": "netdev"})
        yield started
