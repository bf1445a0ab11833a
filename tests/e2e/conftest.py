# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs in a lab that is a set-up cluster; tests/run.sh and ``make e2e`` bring it up."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from dockerjob_lab.client import CONFIG, Cluster, LabDownError

LAB_NAME = os.environ.get("LAB_NAME", "test")
WRAPPER = "/share/bin/hpc_submit_dockerjob"


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
    try:
        return Cluster.find(LAB_NAME)
    except LabDownError as error:
        pytest.fail(str(error))


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


def signal_wrapper(cluster: Cluster, name: str, delay: float = 0.0) -> None:
    """Send a signal to the one wrapper on node1, *delay* seconds after it has appeared."""
    for _ in range(100):
        if cluster.run("node1", "pgrep", "-f", "bin/hpc_submit_dockerjob", check=False):
            break
        time.sleep(0.1)
    time.sleep(delay)
    cluster.run("node1", "pkill", f"-{name}", "-f", "bin/hpc_submit_dockerjob")
