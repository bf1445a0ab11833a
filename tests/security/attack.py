# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user of the lab's hosts can do: call the broker with any bytes, run programs, read files."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from dockerjob.request import JobRequest
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_lab.client import Cluster, Outcome
from job_fixtures import WRAPPER

BROKER = "/share/dockerjob/bin/dockerjob-broker"
SUDO = ("sudo", "-n", "-u", "dockerjob")
AUDIT = "/var/log/dockerjob/audit.jsonl"
CAP_SYS_RESOURCE = 24
NUMBER = 987_000
"""Number of the jobs that the tests tell the lab's LSF about."""

ONE_HOST = (("node1", 1),)
TWO_HOSTS = (("node1", 2), ("node2", 2))
ODD = """{{ lookup('pipe','id') }} {% raw %} $(id) `id` ; & | > < * ? ~ ! # \\ \\n "two  words" 'q' é 日本 \t end"""


def request(hosts: Sequence[tuple[str, int]] = TWO_HOSTS, **changes: Any) -> dict[str, Any]:
    """A request as the wrapper sends it, with changes that the wrapper would not make."""
    allocation = Allocation("lsf", NUMBER, None, tuple(HostSlots(*pair) for pair in hosts))
    honest = JobRequest(allocation, "mpihello:1", b"true", "/scratch/alice")
    document: dict[str, Any] = json.loads(honest.to_json())
    document["allocation"].update(changes.pop("allocation", {}))
    return {**document, **changes}


def encoded(command: str | bytes) -> str:
    """COMMAND as it stands in a request."""
    return base64.b64encode(command if isinstance(command, bytes) else command.encode()).decode()


def as_user(user: str, *argv: str) -> list[str]:
    """The command that runs *argv* as *user*, with all of the user's groups."""
    group = "nogroup" if user == "nobody" else user
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups", *argv]


def run(cluster: Cluster, *argv: str, user: str = "alice", host: str = "node1", data: bytes = b"") -> Outcome:
    """Run a program of a user's on a host.

    Standard input holds *data*.  If that ends in a newline it then stays open until the program
    has ended: to the broker, the end of its input would mean that the wrapper is gone.
    """
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        ["nsenter", "-t", str(cluster.pids[host]), "-a", *as_user(user, *argv)],
        stdin=read_end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    ) as process:
        os.close(read_end)
        with open(write_end, "wb", buffering=0) as pipe, ThreadPoolExecutor(1) as pool:
            fed = pool.submit(_feed, pipe, data)
            if not data.endswith(b"\n"):
                fed.result()
                pipe.close()
            try:
                out, err = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    return Outcome(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def which_limits() -> str:
    """Option of the shell's ``ulimit``: hard and soft limits, or soft ones where root can't raise others.

    That is so on a machine that is itself a container without CAP_SYS_RESOURCE; sudo is root there, too.
    """
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    return "-" if capabilities & (1 << CAP_SYS_RESOURCE) else "-S"


def _feed(pipe: IO[bytes], data: bytes) -> None:
    """Write all of *data*; who reads may stop before its end."""
    view = memoryview(data)
    with contextlib.suppress(BrokenPipeError):
        while view:
            view = view[pipe.write(view) :]


def broker(
    cluster: Cluster, line: bytes | dict[str, Any], user: str = "alice", host: str = "node1"
) -> Outcome:
    """Call the broker as a user may: through sudo, with any bytes on standard input."""
    data = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
    return run(cluster, *SUDO, BROKER, user=user, host=host, data=data)


def script(command: bytes, jobdir: str = "/scratch/alice", extra: str = "") -> str:
    """A submit script whose COMMAND is *command*, byte for byte but for newlines at its end."""
    return f"""#!/bin/bash
#BSUB -n 1
export APPLICATION=mpihello:1 JOBDIR={jobdir}
export COMMAND=$(echo {encoded(command)} | base64 -d)
{extra}
{WRAPPER}
"""


def audit_records(cluster: Cluster, host: str = "node1") -> list[dict[str, Any]]:
    """All audit records of a host, oldest first."""
    path = cluster.path(host, AUDIT)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last_audit(cluster: Cluster, host: str = "node1") -> dict[str, Any]:
    """The latest audit record of a host."""
    return audit_records(cluster, host)[-1]


def check_refused(cluster: Cluster, done: Outcome, status: int, message: str, user: str = "alice") -> None:
    """See that a request was refused in one line, in words, and on the record."""
    assert done.status == status, done
    assert done.out == ""
    [said] = [line for line in done.err.splitlines() if line.startswith("hpc_submit_dockerjob: ")]
    assert message in said
    assert "Traceback" not in done.err
    uid = cluster.run("node1", "id", "-u", user).strip()
    record = last_audit(cluster)
    assert (record["decision"], record["uid"]) == ("refused", uid)
    assert message[:200] in record["reason"]


def state_of_etcd_and_files(cluster: Cluster) -> tuple[int, dict[str, str]]:
    """What changes for good with every key that is written, and what files there are of jobs and of bob's."""
    files = "ls -A /run/dockerjob/jobs /var/lib/dockerjob/run /scratch/bob /home/bob 2>&1; true"
    with cluster.kvs() as kvs:
        revision = kvs.get_prefix("/").revision
    return revision, {host: cluster.run(host, "sh", "-c", files) for host in ("node1", "node2")}


def containers_since(cluster: Cluster, begin: float) -> list[str]:
    """Containers made since then, as Docker remembers, also those that are gone."""
    when = ("--since", f"{begin:.3f}", "--until", f"{time.time():.3f}", "--filter", "event=create")
    return [
        line
        for host in ("node1", "node2")
        for line in cluster.run(host, "docker", "events", *when).splitlines()
    ]


def write_as(cluster: Cluster, user: str, path: str, text: str, mode: str = "0644") -> Path:
    """Write a file of a user's on the shared file systems, and return it as it is seen from here."""
    place = cluster.path("node1", path)
    cluster.run("node1", "install", "-d", "-o", user, "-g", user, os.path.dirname(path))
    place.write_text(text)
    cluster.run("node1", "chown", f"{user}:{user}", path)
    cluster.run("node1", "chmod", mode, path)
    return place
