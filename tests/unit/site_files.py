# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the tests of ``integration/`` run its files: as the batch systems do, with recorded environments."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

INTEGRATION = Path(__file__).resolve().parents[2] / "integration"
OPT = "/opt/dockerjob"

LSF_JOB = {
    "HOME": "/home/alice",
    "LSB_HOSTS": "n3 n3 n3 n2 n2 n2 n2",
    "LSB_JOBFILENAME": "/home/alice/.lsbatch/1795434166.102",
    "LSB_JOBID": "102",
    "LSB_JOBINDEX": "0",
    "LSB_JOBNAME": "par",
    "LSB_MCPU_HOSTS": "n3 3 n2 4 ",
    "LSB_TRAPSIGS": "trap # 15 10 12 2 1",
    "LS_EXEC_T": "START",
    "PATH": "/opt/openlava/bin:/usr/bin:/bin",
    "USER": "alice",
}
"""Recorded, OpenLava 4.0, job 102."""

SGE_JOB = {
    "HOME": "/home/alice",
    "HOSTNAME": "n3",
    "JOB_ID": "2",
    "JOB_NAME": "sgeenv.sh",
    "JOB_SCRIPT": "/var/spool/gridengine/execd/n3/job_scripts/2",
    "NHOSTS": "3",
    "NSLOTS": "7",
    "PATH": "/tmp/2.1.main.q:/usr/local/bin:/bin:/usr/bin",
    "PE": "rr",
    "SGE_TASK_ID": "undefined",
    "SHELL": "/bin/bash",
}
"""Recorded, Grid Engine 8.1.9, job 2."""


def run(
    argv: list[str], environment: Mapping[str, str], cwd: Path | None = None, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run a program with nothing but *environment*; its output is text, and every byte of it is kept."""
    done = subprocess.run(
        argv,
        env=dict(environment),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=timeout,
    )
    # Not text=True, which would make one line end of all.
    out, err = (stream.decode("utf-8", "surrogateescape") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)
