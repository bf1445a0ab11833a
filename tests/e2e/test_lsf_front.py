# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's LSF as its users type it: bsub, bjobs, bkill and their like, on top of the lab's Slurm."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest
from dockerjob_lab.client import ROOT, Cluster
from job_fixtures import WRAPPER, containers, forgotten, slow, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

FIELDS = "jobid jobindex stat user exec_host runtimelimit run_time memlimit"
TIDY = 'trap "echo tidied; exit 0" TERM INT; echo started; while :; do sleep 0.1; done'


class Front:
    """alice, logged in on node3."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def argv(self, line: str, user: str = "alice") -> list[str]:
        # Not -c: that would take the terminal away.
        login = ["runuser", "-l", user, f"--session-command=cd /scratch/{user}; {line}"]
        return ["nsenter", "-t", str(self.cluster.pids["node3"]), "-a", *login]

    def type(
        self, line: str, text: str = "", user: str = "alice", timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Type a line, with *text* on standard input."""
        return subprocess.run(
            self.argv(line, user),
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd="/",
        )

    def say(self, line: str, text: str = "") -> str:
        """Type a line that must work, and return what it prints."""
        done = self.type(line, text)
        assert done.returncode == 0, (line, done)
        return done.stdout

    def submit(self, line: str, text: str = "") -> int:
        """Type a bsub, and return the job's number."""
        match = re.search(
            r"^Job <(\d+)> is submitted to (default )?queue <\w+>\.$", self.say(line, text), re.M
        )
        assert match
        return int(match[1])

    def state(self, label: int | str) -> str:
        return self.say(f"bjobs -o stat -noheader '{label}'").strip()

    def wait(self, label: int | str, *states: str) -> None:
        wait_until(lambda: self.state(label) in states, 120, f"job {label} is one of {states}")

    def file(self, name: str) -> str:
        path = self.cluster.path("node3", f"/scratch/alice/{name}")
        return path.read_text() if path.exists() else ""


@pytest.fixture
def front(cluster: Cluster, slurm_is_up: None, nothing_left: None) -> Iterator[Front]:
    """The commands, without a job of Slurm's before and after."""
    cluster.run("node3", "install", "-d", "-o", "alice", "-g", "alice", "/scratch/alice")
    wait_until(lambda: not cluster.run("head", "squeue", "-h"), 120, "Slurm has no job of another test")
    # What other tests have had lab.py's LSF say of jobs that are over.
    cluster.run("node3", "find", "/share/lsf/jobs", "-name", "*.json", "-delete")
    yield Front(cluster)
    cluster.run("head", "scancel", "--user=alice", check=False)
    wait_until(lambda: not cluster.run("head", "squeue", "-h"), 120, "Slurm has no job")
    cluster.run("node3", "sh", "-c", "rm -rf /scratch/alice/front.* /home/alice/.lsbatch /home/alice/mbox")


def script(command: str, options: str = "") -> str:
    """A script whose container job runs on two hosts; *command* stands between single quotes."""
    return f"""#!/bin/bash
#BSUB -J front -n 4 -R "span[ptile=2]" -m "node1 node2" -W 10
#BSUB -o front.%J.out {options}
export APPLICATION=mpihello:1 COMMAND='{command}' JOBDIR=/scratch/$USER
{WRAPPER}
"""


