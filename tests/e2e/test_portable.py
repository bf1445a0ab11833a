# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs in images that know nothing of them: neither ssh nor Python, and one without glibc."""

from __future__ import annotations

import re
from typing import Any

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import job

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

SSH = "/opt/dockerjob/bin/ssh"
COMMAND = (
    f"env; echo ---; for n in 0 1; do {SSH} ${{DOCKERJOB_JOB}}_node_$n"
    r' "cat /proc/sys/kernel/hostname; echo \$0 \$SHELL \$DOCKERJOB_JOB"; done; id -un; exit 5'
)


@pytest.mark.parametrize("image", ["foreign:minimal", "foreign:musl"])
def test_job_in_an_image_of_others(cluster: Cluster, image: str) -> None:
    """Two hosts, ssh in COMMAND, its own exit status, and an environment that is the image's and the request's."""
    done = cluster.submit(job(COMMAND, application=image))
    assert done.status == 5, done.err
    environment, _, rest = done.out.partition("---\n")
    variables = dict(line.split("=", 1) for line in environment.splitlines())
    assert variables["SHELL"] == "/bin/sh"
    assert "/opt/dockerjob" not in variables["PATH"]
    ours = re.compile(r"LD_|PYTHON|LC_|SUPERVISOR|DOCKERJOB_(IMAGE|NODE)")
    assert not [name for name in variables if ours.match(name)]
    number = variables["DOCKERJOB_JOB"]
    said = [line for index in (0, 1) for line in (f"{number}_node_{index}", f"/bin/sh /bin/sh {number}")]
    assert rest.split("\n") == [*said, "alice", ""]


@pytest.mark.parametrize(("infra", "mounted"), [("auto", 2), ("injected", 2), ("image", 0)])
def test_the_site_says_where_the_infrastructure_is_from(
    cluster: Cluster, site_config: Any, infra: str, mounted: int
) -> None:
    """An image with the layer gets the host's all the same, unless the site says otherwise; MPI runs with both."""
    site_config("applications", **{"mpihello:1": {"image": "mpihello:1", "infra": infra}})
    done = cluster.submit(job("mpirun --pernode cat /proc/self/mountinfo; ssh -V"))
    assert (done.status, done.out.count(" /opt/dockerjob ro,")) == (0, mounted), done.err
    assert "OpenSSH" in done.err
