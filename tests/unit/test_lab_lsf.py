# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's LSF reads ``integration/lsf`` as an administrator would have installed it."""

from __future__ import annotations

import dataclasses

import pytest
from dockerjob_lab import batch, lsf_site
from dockerjob_lab.model import LabError

SCRIPT = '#!/bin/bash\n#BSUB -n 2\n#BSUB -a "docker(mpihello:1, /scratch/x)"\n#BSUB -app docker\ntrue\n'
ALICE = batch.Account("alice", 2001, 2001, "alice", "/home/alice", "/bin/bash")


def test_the_profile_is_the_site_file_with_the_labs_path() -> None:
    profile = lsf_site.find_profile("docker")
    assert profile
    assert profile.job_starter == "/share/dockerjob/integration/job_starter.sh"
    assert profile.post_exec == "/share/dockerjob/integration/job_gone.sh --wait 120"
    assert lsf_site.find_profile("") is None
    with pytest.raises(LabError, match="-app other: there is no such application profile"):
        lsf_site.find_profile("other")


def test_the_starter_stands_before_the_script_in_the_job_file() -> None:
    options = batch.parse(SCRIPT)
    assert (options.application, options.esub) == ("docker", "docker(mpihello:1, /scratch/x)")
    plain = batch.Job(8, options, (("node1", 2),), ALICE, "/tmp", "head", 1)
    assert "\n/home/alice/.lsbatch/1.8.shell\n" in batch.job_file(plain)
    assert "LSB_JOB_STARTER" not in batch.environment(plain)
    started = dataclasses.replace(plain, job_starter="/starter")
    assert "\n/starter /home/alice/.lsbatch/1.8.shell\n" in batch.job_file(started)
    assert batch.environment(started)["LSB_JOB_STARTER"] == "/starter"