def test_a_script_runs_in_containers_and_lsf_reports(cluster: Cluster, front: Front) -> None:
    command = "mpirun hello.openmpi; until test -e front.go; do sleep 0.2; done; exit 3"
    number = front.submit("bsub -e front.%J.err", script(command))
    wait_until(
        lambda: "rank 3 of 4" in front.type(f"bpeek {number}").stdout, 120, "bpeek shows what it wrote"
    )
    header, first, second = front.say(f"bjobs {number}").splitlines()
    assert first.split()[:7] == [str(number), "alice", "RUN", "normal", "node3", "2*node1", "front"]
    assert second.split() == ["2*node2"]
    assert header.startswith("JOBID ")
    # The broker's question, as its account asks it.
    ask = [
        "runuser",
        "-u",
        "dockerjob",
        "--",
        "/share/lsf/bin/bjobs",
        "-a",
        "-X",
        "-o",
        FIELDS,
        "-json",
        str(number),
    ]
    said = cluster.run("node2", *ask)
    assert said.startswith("LSF is processing your request.")
    [record] = json.loads(said[said.index("{") :])["RECORDS"]
    assert (record["STAT"], record["USER"], record["EXEC_HOST"]) == ("RUN", "alice", "2*node1:2*node2")
    assert record["RUNTIMELIMIT"] == "10.0"
    assert re.search(r"^node1 +ok +- +4 +2 +2 +0 +0 +0$", front.say("bhosts"), re.M)
    assert re.search(r"^normal .* 4 +0 +4 +0$", front.say("bqueues"), re.M)
    assert "node3" in front.say("lshosts")
    assert str(number) in front.say("/share/dockerjob/bin/dockerjob jobs")
    front.say("touch front.go")
    front.wait(number, "EXIT")
    assert containers(cluster, number) == {}
    told = front.file(f"front.{number}.out")
    assert f"Subject: Job {number}: <front> in cluster <lab> Exited" in told
    assert "Exited with exit code 3." in told
    assert "Resource usage summary:" in told
    assert told.count(" of 4 on ") == 4
    assert "exit status 3" in front.file(f"front.{number}.err")
    assert "Exited with exit code 3." in front.say(f"bjobs -l {number}")
    assert str(number) not in front.type("bjobs").stdout


def test_the_process_is_as_lsf_makes_it(front: Front) -> None:
    line = "readlink /proc/self/fd/0; grep SigIgn /proc/self/status; ps -o pgid= -p \\$\\$; echo \\$LS_JOBPID; env"
    done = front.type(f'GIVEN=yes bsub -K -n 2 -o front.env "{line}"')
    assert done.returncode == 0, done
    assert "<<Waiting for dispatch ...>>\n<<Starting on node" in done.stderr
    assert "<<Job is finished>>" in done.stderr
    stdin, ignored, group, job_pid, *environment = (
        front.file("front.env").split("follows:\n\n")[1].splitlines()
    )
    assert stdin == "/dev/null"
    assert int(ignored.split()[1], 16) & ~(0b11 << 31) == 1
    assert group.strip() == job_pid
    assert "GIVEN=yes" in environment
    assert "LSB_SUB_HOST=node3" in environment
    assert not [each for each in environment if each.startswith("SLURM_")]


@pytest.mark.parametrize(
    ("queue", "tidied"), [("normal", True), ("killonly", False)], ids=["INT-TERM-KILL", "KILL"]
)
def test_bkill_as_the_queue_says_leaves_nothing(
    cluster: Cluster, front: Front, queue: str, tidied: bool
) -> None:
    number = front.submit(f"bsub -q {queue}", script(TIDY))
    wait_until(lambda: "started" in front.type(f"bpeek {number}").stdout, 120, "COMMAND runs")
    assert front.type(f"bkill {number}", user="bob").stderr == f"Job <{number}>: User permission denied\n"
    assert front.say(f"bkill {number}") == f"Job <{number}> is being terminated\n"
    front.wait(number, "EXIT")
    wait_until(
        lambda: "TERM_OWNER: job killed by owner." in front.file(f"front.{number}.out"), 120, "LSF's report"
    )
    # After SIGKILL of the wrapper COMMAND may have time for that, or not.
    assert "tidied" in front.file(f"front.{number}.out") or not tidied
    wait_until(lambda: not containers(cluster, number), 60, "no container is left")
    wait_until(lambda: forgotten(cluster, number), 120, "etcd holds nothing of the job")
    assert front.type(f"bkill {number}").stderr == f"Job <{number}>: Job has already finished\n"


def test_bstop_freezes_the_containers_and_bresume_lets_them_go_on(cluster: Cluster, front: Front) -> None:
    number = front.submit(
        "bsub", script("echo started; until test -e front.go; do sleep 0.2; done; echo done")
    )
    wait_until(lambda: "started" in front.type(f"bpeek {number}").stdout, 120, "COMMAND runs")
    assert front.say(f"bstop {number}") == f"Job <{number}> is being stopped\n"
    wait_until(lambda: len(containers(cluster, number, "paused")) == 2, 60, "both containers are paused")
    assert front.state(number) == "USUSP"
    front.say("touch front.go")
    assert front.say(f"bresume {number}") == f"Job <{number}> is being resumed\n"
    front.wait(number, "DONE")
    assert "Successfully completed." in front.file(f"front.{number}.out")


