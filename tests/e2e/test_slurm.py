# SPDX-License-Identifier: GPL-3.0-or-later
"""Under a real Slurm: the same script, and Slurm's own ways to end, to stop and to repeat a job."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dockerjob_lab.client import Cluster
from dockerjob_lab.slurm import Slurm, environment_of
from job_fixtures import WRAPPER, containers, forgotten, last_record, slow, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

KILL_WAIT = 15
"""Seconds that Slurm leaves a job between SIGTERM and SIGKILL, see the role lab_slurm."""

COUNT = "echo started; i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.1; done"
TIDY = 'trap "sleep 1; echo tidied; exit 0" TERM; echo started; while :; do sleep 0.1; done'


def script(command: str, extra: str = "", last: str = WRAPPER) -> str:
    """A batch script; *command* stands between single quotes."""
    return f"""#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=2 --nodelist=node1,node2 --time=10
export APPLICATION=mpihello:1 COMMAND='{command}' JOBDIR=/scratch/$USER
{extra}
{last}
"""


@pytest.fixture
def slurm(cluster: Cluster, slurm_is_up: None, nothing_left: None) -> Iterator[Slurm]:
    """Slurm without a job, before and after."""
    slurm = Slurm(cluster)
    yield slurm
    slurm.control("scancel", "--user=alice", check=False)
    wait_until(lambda: not slurm.control("squeue", "-h"), 60, "Slurm has no job")
    slurm.forget()


@pytest.fixture
def started(slurm: Slurm) -> Callable[..., int]:
    """Submit a script whose COMMAND writes ``started`` first, and wait until it has."""

    def start(text: str, *options: str) -> int:
        number = slurm.submit(text, *options)
        wait_until(
            lambda: slurm.read(number).startswith("started\n"),
            60,
            f"COMMAND runs: {slurm.read(number, 'err')}",
        )
        return number

    return start


def gone(cluster: Cluster, number: int) -> bool:
    """Whether Slurm's epilogs have kept their promise: no container when the job is over."""
    return containers(cluster, number) == {}


def test_mpi_runs_on_two_hosts_and_the_job_completes(cluster: Cluster, slurm: Slurm) -> None:
    number = slurm.submit(script("mpirun hello.openmpi"))
    job = slurm.wait(number, 90)
    assert (job.state, job.status) == ("COMPLETED", 0), slurm.read(number, "err")
    assert len(re.findall(r"^rank \d of 4 on ", slurm.read(number), re.MULTILINE)) == 4
    assert {name[-1] for name in re.findall(r"_node_\d", slurm.read(number))} == {"0", "1"}
    assert gone(cluster, number)


def test_the_tasks_of_an_array_are_jobs_with_exit_statuses_of_their_own(slurm: Slurm) -> None:
    text = script("exit $CODE", "export CODE=$SLURM_ARRAY_TASK_ID DOCKERJOB_ENVIRONMENT=CODE")
    array = slurm.submit(text, "--array=0,7")
    # A task gets a number of its own when it starts.
    wait_until(lambda: len(set(slurm.elements(array))) == 2, 120, "both tasks have started")
    ends = [slurm.wait(number, 120) for number in slurm.elements(array)]
    assert [(job.state, job.status) for job in ends] == [("COMPLETED", 0), ("FAILED", 7)]


@pytest.mark.parametrize(
    ("last", "status"), [(WRAPPER, "129|143"), (f"exec {WRAPPER}", "143")], ids=["called", "exec"]
)
def test_scancel_lets_command_tidy_up_and_nothing_is_left(
    cluster: Cluster, slurm: Slurm, started: Any, last: str, status: str
) -> None:
    """Slurm may tell the batch script's shell only, and kill the wrapper when that has ended."""
    number = started(script(TIDY, last=last))
    begin = time.monotonic()
    slurm.cancel(number)
    job = slurm.wait(number, 60)
    assert time.monotonic() - begin < KILL_WAIT + 5
    assert job.state == "CANCELLED"
    assert slurm.read(number) == "started\ntidied\n"
    # The broker was not hit: it says how the job ended.
    assert re.search(f"exit status ({status})", slurm.read(number, "err"))
    assert gone(cluster, number)


