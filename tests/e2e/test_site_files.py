# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs through ``integration/``: esub, application profile, job starter, job controls, POST_EXEC."""

from __future__ import annotations

import re
import subprocess

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import containers, finish, forgotten, job, started, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

INSTALLED = "/share/dockerjob/integration"

SCRIPT = """\
#!/bin/bash
#BSUB -J plain
#BSUB -n 4
#BSUB -R "span[ptile=2]"
#BSUB -a "docker(mpihello:1, /scratch/alice)"
{lines}
"""
"""A script without a wrapper line."""


def running(cluster: Cluster, lines: str) -> tuple[subprocess.Popen[str], int]:
    """Start a script that writes ``started``, and return its number as well."""
    process = started(cluster, SCRIPT.format(lines=f"echo started; echo $DOCKERJOB_JOB; {lines}"))
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def processes_of(cluster: Cluster, job_id: int) -> list[str]:
    """What LSF has in LSB_JOBPIDS: the job's processes on its first host, as that host counts them."""
    pattern = rf"\.lsbatch/[0-9]+\.{job_id}(\.shell)?$"
    shell = cluster.run("node1", "pgrep", "-u", "alice", "-f", pattern).split()
    wrapper = cluster.run("node1", "pgrep", "-u", "alice", "-f", "bin/hpc_submit_dockerjob").split()
    return sorted({*shell, *wrapper})


def control(cluster: Cluster, action: str, job_id: int) -> None:
    """Run the profile's control as LSF does: as the job's user."""
    line = f"{INSTALLED}/job_signal.sh {action} 60 $LSB_JOBPIDS"
    pids = f"LSB_JOBPIDS={' '.join(processes_of(cluster, job_id))}"
    cluster.run(
        "node1", "setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "env", pids, "sh", "-c", line
    )


def test_a_script_without_a_wrapper_line_runs_in_containers(cluster: Cluster) -> None:
    lines = """
echo "on $(hostname) in $PWD: $0"
mpirun hello.openmpi
exit 3"""
    done = cluster.submit(SCRIPT.format(lines=lines))
    assert done.status == 3, done.err
    assert re.search(r"^on \d+_node_0 in /scratch/alice: \d+\.\d+\.shell$", done.out, re.MULTILINE), done.out
    assert len(re.findall(r"^rank \d of 4 on \d+_node_[01]", done.out, re.MULTILINE)) == 4, done.out


def test_an_array_element_learns_of_its_array(cluster: Cluster) -> None:
    line = "export LSB_JOBINDEX_STEP=2 LSB_JOBINDEX_END=9"
    done = cluster.submit(
        job('echo "$LSB_JOBINDEX of $LSB_JOBINDEX_STEP-$LSB_JOBINDEX_END"', extra=line), index=7
    )
    assert done.out == "7 of 2-9\n", done.err


def test_a_script_with_a_wrapper_line_runs_as_before_in_the_profile(cluster: Cluster) -> None:
    done = cluster.submit(job("hostname").replace("#BSUB -J e2e", "#BSUB -J e2e\n#BSUB -app docker"))
    assert re.fullmatch(r"\d+_node_0\n", done.out), done.err


def test_esub_refuses_before_there_is_a_job(cluster: Cluster) -> None:
    done = cluster.submit(SCRIPT.format(lines="hostname").replace("mpihello:1", "Not an image"))
    assert (done.status, done.out) == (1, "")
    assert "esub.docker: 'Not an image' is no image name" in done.err
    assert "Request aborted by esub" in done.err


def test_without_an_image_the_profile_says_so_and_nothing_is_run_on_the_host(cluster: Cluster) -> None:
    done = cluster.submit(SCRIPT.format(lines="hostname").replace("(mpihello:1, /scratch/alice)", ""))
    assert (done.status, done.out) == (201, "")
    assert "APPLICATION is not set" in done.err


def test_the_profiles_controls_suspend_resume_and_end_a_job(cluster: Cluster) -> None:
    process, job_id = running(cluster, "sleep 300")
    control(cluster, "suspend", job_id)
    wait_until(lambda: len(containers(cluster, job_id, "paused")) == 2, 20, "both containers are frozen")
    control(cluster, "resume", job_id)
    wait_until(lambda: len(containers(cluster, job_id, "running")) == 2, 20, "both containers go on")
    control(cluster, "terminate", job_id)
    assert containers(cluster, job_id) == {}
    _, err = finish(process)
    assert process.returncode == 143, err


@pytest.mark.timeout(240)
def test_post_exec_returns_when_a_killed_job_has_left_nothing(cluster: Cluster) -> None:
    process, job_id = running(cluster, "sleep 300")
    cluster.kill(job_id)
    _, err = finish(process, 200)
    assert process.returncode == 137, err
    assert forgotten(cluster, job_id)
    assert containers(cluster, job_id) == {}
