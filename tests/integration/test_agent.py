# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent in real containers: discovery, COMMAND over all nodes, and every way a job ends."""

from __future__ import annotations

import re
import time

import pytest
from agent_fixtures import JobContainers
from dockerjob_core import names
from dockerjob_core.errors import DiscoveryError, DockerjobError, RequestError, WallClockError

pytestmark = pytest.mark.integration

MASTER = "<<< MASTER: starting COMMAND"
SLAVE = "<<< SLAVE: going into slave mode and wait job to end >>>"


def test_mpi_over_all_nodes(job: JobContainers) -> None:
    """All kinds of MPI use the whole allocation without a flag, and the exit status arrives."""
    job.prepare(
        "mpirun.openmpi hello.openmpi && mpirun.openmpi -hostfile system/machines hello.openmpi"
        " && mpirun.openmpi5 hello.openmpi5 && mpiexec.mpich hello.mpich; exit 7"
    )
    job.start()
    assert job.wait_for_end(0) == 7
    assert job.wait_for_end(1) == 0
    assert job.finish_value() == "7"
    output = job.output()
    for node in job.nodes:
        assert output.count(f"on {node}") == 2 * 4
    assert output.count("sum of ranks 6, expected 6") == 4
    assert "segmentation" not in output.lower()


def test_discovery_of_three_nodes(job: JobContainers) -> None:
    """Everyone verifies everyone before COMMAND starts, and ssh works in all directions after it."""
    job.count, job.image = 3, "shell:12"
    first, second, third = job.nodes
    job.prepare(
        f"ssh {second} 'echo $GREETING; ssh {third} ssh {first} hostname'; echo late >&2; cat /etc/hosts"
    )
    job.start()
    assert [job.wait_for_end(index) for index in range(3)] == [0, 0, 0]
    output = job.output()
    assert output.startswith(f'say "hello"\n{first}\n')
    assert "late" in output
    assert f"10.128.0.3\t{third}" in output
    for index in range(3):
        log = job.log(index)
        for other in set(job.nodes) - {job.nodes[index]}:
            assert re.search(rf'PING TO "10\.128\.0\.\d" AS "{other}" SUCCESSFUL', log)
            assert re.search(rf'SSH CONNECTION TEST TO "10\.128\.0\.\d" AS "{other}" SUCCESSFUL', log)
        ready = log.index("RECEIVED A READY STATE FOR ALL NODES")
        assert ready < log.index(MASTER if index == 0 else SLAVE)
        assert all(log.index(f'NODE "{node}" IS READY !') < ready for node in job.nodes)


def test_missing_node_is_named(job: JobContainers) -> None:
    """Without one node discovery fails, says which and why, and leaves FINISH alone."""
    job.count, job.image, job.spec = 3, "shell:12", {"discovery_timeout": 3}
    job.prepare("echo never")
    job.start(0, 1)
    assert job.wait_for_end(0) == DiscoveryError.exit_status
    assert job.wait_for_end(1) == DiscoveryError.exit_status
    assert job.finish_value() == "FALSE"
    error = (job.node_directory(0) / "agent_error").read_text()
    first, second, third = job.nodes
    assert f"{third} on host2 has not published IP and SSHPUBKEY" in error
    assert f"{second} on host1 is not READY" in error
    assert first in error
    assert "never" not in job.output()


def test_missing_jobdir_is_named(job: JobContainers) -> None:
    """A host without the file system is found before anything is computed."""
    job.count, job.image, job.spec = 1, "shell:12", {"jobdir": "/scratch/not-mounted"}
    job.prepare("echo never")
    job.start()
    assert job.wait_for_end(0) == RequestError.exit_status
    error = (job.node_directory(0) / "agent_error").read_text()
    assert "JOBDIR /scratch/not-mounted does not exist" in error
    assert "host0" in error


