# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs that try to exceed each of their limits, and what their reports say that they used."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerjob.request import JobRequest
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_lab.client import Cluster, Outcome
from job_fixtures import containers, finish, job, last_record, signal_wrapper, started, wait_until

from .test_defences import Broker

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

MIB = 1 << 20
NUMBER = 987_400
USED = re.compile(
    r"used +CPU ([0-9.]+) s \(user [0-9.]+ s, system [0-9.]+ s\), memory ([0-9.]+) MiB at most on a host, "
    r"block devices (.*?), network ([0-9.]+) MiB sent and ([0-9.]+) MiB received$",
    re.MULTILINE,
)
BURN = """
import os, sys, time
count, seconds = int(sys.argv[1]), float(sys.argv[2])
begin, ended = time.monotonic(), []
for _ in range(count):
    if not os.fork():
        while time.monotonic() < begin + seconds:
            pass
        os._exit(0)
for _ in range(count):
    os.wait()
passed, times = time.monotonic() - begin, os.times()
print((times.children_user + times.children_system) / passed)
"""
COMPUTE = """
import time
while time.process_time() < 2:
    pass
"""
OPEN = """
import os
files = []
try:
    while len(files) < 100000:
        files.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(error.strerror, len(files))
"""
FORK = """
import os, signal
children = []
try:
    while len(children) < 100000:
        child = os.fork()
        if not child:
            signal.pause()
        children.append(child)
except OSError as error:
    print(error.strerror, len(children))
for child in children:
    os.kill(child, signal.SIGKILL)
    os.wait()
"""
RAISE = """
import resource
for name in ("NOFILE", "MEMLOCK"):
    number = getattr(resource, f"RLIMIT_{name}")
    soft, hard = resource.getrlimit(number)
    try:
        resource.setrlimit(number, (hard + 1, hard + 1))
    except ValueError as error:
        print(name, hard, error)
"""


@pytest.fixture
def python(cluster: Cluster) -> Iterator[Any]:
    """Put a program into alice's directory, and return the COMMAND that runs it."""
    paths = []

    def put(code: str, *arguments: Any) -> str:
        path = cluster.path("node1", "/scratch/alice/limits.py")
        path.write_text(code)
        paths.append(path)
        return " ".join(["python3 limits.py", *map(str, arguments)])

    yield put
    for path in paths:
        path.unlink(missing_ok=True)


def alone(cluster: Cluster, command: str, options: str = "", **changes: Any) -> Outcome:
    """Run a job that has one slot of one host."""
    script = job(command, **{"slots": 1, "ptile": 1, **changes})
    return cluster.submit(script.replace("#BSUB -J e2e\n", f"#BSUB -J e2e\n{options}"))


def test_two_processes_on_one_slot_have_one_cpu(cluster: Cluster, python: Any) -> None:
    done = alone(cluster, python(BURN, 2, 4))
    assert done.status == 0, done.err
    # Without a limit they have as much of two CPUs as the machine has left.
    assert 0 < float(done.out) < 1.25
    record = last_record(cluster)
    assert record["limits"] == {"node1": {"cpus": 1.0, "cpuset": None, "memory": None, "swap": 0}}
    assert record["total"]["cpu"] < 1.25 * sum(
        record["phases"][name] for name in ("start", "discovery", "compute")
    )


def test_the_site_s_share_of_a_slot_holds_back(cluster: Cluster, python: Any, site_config: Any) -> None:
    site_config("container", cpus_per_slot=0.5)
    done = alone(cluster, python(BURN, 2, 4))
    assert done.status == 0, done.err
    assert 0 < float(done.out) < 0.65


def test_a_job_bound_to_a_cpu_stays_on_it(cluster: Cluster) -> None:
    """As the batch system binds the job's processes, the broker's among them."""
    script = job("grep Cpus_allowed_list /proc/self/status", slots=2, ptile=2)
    done = cluster.submit(script.replace("/share/bin/hpc_submit", "taskset -c 1 /share/bin/hpc_submit"))
    assert (done.status, done.out.split()[1:]) == (0, ["1"]), done.err
    assert last_record(cluster)["limits"]["node1"]["cpuset"] == "1"


