# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices of the hosts in whole jobs: stand-ins for InfiniBand, for the applications that the policy names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerjob_lab.client import CONFIG, Cluster
from job_fixtures import job, refused

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

INFINIBAND = "/dev/infiniband"
OTHERS = "/dev/dockerjob-others"
NODES = "mknod -m 666 uverbs0 c 1 5; mknod -m 666 rdma_cm c 1 3"


@pytest.fixture
def stand_ins(cluster: Cluster) -> Iterator[None]:
    """Devices of the two hosts' own, whatever this machine has: an adapter, and what another application gets."""
    made = [path for path in (INFINIBAND, OTHERS) if not Path(path).exists()]
    mount = "mkdir -p {0}; mount -t tmpfs -o mode=755 tmpfs {0} && cd {0} && {{ {1}; }}"
    try:
        for host in ("node1", "node2"):
            for path in (INFINIBAND, OTHERS):
                cluster.run(host, "sh", "-c", mount.format(path, NODES))
        yield
    finally:
        for host in ("node1", "node2"):
            cluster.run(host, "umount", INFINIBAND, OTHERS, check=False)
        for path in made:  # hosts of a lab share the machine's /dev
            with contextlib.suppress(OSError):
                Path(path).rmdir()


@pytest.mark.usefixtures("stand_ins")
def test_all_nodes_of_an_application_have_its_devices_and_no_others(
    cluster: Cluster, site_config: Any
) -> None:
    devices = [INFINIBAND, {"path": f"{OTHERS}/*", "applications": ["openfoam:*"]}]
    site_config("container", devices=devices, environment={"FI_PROVIDER": "mlx"})
    look = f"ls {INFINIBAND} {OTHERS} 2>/dev/null; head -c 3 {INFINIBAND}/uverbs0 | wc -c"
    mpi = "echo ${UCX_NET_DEVICES-chooses} $FI_PROVIDER $OMPI_MCA_oob_tcp_if_include"
    done = cluster.submit(job(f'{look}; {mpi}; ssh ${{DOCKERJOB_JOB}}_node_1 "{look}"'))
    assert done.status == 0, done.err
    seen = ["rdma_cm", "uverbs0", "3"]
    # UCX finds the adapter itself, and what starts the ranks stays on the job's network.
    assert done.out.split() == [f"{INFINIBAND}:", *seen, "chooses", "mlx", "eth1", f"{INFINIBAND}:", *seen]


def test_a_host_without_a_device_is_named_and_only_the_applications_jobs_fail(
    cluster: Cluster, site_config: Any
) -> None:
    applications = yaml.safe_load(cluster.path("node1", CONFIG).read_text())["applications"]
    site_config("applications", **{"other:1": applications["mpihello:1"]})
    site_config("container", devices=[{"path": f"{OTHERS}/uverbs*", "applications": ["other:*"]}])
    message = f"could not start the container on 2 host.*node1.*there is no device {OTHERS}/uverbs"
    refused(cluster.submit(job(application="other:1")), 210, message)
    done = cluster.submit(job(f"test -e {OTHERS} || echo none", slots=1, ptile=1))
    assert (done.status, done.out) == (0, "none\n"), done.err