def test_signals_reach_command(job: JobContainers) -> None:
    """Suspend, resume and a user's signal go to COMMAND; its own answer to TERM is its exit status."""
    job.image = "shell:12"
    job.prepare(
        "trap 'echo got usr1' USR1; trap 'echo got term; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    )
    job.start()
    job.wait_for_log(0, MASTER)
    job.wait_for(lambda: "up" in job.output())
    job.signal("TSTP")
    job.wait_for(lambda: "T" in job.state_of_command())
    job.signal("CONT")
    job.wait_for(lambda: "T" not in job.state_of_command())
    job.signal("USR1")
    job.wait_for(lambda: "got usr1" in job.output())
    job.signal("TERM")
    assert job.wait_for_end(0) == 3
    assert job.wait_for_end(1) == 0
    assert job.finish_value() == "3"
    assert "got term" in job.output()


def test_command_killed_by_a_signal(job: JobContainers) -> None:
    """A COMMAND that dies of signal n is reported as 128+n."""
    job.count, job.image = 1, "shell:12"
    job.prepare("kill -KILL $$")
    job.start()
    assert job.wait_for_end(0) == 137
    assert job.finish_value() == "137"


def test_lost_lease_ends_the_job(job: JobContainers) -> None:
    """FINISH deleted means: over. COMMAND is stopped although it ignores TERM, and all containers end."""
    job.image = "shell:12"
    job.prepare("trap '' TERM; while :; do sleep 0.1; done")
    job.start()
    job.wait_for_log(0, MASTER)
    job.wait_for_log(1, SLAVE)
    job.revoke()
    started = time.monotonic()
    assert job.wait_for_end(1) == WallClockError.exit_status
    assert job.wait_for_end(0) == WallClockError.exit_status
    assert time.monotonic() - started < 6
    assert "FINISH is gone" in job.log(0)
    assert job.finish_value() is None


def test_wall_clock_ends_the_job(job: JobContainers) -> None:
    """At the end of its lifetime every node ends by itself, whatever etcd says."""
    job.image, job.spec = "shell:12", {"lifetime": 5}
    job.prepare("sleep 60")
    job.start()
    job.wait_for_log(0, MASTER)
    assert job.wait_for_end(1, timeout=15) == WallClockError.exit_status
    assert job.wait_for_end(0, timeout=15) == WallClockError.exit_status
    assert "the wall-clock limit is reached" in job.log(0)
    assert job.finish_value() == "FALSE"


def test_etcd_away_while_computing(job: JobContainers) -> None:
    """COMMAND goes on without etcd, and its status is written once etcd is back."""
    job.image = "shell:12"
    job.prepare("sleep 2; exit 5")
    job.start()
    job.wait_for_log(0, MASTER)
    job.wait_for_log(1, SLAVE)
    job.server.stop()
    try:
        job.wait_for_log(0, "ETCD LOST")
        job.wait_for_log(0, "COMMAND ended with status 5")
        time.sleep(0.5)
    finally:
        job.server.start()
    assert job.wait_for_end(0) == 5
    assert job.wait_for_end(1) == 0
    assert job.finish_value() == "5"


def test_etcd_away_in_discovery(job: JobContainers) -> None:
    """What a node has to publish waits until etcd is back."""
    job.image = "shell:12"
    job.prepare("exit 6")
    job.start(0)
    job.wait_for_log(0, "READY = False")
    job.server.stop()
    try:
        job.start(1)
        job.wait_for_log(1, "HAS ADDRESS")
        time.sleep(3)
    finally:
        job.server.start()
    assert job.wait_for_end(0) == 6
    assert job.wait_for_end(1) == 0
    assert job.finish_value() == "6"


def test_agent_that_is_killed_ends_its_container(job: JobContainers) -> None:
    """An agent lost to the kernel's memory killer takes COMMAND and the container along, with a reason."""
    job.count, job.image = 1, "shell:12"
    job.prepare("sleep 60")
    job.start()
    job.wait_for_log(0, MASTER)
    job.docker.run(
        "exec", job.nodes[0], "/bin/bash", "-c", f"kill -KILL $(cat {names.CONTAINER_WRITABLE}/agent.pid)"
    )
    assert job.wait_for_end(0, timeout=10) == DockerjobError.exit_status
    assert "the agent died" in (job.node_directory(0) / "agent_error").read_text()


def test_end_before_discovery_is_over(job: JobContainers) -> None:
    """A job killed while its nodes still look for each other ends at once, as if COMMAND had been killed."""
    job.image = "shell:12"
    job.prepare("echo never")
    job.start(0)
    job.wait_for_log(0, "READY = False")
    job.signal("TERM")
    assert job.wait_for_end(0, timeout=5) == 143
    assert job.finish_value() == "143"