def test_a_command_that_does_not_go_is_gone_before_slurm_kills(
    cluster: Cluster, slurm: Slurm, started: Any
) -> None:
    number = started(script('trap "" TERM; echo started; while :; do sleep 0.1; done'))
    slurm.cancel(number)
    assert slurm.wait(number, 60).state == "CANCELLED"
    assert re.search("exit status (129|143)", slurm.read(number, "err"))
    assert gone(cluster, number)


def test_a_kill_of_everything_leaves_nothing(cluster: Cluster, slurm: Slurm, started: Any) -> None:
    number = started(script("echo started; sleep 300"))
    slurm.cancel(number, "--full", "--signal=KILL")
    assert slurm.wait(number, 60).state in ("FAILED", "CANCELLED")
    assert gone(cluster, number)
    # The broker has outlived it and takes down in order, so this does not wait for the end of a lease.
    wait_until(lambda: forgotten(cluster, number), 15, "etcd holds nothing of the job")


@slow
def test_the_epilog_waits_for_the_guards_if_the_broker_dies_too(
    cluster: Cluster, slurm: Slurm, started: Any
) -> None:
    number = started(script("echo started; sleep 300"))
    cluster.run("node1", "pkill", "-KILL", "-u", "dockerjob", "-f", "dockerjob-broker")
    job = slurm.wait(number, 60)
    assert (job.state, job.status) == ("FAILED", 137)
    assert gone(cluster, number)
    wait_until(lambda: forgotten(cluster, number), 60, "etcd holds nothing of the job")


def test_a_signal_for_the_batch_script_reaches_command(slurm: Slurm, started: Any) -> None:
    command = 'trap "echo warned; exit 9" USR1; echo started; while :; do sleep 0.1; done'
    number = started(script(command, last=f"exec {WRAPPER}"))
    slurm.cancel(number, "--batch", "--signal=USR1")
    job = slurm.wait(number, 60)
    assert (job.state, job.status) == ("FAILED", 9), slurm.read(number, "err")
    assert slurm.read(number) == "started\nwarned\n"


@slow
@pytest.mark.timeout(240)
def test_the_time_limit_ends_the_job(cluster: Cluster, slurm: Slurm, started: Any) -> None:
    """Slurm looks at limits about twice a minute, and the smallest is one."""
    number = started(script(TIDY), "--time=1")
    job = slurm.wait(number, 150)
    assert job.state == "TIMEOUT"
    assert slurm.read(number) == "started\ntidied\n"
    assert gone(cluster, number)


def test_a_suspended_job_stands_still_on_all_hosts_outlives_its_lease_and_goes_on(
    cluster: Cluster, slurm: Slurm, started: Any, site_config: Any
) -> None:
    site_config("limits", lease_ttl=10)
    number = started(script(COUNT))
    slurm.control("scontrol", "suspend", str(number))
    wait_until(lambda: len(containers(cluster, number, "paused")) == 2, 20, "both containers are paused")
    assert slurm.look(number).state == "SUSPENDED"
    stood = slurm.read(number)
    time.sleep(30)
    assert len(containers(cluster, number, "paused")) == 2
    assert slurm.read(number) == stood
    slurm.control("scontrol", "resume", str(number))
    job = slurm.wait(number, 60)
    assert (job.state, job.status) == ("COMPLETED", 0), slurm.read(number, "err")
    assert slurm.read(number).split() == ["started", *map(str, range(1, 61))]
    assert float(re.findall(r"suspended +([0-9.]+) s", slurm.read(number, "err"))[0]) >= 30


def test_a_suspended_job_can_be_cancelled(cluster: Cluster, slurm: Slurm, started: Any) -> None:
    number = started(script("echo started; sleep 300"))
    slurm.control("scontrol", "suspend", str(number))
    wait_until(lambda: len(containers(cluster, number, "paused")) == 2, 20, "both containers are paused")
    slurm.cancel(number)
    assert slurm.wait(number, 60).state == "CANCELLED"
    assert gone(cluster, number)


def test_a_requeued_job_runs_again_under_its_number(cluster: Cluster, slurm: Slurm, started: Any) -> None:
    count = "n=$(cat slurm/runs 2>/dev/null || echo 0); echo $((n+1)) >slurm/runs; [ $n = 1 ] && exit 0;"
    number = started(script(f"{count} echo started; sleep 300"))
    slurm.control("scontrol", "requeue", str(number))
    wait_until(lambda: slurm.look(number).state == "PENDING", 60, "it waits again")
    assert gone(cluster, number)
    # Slurm itself waits two minutes, until the first run's credentials are no longer good.
    slurm.control("scontrol", "update", f"JobId={number}", "StartTime=now")
    job = slurm.wait(number, 90)
    assert (job.state, job.status, job.restarts) == ("COMPLETED", 0, 1), slurm.read(number, "err")