def test_every_node_is_bound_as_the_batch_system_s_own_cgroup_is(cluster: Cluster) -> None:
    number = NUMBER + 4
    group = Path(f"/sys/fs/cgroup/cpuset/lsf/{cluster.name}/job.{number}.1.1")
    group.mkdir(parents=True)
    try:
        for each in (group.parents[1], group.parent, group):
            for file in ("cpuset.mems", "cpuset.cpus"):
                (each / file).write_text("0" if file == "cpuset.mems" else "0-1")
        (group / "cpuset.cpus").write_text("1")
        where = "grep Cpus_allowed_list /proc/self/status"
        done = cluster.submit(job(f"{where}; ssh ${{DOCKERJOB_JOB}}_node_1 {where}"), number=number)
    finally:
        for each in (group, group.parent, group.parents[1]):
            each.rmdir()
    assert (done.status, done.out.split()[1::2]) == (0, ["1", "1"]), done.err


def test_the_batch_system_s_memory_limit_ends_what_exceeds_it(cluster: Cluster) -> None:
    command = 'exec python3 -c "a = [bytearray(1 << 20) for _ in range(1000)]"'
    done = alone(cluster, command, "#BSUB -M 200MB\n")
    assert done.status == 137, done.err
    assert re.search(r"note +\d+_node_0 on node1 ran out of memory", done.err), done.err
    record = last_record(cluster)
    assert (record["memory_limit"], record["limits"]["node1"]["memory"]) == (200 * MIB, 200 * MIB)
    # The job's cgroup has a little of its own beside its container's.
    assert 150 * MIB < record["total"]["memory"] < 201 * MIB


def test_the_site_s_ceiling_is_below_what_the_user_asks_for(cluster: Cluster, site_config: Any) -> None:
    site_config("container", memory_per_slot="128MiB")
    shown = (
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"
    )
    done = alone(cluster, shown, "#BSUB -M 100GB\n")
    # Equal: what is in memory and what is swapped together, so nothing can be swapped instead.
    assert (done.status, done.out.split()) == (0, [str(128 * MIB)] * 2), done.err


def test_too_little_memory_to_start_is_said_first(cluster: Cluster) -> None:
    done = alone(cluster, "true", "#BSUB -M 10MB\n")
    assert (done.status, done.out) == (201, "")
    assert "10 MiB of memory on node1, and a container needs 64 MiB to start; ask for more" in done.err


def test_files_beyond_the_limit_are_not_opened(cluster: Cluster, python: Any, site_config: Any) -> None:
    site_config("container", ulimits=[{"name": "nofile", "soft": 300, "hard": 300}])
    done = alone(cluster, python(OPEN))
    said, count = done.out.strip().rsplit(" ", 1)
    assert (done.status, said) == (0, "Too many open files"), done.err
    assert 200 < int(count) < 300


def test_processes_beyond_the_limit_are_not_forked(cluster: Cluster, python: Any, site_config: Any) -> None:
    site_config("container", pids=100)
    done = alone(cluster, python(FORK))
    said, count = done.out.strip().rsplit(" ", 1)
    assert (done.status, said) == (0, "Resource temporarily unavailable"), done.err
    assert 50 < int(count) < 100


def test_a_user_can_not_raise_a_limit(cluster: Cluster, python: Any) -> None:
    done = alone(cluster, python(RAISE))
    assert done.status == 0, done.err
    assert done.out.splitlines() == [
        "NOFILE 16384 not allowed to raise maximum limit",
        f"MEMLOCK {8 * MIB} not allowed to raise maximum limit",
    ]


