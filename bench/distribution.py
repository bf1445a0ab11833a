# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an image of 1 GB comes to all hosts, and what a job waits for that needs it.

The floor is ``docker pull`` over ssh on all hosts at once.  Cold is a host that has nothing of the
image but its base; the registry's host has it in its page cache.
"""

from __future__ import annotations

import os
import time
from typing import Any

import yaml
from common import on_all, say, spread, start_wrapper, timed
from dockerjob_core import names
from dockerjob_lab.client import CONFIG, Cluster

NAME = "bench:1"
BASE = "mpihello:1"
SIZE = 1 << 30
"""Bytes that no compression makes fewer."""

ROUNDS = 3
PATIENCE = 120
"""Seconds that a job may take to be gone from all hosts."""

WORK = "/scratch/bench-image"


def measure_distribution(cluster: Cluster) -> dict[str, Any]:
    """Measure pulls and jobs in turns, with the image on no host and on all."""
    hosts = cluster.compute
    say(f"distribution: an image of {SIZE >> 20} MB into the registry")
    reference = _publish(cluster)
    seconds: dict[str, list[float]] = {}
    for number in range(1, ROUNDS + 1):
        say(f"distribution: round {number} of {ROUNDS}, {len(hosts)} hosts")
        for what, action in (
            ("floor", lambda: on_all(cluster, f"docker pull --quiet {reference}", hosts)),
            ("sync cold", lambda: _sync(cluster)),
            ("sync warm", lambda: _sync(cluster)),
            ("job cold", lambda: _job(cluster, hosts)),
            ("job warm", lambda: _job(cluster, hosts)),
        ):
            if not what.endswith("warm"):
                _remove(cluster, reference)
            seconds.setdefault(what, []).append(timed(action))
            _outlive_jobs(cluster)
    ratios = [ours / floor for ours, floor in zip(seconds["sync cold"], seconds["floor"], strict=True)]
    return {
        "hosts": len(hosts),
        "megabytes": SIZE >> 20,
        "rounds": ROUNDS,
        "ratio": spread(ratios),
        **{what: spread(values) for what, values in seconds.items()},
    }


def _publish(cluster: Cluster) -> str:
    """Make the image on a host, have the registry's host push it, add it to the catalogue, and return its name."""
    first, registry = cluster.compute[0], next(host for host in cluster.pids if host not in cluster.compute)
    config_file = cluster.path(first, CONFIG)
    config = yaml.safe_load(config_file.read_text())
    address = config["registry"]["address"]
    context = cluster.path(first, WORK)
    context.mkdir(exist_ok=True)
    with (context / "data").open("wb") as data:
        for _ in range(SIZE >> 20):
            data.write(os.urandom(1 << 20))
    (context / "Dockerfile").write_text(f"FROM {address}/{BASE}\nCOPY data /data\n")
    cluster.run(first, "docker", "pull", "--quiet", f"{address}/{BASE}")
    cluster.run(first, "docker", "build", "--quiet", "--tag", NAME, WORK)
    cluster.run(first, "docker", "save", "--output", f"{WORK}/image.tar", NAME)
    cluster.run(first, "docker", "rmi", NAME)
    settings = "/etc/dockerjob-registry"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", f"--dest-authfile={settings}/writer.json"]
    copy += [f"--dest-cert-dir={settings}/ca", "--dest-compress-level=1"]
    cluster.run(registry, *copy, f"docker-archive:{WORK}/image.tar", f"docker://127.0.0.1:5001/{NAME}")
    cluster.run(first, "rm", "-r", WORK)
    config["applications"][NAME] = {"image": NAME}
    # In place: it is the broker's to read, and keeps its owner and mode.
    config_file.write_text(yaml.safe_dump(config))
    return f"{address}/{NAME}"


def _remove(cluster: Cluster, reference: str) -> None:
    repository = reference.rpartition(":")[0]
    for host in cluster.compute:
        images = cluster.run(host, "docker", "images", "--quiet", "--no-trunc", repository).split()
        if images:
            cluster.run(host, "docker", "rmi", "--force", *set(images))


def _sync(cluster: Cluster) -> None:
    cluster.run(cluster.compute[0], "/share/dockerjob/bin/dockerjob", "images", "sync")


def _job(cluster: Cluster, hosts: list[str]) -> None:
    """Run a job of the image on all hosts until its first line."""
    process, _ = start_wrapper(cluster, "echo first", NAME, hosts)
    assert process.stdout is not None  # noqa: S101  # stdout=PIPE
    if process.stdout.readline() != "first\n":
        raise RuntimeError(f"the job failed: {process.wait(60)}")


def _outlive_jobs(cluster: Cluster) -> None:
    """Wait until no host has a container of a job."""
    deadline = time.monotonic() + PATIENCE
    for host in cluster.compute:
        while cluster.run(host, "docker", "ps", "--all", "--quiet", "--filter", f"label={names.LABEL_JOB}"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{host} still has a container of a job")
            time.sleep(0.2)