LIMITS = """
import json
for path in ("memory/memory.limit_in_bytes", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"):
    print(open(f"/sys/fs/cgroup/{path}").read().strip())
print(json.load(open("/run/dockerjob/job/spec.json"))["lifetime"])
"""


def test_what_slurm_gave_becomes_the_limits_of_all_containers(
    cluster: Cluster, slurm: Slurm, site_config: Any
) -> None:
    site_config("batch", slurm={"squeue": "/usr/bin/squeue", "limits": "ask", "overtime": 60})
    site_config("limits", suspension=0)
    program = cluster.path("node1", "/scratch/alice/slurm_limits.py")
    program.write_text(LIMITS)
    try:
        show = "python3 $JOBDIR/slurm_limits.py"
        text = script(f"{show}; ssh ${{DOCKERJOB_JOB}}_node_1 {show}")
        number = slurm.submit(text, "--mem=300M", "--cpus-per-task=2", "--time=7")
        job = slurm.wait(number, 120)
    finally:
        program.unlink()
    assert (job.state, job.status) == ("COMPLETED", 0), slurm.read(number, "err")
    shown = [float(line) for line in slurm.read(number).split()]
    for memory, quota, period, lifetime in (shown[:4], shown[4:]):
        assert (memory, quota / period) == (300 << 20, 4.0)  # two tasks of two CPUs each
        # Seven minutes and what the site lets pass after it, less what the set-up took of it.
        assert 0 < lifetime <= 480
    record = last_record(cluster)
    limits = {"cpus": 4.0, "cpuset": None, "memory": 300 << 20, "swap": 0}
    assert record["limits"] == dict.fromkeys(("node1", "node2"), limits)
    assert (record["run_limit"], record["memory_limit"]) == (420, 300 << 20)


def test_a_job_that_exceeds_the_memory_of_its_cpus_is_told(
    cluster: Cluster, slurm: Slurm, site_config: Any
) -> None:
    site_config("batch", slurm={"squeue": "/usr/bin/squeue", "limits": "ask"})
    one = ("--nodes=1", "--nodelist=node1", "--ntasks-per-node=1", "--cpus-per-task=2", "--mem-per-cpu=100M")
    number = slurm.submit(script('exec python3 -c "a = [bytearray(1 << 20) for _ in range(1000)]"'), *one)
    job = slurm.wait(number, 120)
    said = slurm.read(number, "err")
    assert (job.state, job.status) == ("FAILED", 137), said
    assert f"{number}_node_0 on node1 ran out of memory" in said
    record = last_record(cluster)
    assert (record["memory_limit"], record["limits"]["node1"]["memory"]) == (100 << 20, 200 << 20)


def test_false_claims_are_refused(cluster: Cluster, slurm: Slurm, started: Any) -> None:
    """Of another's job, in every variable, and of a host more in an own one."""
    number = started(script("echo started; sleep 300"))
    claim = [
        f"SLURM_JOB_ID={number}", "SLURM_JOB_NODELIST=node[1-2]", "SLURM_TASKS_PER_NODE=2(x2)",
        "APPLICATION=mpihello:1", "COMMAND=true", "JOBDIR=/scratch/bob",
    ]  # fmt: skip
    said = cluster.run(
        "node1", *environment_of("bob", claim), "sh", "-c", f"{WRAPPER} 2>&1; echo status $?", check=False
    )
    assert f"job {number} is not yours, bob" in said
    assert said.endswith("status 202\n")
    more = slurm.submit(
        script("true", "export SLURM_JOB_NODELIST=node[1-3] SLURM_JOB_NUM_NODES=3 SLURM_TASKS_PER_NODE='1(x3)'"
               " SLURM_JOB_CPUS_PER_NODE='2(x3)'")
    )  # fmt: skip
    assert slurm.wait(more, 60).status == 202
    assert "was not given what is claimed: Slurm gave node1 node2" in slurm.read(more, "err")
    slurm.cancel(number)
    slurm.wait(number, 60)
