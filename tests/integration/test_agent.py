# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent in real containers: discovery, COMMAND over all nodes, and every way a job ends."""

from __future__ import annotations

import pytest
from agent_fixtures import JobContainers

pytest_plugins = ["agent_fixtures"]
pytestmark = pytest.mark.integration


def test_mpi_over_all_nodes(job: JobContainers) -> None:
    """Both families of MPI use the whole allocation without a flag, and the exit status arrives."""
    job.prepare(
        "mpirun.openmpi hello.openmpi && mpirun.openmpi -hostfile system/machines hello.openmpi"
        " && mpiexec.mpich hello.mpich; exit 7"
    )
    job.start()
    assert job.wait_for_end(0) == 7
    assert job.wait_for_end(1) == 0
    assert job.finish_value() == "7"
    output = job.output()
    print(output, job.log(0), job.log(1))
    for node in job.nodes:
        assert output.count(f"on {node}") == 2 * 3
    assert output.count("sum of ranks 6, expected 6") == 3
