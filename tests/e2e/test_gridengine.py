# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs under a real Grid Engine on two hosts of the lab, with the site files of ``integration/gridengine``."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dockerjob_lab.client import CONFIG, ROOT, Cluster
from job_fixtures import WRAPPER, containers, forgotten, wait_until
from terminals import SLEEP, Person, within

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

PACKAGES = ("gridengine-master", "gridengine-exec", "gridengine-client")
HOSTS = ("node1", "node2")
SGE = ("env", "SGE_ROOT=/var/lib/gridengine", "SGE_CELL=default")
DIRECTORY = "/scratch/alice/gridengine"
MPI = "mpirun hello.openmpi"


def packages() -> list[Path]:
    """Grid Engine's packages, and what they need that this machine has not."""
    cache = ROOT / ".lab/gridengine"
    if not list(cache.glob("gridengine-exec_*.deb")):
        (cache / "partial").mkdir(parents=True, exist_ok=True)
        argv = ["apt-get", "install", "--yes", "--no-install-recommends", "--download-only"]
        options = ["-o", f"Dir::Cache::archives={cache}", "-o", "Debug::NoLocking=1"]
        subprocess.run([*argv, *options, *PACKAGES], check=True, capture_output=True, timeout=250)
    return list(cache.glob("*.deb"))


@pytest.fixture(scope="module")
def grid_engine(cluster: Cluster) -> Iterator[Cluster]:
    """A cell of two hosts with two slots each, and brokers that ask it."""
    share = cluster.path("node1", "/share/gridengine")
    share.mkdir(exist_ok=True)
    for package in packages():
        shutil.copy(package, share)
    shutil.copy(Path(__file__).with_name("gridengine.sh"), share)
    script = "/share/gridengine/gridengine.sh"
    with contextlib.ExitStack() as stack:
        for host in HOSTS:
            cluster.run(host, script, "install")
            stack.callback(cluster.run, host, script, "stop")
            config = cluster.path(host, CONFIG)
            original = config.read_text()
            stack.callback(config.write_text, original)
            document = yaml.safe_load(original)
            settings = {"qstat": "/usr/bin/qstat", "environment": {"SGE_ROOT": "/var/lib/gridengine"}}
            document["batch"]["gridengine"] = settings
            config.write_text(yaml.safe_dump(document))
        cluster.run("node1", script, "master", *HOSTS)
        for host in HOSTS:
            cluster.run(host, script, "execd")
        cluster.run("node1", "sh", "-c", f"rm -rf {DIRECTORY}; mkdir {DIRECTORY}; chown alice {DIRECTORY}")
        yield cluster


def alice(cluster: Cluster, *argv: str) -> str:
    place = ("env", f"--chdir={DIRECTORY}", *SGE[1:])
    return cluster.run("node1", "setpriv", "--reuid=alice", "--regid=alice", "--init-groups", *place, *argv)


def qsub(cluster: Cluster, *options: str, script: str = "") -> str:
    """Submit words, or a script's text; return the job's number."""
    if script:
        cluster.path("node1", f"{DIRECTORY}/script.sh").write_text(script)
    words = [*options, "script.sh"] if script else options
    return (
        alice(cluster, "qsub", "-terse", "-cwd", "-j", "y", "-pe", "docker", "4", *words)
        .split(".")[0]
        .strip()
    )


def running(cluster: Cluster) -> bool:
    return bool(alice(cluster, "qstat").strip())


def ended(cluster: Cluster, number: str, seconds: float = 90) -> tuple[int, str]:
    """Wait until a job is over; return its exit status, as the accounting has it, and its output."""
    wait_until(lambda: not running(cluster), seconds, f"job {number} is over")
    [output] = cluster.path("node1", DIRECTORY).glob(f"*.o{number}*")
    for _ in range(60):
        account = cluster.run("node1", *SGE, "qacct", "-j", number, check=False)
        if found := re.search(r"^exit_status\s+(\d+)", account, re.MULTILINE):
            return int(found[1]), output.read_text()
        time.sleep(0.5)
    pytest.fail(f"there is no account of job {number}")