def test_a_job_ends_at_the_batch_system_s_run_limit(cluster: Cluster, site_config: Any) -> None:
    """Where the batch system itself does not end it: four seconds are left, and no time beyond."""
    bjobs = {"bjobs": "/share/lsf/bin/bjobs", "limits": "ask", "overtime": 0}
    site_config("batch", lsf=bjobs)
    limits = {"RUNTIMELIMIT": "1.0", "RUN_TIME": "50 second(s)", "MEMLIMIT": ""}
    cluster.record_job(NUMBER, "alice", [("node1", 2)], limits=limits)
    allocation = Allocation("lsf", NUMBER, None, (HostSlots("node1", 2),))
    request = JobRequest(allocation, "mpihello:1", b"echo started; sleep 100; echo late", "/scratch/alice")
    broker = Broker(cluster, "node1", "alice", [], request.to_json())
    status, out, err = broker.end(90)
    broker.hang_up()
    assert (status, out) == (205, "started\n"), err
    assert "hpc_submit_dockerjob: LSF's run limit of 60 s is reached" in err
    assert last_record(cluster)["run_limit"] == 60


def test_the_report_says_what_all_nodes_used_and_the_batch_system_is_told(
    cluster: Cluster, python: Any
) -> None:
    send = "head -c 30000000 /dev/zero | ssh ${DOCKERJOB_JOB}_node_1 wc -c"
    number = NUMBER + 1
    posted = cluster.path("node1", f"/share/lsf/messages/{number}")
    posted.unlink(missing_ok=True)
    done = cluster.submit(job(f"{python(COMPUTE)}; {send}"), number=number)
    assert (done.status, done.out.strip()) == (0, "30000000"), done.err
    record = last_record(cluster)
    node1, node2 = record["usage"]["node1"], record["usage"]["node2"]
    assert node1["network_sent"] > 30_000_000 > 5_000_000 > node1["network_received"]
    assert node2["network_received"] > 30_000_000
    assert 2 < node1["cpu"] < 30
    assert 20 * MIB < node1["memory"] < 2000 * MIB
    found = USED.search(done.err)
    assert found, done.err
    assert float(found[1]) == pytest.approx(record["total"]["cpu"], abs=0.01)
    assert (
        posted.read_text()
        == f"dockerjob: exit status 0, compute {record['phases']['compute']:.0f} s, suspended 0 s, "
        + (found[0].partition("used")[2].strip() + "\n")
    )


def test_what_was_used_is_known_however_the_job_ends(cluster: Cluster, python: Any) -> None:
    process = started(cluster, job(f"{python(COMPUTE)}; echo started; sleep 100"), number=NUMBER + 2)
    signal_wrapper(cluster, "TERM")
    _, err = finish(process)
    assert process.returncode == 143, err
    assert last_record(cluster)["usage"]["node1"]["cpu"] > 2


def test_suspended_time_is_told_apart(cluster: Cluster) -> None:
    number = NUMBER + 3
    posted = cluster.path("node1", f"/share/lsf/messages/{number}")
    posted.unlink(missing_ok=True)
    process = started(cluster, job("echo started; sleep 3"), number=number)
    signal_wrapper(cluster, "TSTP")
    wait_until(lambda: len(containers(cluster, number, "paused")) == 2, 20, "both containers are paused")
    time.sleep(6)
    signal_wrapper(cluster, "CONT")
    _, err = finish(process)
    assert process.returncode == 0, err
    record = last_record(cluster)
    assert record["suspended"] >= 6
    compute = record["phases"]["compute"] - record["suspended"]
    assert f"compute {compute:.0f} s, suspended {record['suspended']:.0f} s" in posted.read_text()


def test_a_message_that_is_not_taken_is_a_note(cluster: Cluster, site_config: Any) -> None:
    site_config("batch", lsf={"bjobs": "/share/lsf/bin/bjobs", "bpost": "/usr/bin/false"})
    done = alone(cluster, "exit 3")
    assert done.status == 3
    assert "note         what the job used was not given to the batch system: bpost ended with 1" in done.err
