# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``integration/gridengine/qlogin.sh``, below a process that is called as Grid Engine's shepherd is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from site_files import INTEGRATION

SPOOL = "/var/spool/gridengine/execd"
VARIABLES = {
    "JOB_ID": "7",
    "JOB_NAME": "a 'b' $(touch /tmp/c) \\n",
    "SGE_TASK_ID": "undefined",
    "PE": "docker",
    "PE_HOSTFILE": "/spool/pe_hostfile",
    "NSLOTS": "4",
    "NHOSTS": "2",
    "HOSTNAME": "n1",
}


@pytest.fixture(params=["sh", "bash"])
def login(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """A command that a shell below a shepherd becomes, once it has sourced the file."""
    spool = tmp_path / "spool"
    snippet = tmp_path / "qlogin.sh"
    snippet.write_text(
        (INTEGRATION / "gridengine/qlogin.sh").read_text().replace(f"={SPOOL}", f"={spool}", 1)
    )
    host = os.uname().nodename.partition(".")[0]
    for number, pid in ((6, "1"), (7, "$$"), (8, "2")):
        job = spool / host / f"active_jobs/{number}.1"
        job.mkdir(parents=True)
        (job / "pid").write_text(f"{pid}\n")
        lines = "".join(f"{name}={value}\n" for name, value in VARIABLES.items())
        (job / "environment").write_text(f"PATH=/evil\nSGE_TASK_a b=1\n{lines}LD_PRELOAD=/x\nBASH_ENV=/x")
    shepherd = tmp_path / "sge_shepherd"
    shepherd.write_text(f'#!/bin/sh\necho $$ >{spool}/{host}/active_jobs/7.1/pid\n"$@"\n')
    shepherd.chmod(0o755)
    shell = shutil.which(request.param)
    return [str(shepherd), "sh", "-c", f"{shell} -uc '. {snippet}; set >&2; env -0'; exit $?"]


def environment(argv: list[str], **variables: str) -> tuple[dict[str, str], str]:
    """The environment that the shell has in the end, and all of its variables."""
    path = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**path, **variables})
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if line), done.stderr


def test_a_shell_below_a_shepherd_has_its_jobs_variables(login: list[str]) -> None:
    found, everything = environment(login)
    assert {name: found.get(name) for name in VARIABLES} == VARIABLES
    assert (found["PATH"], found.get("LD_PRELOAD"), found.get("BASH_ENV")) == ("/usr/bin:/bin", None, None)
    assert "dockerjob_" not in everything.replace("_=dockerjob_", "")


def test_a_shell_that_is_a_job_already_keeps_what_it_has(login: list[str]) -> None:
    for name in ("SGE_TASK_ID", "LSB_JOBID", "SLURM_JOB_ID", "PBS_JOBID"):
        found, _ = environment(login, **{name: "1"})
        assert found[name] == "1"
        assert "JOB_ID" not in found


def test_any_other_shell_stays_as_it_is(login: list[str], tmp_path: Path) -> None:
    assert "JOB_ID" not in environment(login[1:])[0]
    shutil.rmtree(tmp_path / "spool" / os.uname().nodename.partition(".")[0] / "active_jobs/7.1")
    login[0] = str(tmp_path / "sge_shepherd")
    (tmp_path / "sge_shepherd").write_text('#!/bin/sh\n"$@"\n')
    assert "JOB_ID" not in environment(login)[0]