@pytest.mark.usefixtures("nothing_left")
def test_words_and_scripts_need_no_wrapper_line(grid_engine: Cluster) -> None:
    image = ("-v", "APPLICATION=mpihello:1")
    number = qsub(grid_engine, *image, "-b", "y", *MPI.split())
    status, output = ended(grid_engine, number)
    assert status == 0, output
    assert len(re.findall(rf"^rank \d of 4 on {number}_node_[01]", output, re.MULTILINE)) == 4, output
    script = '#!/bin/bash\necho "$SGE_TASK_ID of $SGE_TASK_FIRST-$SGE_TASK_LAST, $NSLOTS slots"\nhostname\nexit 3\n'
    number = qsub(grid_engine, *image, "-t", "3-3", script=script)
    status, output = ended(grid_engine, number)
    assert status == 3, output
    assert output.startswith(f"3 of 3-3, 4 slots\n{number}_3_node_0\n")


@pytest.mark.usefixtures("nothing_left")
def test_suspension_and_deletion_reach_the_containers(grid_engine: Cluster) -> None:
    number = qsub(grid_engine, "-v", "APPLICATION=mpihello:1", "-b", "y", "sleep", "300")
    wait_until(lambda: len(containers(grid_engine, number, "running")) == 2, 60, "two containers run")
    time.sleep(3)  # discovery
    grid_engine.run("node1", *SGE, "qmod", "-sj", number)
    wait_until(lambda: len(containers(grid_engine, number, "paused")) == 2, 20, "both are frozen")
    grid_engine.run("node1", *SGE, "qmod", "-usj", number)
    wait_until(lambda: len(containers(grid_engine, number, "running")) == 2, 20, "both go on")
    alice(grid_engine, "qdel", number)
    status, output = ended(grid_engine, number)
    assert status == 143, output
    assert containers(grid_engine, number) == {}


@pytest.mark.usefixtures("nothing_left")
def test_the_slots_of_a_killed_job_are_free_when_nothing_is_left(grid_engine: Cluster) -> None:
    script = f"#!/bin/bash\nexport APPLICATION=mpihello:1 COMMAND='sleep 300' JOBDIR={DIRECTORY}\n"
    number = qsub(grid_engine, script=f"{script}/share/bin/hpc_submit_dockerjob\n")
    wait_until(lambda: len(containers(grid_engine, number, "running")) == 2, 60, "two containers run")
    # Grid Engine may have put the script on either host.
    for program in ("dockerjob-broker", "bin/hpc_submit_dockerjob"):
        for host in HOSTS:
            grid_engine.run(host, "pkill", "-KILL", "-f", program, check=False)
    wait_until(lambda: not running(grid_engine), 150, "the job is over")
    assert containers(grid_engine, number) == {}
    assert forgotten(grid_engine, number)
    assert ended(grid_engine, number)[0] == 137


@pytest.mark.usefixtures("nothing_left")
def test_a_shell_of_qlogin_is_the_job(grid_engine: Cluster) -> None:
    user = ("setpriv", "--reuid=alice", "--regid=alice", "--init-groups")
    argv = (*user, "env", f"--chdir={DIRECTORY}", *SGE[1:], "HOME=/home/alice", "USER=alice", "TERM=xterm")
    person = Person(within(grid_engine.pids["node1"], *argv, "qlogin", "-pe", "docker", "4"), timeout=120)
    try:
        # What is typed before ends qlogin (seen with 8.1.9).
        person.sees(r"\$ ")
        person.asks("echo job $((JOB_ID+0)) has $((NSLOTS+0)) slots", r"job [1-9]\d* has 4 slots")
        person.types(
            "APPLICATION=mpihello:1 COMMAND='PS1=ready\\> exec bash --norc --noprofile -i' "
            f"JOBDIR={DIRECTORY} {WRAPPER}; echo ended $?\r"
        )
        person.sees("ready>")
        person.asks("hostname", r"\s\d+_node_0\s")
        person.asks(f"{MPI} | grep -c 'of 4 on'", r"\s4\r")
        person.asks(*SLEEP)
        person.types("\x03")
        person.sees(r"\^C[^>]*ready>")
        person.asks("echo interrupted $?", "interrupted 130")
        person.types("exit 7\r")
        person.sees("ended 7")
        person.types("exit\r")
        person.ends()
    finally:
        person.leaves()
    wait_until(lambda: not running(grid_engine), 90, "the job is over")