def test_an_array_runs_few_at_a_time_and_each_element_is_a_job(cluster: Cluster, front: Front) -> None:
    text = script("exit $LSB_JOBINDEX", '-J "front[1-3:2]%1" -o front.%I')
    number = front.submit("bsub", text)
    pending = [line.split()[2] for line in front.say(f"bjobs -w {number}").splitlines()[1:]]
    assert "PEND" in pending
    for index in (1, 3):
        front.wait(f"{number}[{index}]", "EXIT")
        assert f"Exited with exit code {index}." in front.file(f"front.{index}")
    assert f"{number}[3]" in front.say(f"bjobs -l '{number}[3]'")
    wait_until(lambda: forgotten(cluster, number), 120, "etcd holds nothing of the array")


def test_an_esub_makes_a_container_job_of_a_command(front: Front) -> None:
    esub = '-a "docker(mpihello:1, /scratch/alice)"'
    done = front.type(f'bsub -K {esub} -n 2 -R "span[ptile=1]" -o front.esub mpirun hello.openmpi')
    assert done.returncode == 0, (done, front.file("front.esub"))
    assert "rank 1 of 2 on" in front.file("front.esub")
    refused = front.type('bsub -a "docker(NO:GOOD)" true')
    assert refused.returncode == 255
    assert "'NO:GOOD' is no image name" in refused.stderr


@pytest.mark.parametrize("option", ["-x", "-w 'done(1)'", "-q none", "-n 0", "-app none", "-J 'a[0]'"])
def test_what_it_does_not_know_is_refused_in_a_line(front: Front, option: str) -> None:
    done = front.type(f"bsub {option} true")
    assert (done.returncode, done.stdout) == (255, "")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_an_interactive_job_has_a_terminal(front: Front) -> None:
    """With sizes and keys; without a terminal, streams and the exit status."""
    done = front.type("bsub -I 'read line; echo got $line; echo bad >&2; exit 6'", "words\n")
    assert (done.returncode, done.stdout.splitlines()[1:]) == (6, ["got words"])
    assert "bad\n" in done.stderr
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (31, 97))
    command = 'trap "echo broken" INT; trap "stty size" WINCH; tty; stty size; echo ready; while :; do sleep 0.1; done'
    argv = ["setsid", "--ctty", *front.argv(f"bsub -Is '{command}'")]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd="/") as process:
        os.close(theirs)
        screen = Screen(ours)
        assert "31 97" in screen.until("ready")
        termios.tcsetwinsize(ours, (20, 60))
        screen.until("20 60")
        os.write(ours, b"\x03")
        screen.until("broken")
        number = re.findall(r"Job <(\d+)>", screen.text)[0]
        assert front.say(f"bkill -s KILL {number}") == f"Job <{number}> is being signaled\n"
        assert process.wait(120) == 137
    os.close(ours)


class Screen:
    """What a terminal has shown."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.text = ""

    def until(self, wanted: str, seconds: float = 120) -> str:
        os.set_blocking(self.descriptor, False)
        end = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < end, self.text
            try:
                self.text += os.read(self.descriptor, 4096).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.1)
        return self.text


@slow
@pytest.mark.timeout(240)
def test_the_run_limit_warns_command(front: Front) -> None:
    command = 'trap "echo warned; exit 9" USR2; echo started; while :; do sleep 0.1; done'
    number = front.submit("bsub -W 1", script(command))
    front.wait(number, "RUN", "EXIT")
    wait_until(lambda: front.state(number) == "EXIT", 180, "it has ended")
    told = front.file(f"front.{number}.out")
    # The script's shell gets the signal as well, and has no trap.
    assert "TERM_RUNLIMIT: job killed after reaching LSF run time limit.\nExited with exit code 140." in told
    assert "warned" in told


def test_the_demos_kinds_of_jobs_are_in_one_list(cluster: Cluster, front: Front) -> None:
    """What lab.py starts without a scheduler is seen beside what bsub hands to Slurm."""
    process = cluster.start("#BSUB -J direct\nsleep 30\n", hosts="node1")
    try:
        number = front.submit("bsub -J queued -o front.q sleep 100")
        wait_until(lambda: {"direct", "queued"} <= set(front.say("bjobs -w").split()), 60, "both are shown")
        assert (ROOT / "examples/pitzdaily.bsub").exists()
        front.say("bkill 0")
        front.wait(number, "EXIT")
    finally:
        process.terminate()
        process.communicate(timeout=60)
