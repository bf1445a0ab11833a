# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all measurements share: the clock, a job by LSF's variables, and the plain way over ssh."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))
from dockerjob_lab.client import CONFIG, Cluster  # lab is no installed package

HOSTS = ("node1", "node2")


def say(line: str) -> None:
    """Show progress on standard error."""
    print(f"--> {line}", file=sys.stderr, flush=True)


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that *action* takes."""
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def spread(values: list[float]) -> dict[str, float]:
    """Return minimum, median and maximum, rounded to milliseconds."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def start_wrapper(
    cluster: Cluster, command: str, application: str = "mpihello:1", hosts: Sequence[str] = HOSTS
) -> tuple[subprocess.Popen[str], float]:
    """Start the wrapper as alice on the first host, with LSF's variables set; return it and when that was."""
    number = time.time_ns() // 10**7 % 10**9 + 1
    cluster.record_job(number, "alice", [(host, 2) for host in hosts])
    variables = {
        "APPLICATION": application,
        "COMMAND": command,
        "JOBDIR": "/scratch/alice",
        "LSB_JOBID": str(number),
        "LSB_JOBINDEX": "0",
        "LSB_MCPU_HOSTS": " ".join(f"{host} 2" for host in hosts) + " ",
        "PATH": "/usr/bin:/bin",
    }
    argv = ["nsenter", "-t", str(cluster.pids["node1"]), "-a", "setpriv", "--reuid=alice", "--regid=alice"]
    argv += ["--init-groups", "env", "-i", *(f"{name}={value}" for name, value in variables.items())]
    begin = time.monotonic()
    process = subprocess.Popen(
        [*argv, "/share/bin/hpc_submit_dockerjob"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",
    )
    return process, begin


def on_all(cluster: Cluster, command: str, hosts: Sequence[str] = HOSTS) -> None:
    """Run a shell's line on all *hosts* at once, over ssh from the first, as the broker's account there.

    Raises:
        RuntimeError: it failed on one.
    """
    config = yaml.safe_load(cluster.path(hosts[0], CONFIG).read_text())
    settings = config["ansible"]
    ssh = [
        f"ssh -F none -i {settings['private_key']} -o UserKnownHostsFile={settings['known_hosts']} "
        f"-o BatchMode=yes {settings['user']}@{config['hosts'][host]['address']} '{command}' >/dev/null & pids+=\" $!\""
        for host in hosts
    ]
    cluster.run(
        hosts[0], "bash", "-c", "\n".join(["pids=", *ssh, "for pid in $pids; do wait $pid || exit; done"])
    )
