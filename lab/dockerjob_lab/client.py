# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set-up lab as tests and benchmarks use it: run commands, submit jobs, see what is left."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from dockerjob_core.kvs import Endpoint, Kvs

from .lsf import table
from .lsf.programs import install

ROOT = Path(__file__).parents[2]
LAB = (sys.executable, str(ROOT / "lab/lab.py"))
CONFIG = "/etc/dockerjob/config.yml"

# What the host program, the broker and Docker make for a job, and that nobody else makes.
LEFT_FILES = "ls -Ad /run/dockerjob/jobs/* /var/lib/dockerjob/run/* 2>/dev/null; true"
# What goes away while find looks at it is not left behind.
LEFT_CGROUPS = (
    "find /sys/fs/cgroup/dockerjob-{lab}/{host} /sys/fs/cgroup/*/dockerjob-{lab}/{host}"
    " -type d -regex '.*/\\(dockerjob_\\)?[0-9a-f_]+' 2>/dev/null; true"
)
# Without the reaper, which may have been started anew.
LEFT_PROCESSES = (
    "ps -ww -o pid=,args= -u alice,bob,dockerjob | grep -v 'gc --watch';pgrep -af 'dockerjob.* guard$'; true"
)


class LabDownError(Exception):
    """The lab is not up."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The lab, as an admin and as a batch system reach it.

    Attributes:
        name: the lab's name.
        pids: per host, the process whose namespaces are the host's.
    """

    name: str
    pids: dict[str, int]

    @classmethod
    def find(cls, name: str) -> Cluster:
        """Return the running lab *name*.

        Raises:
            LabDownError: it is not up.
        """
        done = subprocess.run(
            [*LAB, "--name", name, "status", "--json"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LabDownError(f"lab {name!r} is not up; run LAB_NAME={name} lab/ensure_cluster.sh")
        return cls(name, {host["name"]: host["pid"] for host in json.loads(done.stdout)["hosts"]})

    @property
    def compute(self) -> list[str]:
        """Names of the compute hosts."""
        return sorted(host for host in self.pids if host.startswith("node"))

    def path(self, host: str, path: str) -> Path:
        """A path of a host, as seen from outside."""
        return Path(f"/proc/{self.pids[host]}/root{path}")

    def run(self, host: str, *argv: str, check: bool = True) -> str:
        """Run a command on a host as root and return its standard output."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pids[host]), "-a", *argv],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            timeout=120,
        )
        if check and done.returncode:
            raise RuntimeError(f"{host}: {argv}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(
        self,
        script: str,
        user: str = "alice",
        hosts: str = "node1,node2",
        number: int | None = None,
        index: int = 0,
    ) -> subprocess.Popen[str]:
        """Submit a script's text, under a number of its own if wanted; its output comes through pipes."""
        which = [*(["--number", str(number)] if number else []), "--index", str(index)]
        process = subprocess.Popen(
            [*LAB, "--name", self.name, "submit", "-", "--user", user, "--hosts", hosts, *which],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101  # stdin=PIPE
        process.stdin.write(script)
        process.stdin.close()
        process.stdin = None
        return process

    def submit(
        self,
        script: str,
        user: str = "alice",
        hosts: str = "node1,node2",
        timeout: float = 180,
        number: int | None = None,
        index: int = 0,
    ) -> Outcome:
        """Submit a script's text and wait for its end."""
        process = self.start(script, user, hosts, number, index)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Outcome(process.returncode, out, err)

    def kill(self, number: int, name: str = "KILL") -> None:
        """Send a signal to all processes of a job on its first host, the broker's too; one that is over is fine."""
        argv = [*LAB, "--name", self.name, "kill", "-s", name, str(number)]
        subprocess.run(argv, capture_output=True, check=False, timeout=60)

    def record_job(
        self,
        number: int,
        user: str,
        allocation: Sequence[tuple[str, int]],
        state: table.State = "RUN",
        index: int = 0,
        limits: Mapping[str, str] | None = None,
    ) -> None:
        """Make the lab's LSF say this of a job, whether or not there is one; see :func:`.lsf.table.record`."""
        share = self.path("node1", "/share")
        install(share)
        table.record(share, number, index, user, allocation, state, limits)

    def teardown(self, job_id: str) -> str:
        """Run ``playbooks/job_teardown.yml`` as an admin does, and return its recap."""
        job = str(ROOT / "inventory/job/hosts.yml")
        done = self.playbook("job_teardown.yml", "-i", job, "-e", f"dockerjob_job_id={job_id}")
        if done.returncode:
            raise RuntimeError(f"job_teardown.yml: {done.stdout}{done.stderr}")
        return done.stdout

    def bring_up_slurm(self) -> None:
        """Run ``playbooks/lab_slurm.yml``; a Slurm that is up already stays as it is."""
        done = self.playbook("lab_slurm.yml")
        if done.returncode:
            raise RuntimeError(f"lab_slurm.yml: {done.stdout}{done.stderr}")

    def playbook(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a playbook of the collection on the lab's inventory, as an admin does."""
        argv = [str(Path(sys.executable).parent / "ansible-playbook"), f"playbooks/{name}"]
        argv += ["-i", str(ROOT / ".lab" / self.name / "inventory.yml"), *arguments]
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build")},
        )

    def kvs(self) -> Kvs:
        """All of etcd, as its administrator sees it through node1's relay."""
        config = yaml.safe_load(self.path("node1", CONFIG).read_text())["etcd"]
        administrator = ROOT / ".lab" / self.name / ".pki/client-root"
        return Kvs.connect(
            Endpoint(
                target=f"unix:{self.path('node1', config.get('socket', '/run/dockerjob/relay/etcd.sock'))}",
                ca=str(self.path("node1", config["ca"])),
                cert=f"{administrator}.pem",
                key=f"{administrator}.key",
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
                "flows": sorted(
                    self.run(host, "ovs-ofctl", "--names", "--no-stats", "dump-flows", "br-job").splitlines()
                ),
                "links": sorted(
                    line.split(":")[1].strip() for line in self.run(host, "ip", "-o", "link").splitlines()
                ),
                "files": self.run(host, "sh", "-c", LEFT_FILES).split(),
                "cgroups": self.run(host, "sh", "-c", LEFT_CGROUPS.format(lab=self.name, host=host)).split(),
                "processes": self.run(host, "sh", "-c", LEFT_PROCESSES).splitlines(),
                "mounts": len(Path(f"/proc/{self.pids[host]}/mountinfo").read_text().splitlines()),
            }
        with self.kvs() as kvs:
            found["keys"] = [item.key for item in kvs.get_prefix("/").items]
            found["identities"] = kvs.auth.users()
        return found


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a submitted script ended."""

    status: int
    out: str
    err: str
