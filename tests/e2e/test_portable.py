# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs in images that know nothing of them: neither ssh nor Python, and one without glibc."""

from __future__ import annotations

import re

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
