# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Interactive jobs: somebody at a real terminal, in jobs of the lab's LSF and of a real Slurm."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerjob_lab.client import LAB, Cluster
from dockerjob_lab.model import HEAD
from dockerjob_lab.slurm import environment_of
from job_fixtures import WRAPPER, forgotten, wait_until
from terminals import SLEEP, Person, within

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400), pytest.mark.usefixtures("nothing_left")]

SHELL = "PS1=ready\\> exec bash --norc --noprofile -i"
REQUEST = "export APPLICATION=mpihello:1 JOBDIR=/scratch/alice TERM=xterm"
SETTINGS = r"settings (\S+)\s"
"""What stty(1) says of the terminal, before and after the wrapper."""

Sits = Callable[..., Person]


@pytest.fixture
def sits(cluster: Cluster, tmp_path: Path) -> Iterator[Sits]:
    """Somebody submits with ``bsub -Is`` a script that runs COMMAND."""
    people = []

    def sit(command: str, extra: str = "") -> Person:
        script = tmp_path / "script"
        script.write_text(
            f"#!/bin/bash\n#BSUB -n 4\n#BSUB -R 'span[ptile=2]'\n{REQUEST}\nexport COMMAND='{command}'\n{extra}\n"
            f"echo settings $(stty -g)\n{WRAPPER}\nstatus=$?\necho settings $(stty -g)\nexit $status\n"
        )
        argv = [*LAB, "--name", cluster.name, "submit", str(script), "--pty"]
        people.append(Person([*argv, "--user", "alice", "--hosts", "node1,node2"], timeout=120))
        return people[-1]

    yield sit
    for person in people:
        person.leaves()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_shell_in_node_0(cluster: Cluster, sits: Sits) -> None:
    person = sits(SHELL)
    before = person.sees(SETTINGS)[1]
    person.sees("ready>")
    person.asks("tty; hostname; echo $TERM $USER", r"/dev/pts/\d+\s+\d+_node_0\s+xterm alice\s")
    person.asks("stty size", r"\s40 500\s")
    person.child.setwinsize(50, 600)
    person.asks("until [ \"$(stty size)\" = '50 600' ]; do sleep 0.1; done; echo resized $?", "resized 0")
    person.asks(*SLEEP)
    person.types("\x03")
    person.sees(r"\^C[^>]*ready>")
    person.asks("echo interrupted $?", "interrupted 130")
    other = person.asks("ssh ${HOSTNAME%0}1 hostname", r"\s(\d+_node_1)\s")[1].decode()
    person.asks(f"ssh -t {other} 'tty; exit 5'; echo there $?", r"/dev/pts/\d+\s+there 5")
    person.asks("mpirun hello.openmpi | grep -c 'of 4 on'", r"\s4\r")
    person.types("exit 7\r")
    assert person.sees(SETTINGS)[1] == before
    assert b"exit status 7" in person.child.before
    assert person.ends() == 7


def test_a_megabyte_is_pasted_whole_and_ten_come_back(cluster: Cluster, sits: Sits) -> None:
    person = sits("stty -echo; echo paste; cat >pasted; sha256sum pasted; yes | head -c 10M; echo all")
    person.sees("paste\r\n")
    text = base64.b64encode(os.urandom(750_000))
    lines = b"".join(text[at : at + 1000] + b"\r" for at in range(0, len(text), 1000))
    person.types(lines.decode() + "\x04")
    person.sees(digest(lines.replace(b"\r", b"\n")))
    person.sees("all\r\n")
    assert person.child.before.count(b"y\r\n") == 5 << 20
    person.sees(SETTINGS)
    assert person.ends() == 0
    cluster.run("node1", "rm", "/scratch/alice/pasted")


@pytest.mark.parametrize(
    ("program", "signal", "status"),
    [("bin/hpc_submit_dockerjob", "TERM", 143), ("dockerjob-broker", "KILL", 137)],
)
def test_the_terminal_is_restored_whatever_ends_the_job(
    cluster: Cluster, sits: Sits, program: str, signal: str, status: int
) -> None:
    person = sits(SHELL)
    before = person.sees(SETTINGS)[1]
    person.sees("ready>")
    number = person.asks("hostname", r"\s(\d+)_node_0\s")[1].decode()
    cluster.run("node1", "pkill", f"-{signal}", "-f", program)
    assert person.sees(SETTINGS)[1] == before
    assert person.ends() == status
    # Of a broker that was killed, the reaper removes what is in etcd, when the lease has ended.
    wait_until(lambda: forgotten(cluster, number), 150, "nothing is left of the job")


def test_a_killed_wrapper_leaves_nothing(cluster: Cluster, sits: Sits) -> None:
    person = sits(SHELL)
    person.sees("ready>")
    number = person.asks("hostname", r"\s(\d+)_node_0\s")[1].decode()
    cluster.run("node1", "pkill", "-KILL", "-f", "bin/hpc_submit_dockerjob")
    person.sees("Killed")
    assert person.ends() == 137
    wait_until(lambda: forgotten(cluster, number), 90, "nothing is left of the job")


def test_user_and_site_may_not_want_a_terminal(sits: Sits, site_config: Any) -> None:
    person = sits("test -t 0 || echo none; exit 3", "export DOCKERJOB_TERMINAL=0")
    person.sees("none\r\n")
    person.sees(SETTINGS)
    assert person.ends() == 3
    site_config("policy", interactive=False)
    person = sits("true")
    before = person.sees(SETTINGS)[1]
    person.sees(r"hpc_submit_dockerjob: this site allows no interactive .* \(policy.interactive\)")
    assert person.sees(SETTINGS)[1] == before
    assert person.ends() == 202


@pytest.mark.usefixtures("slurm_is_up")
def test_salloc_and_srun_of_slurm(cluster: Cluster) -> None:
    options = ["--nodes=2", "--ntasks-per-node=2", "--nodelist=node1,node2", "--time=5"]
    call = f"{REQUEST} COMMAND='{SHELL}'; {WRAPPER}; echo ended $?"
    shell = ("bash", "--norc", "--noprofile", "-i")
    for start in (["salloc", *options, *shell], ["srun", *options, "--pty", *shell]):
        argv = [*environment_of("alice", ["TERM=xterm", "PS1=site> "]), *start]
        person = Person(within(cluster.pids["node1"], *argv), timeout=120)
        try:
            person.sees("site> ")
            person.types(f"{call}\r")
            person.sees("ready>")
            person.asks("hostname", r"\s\d+_node_0\s")
            person.asks("ssh ${HOSTNAME%0}1 hostname", r"\s\d+_node_1\s")
            person.types("exit 7\r")
            person.sees("ended 7")
            person.types("exit\r")
            person.ends()
        finally:
            person.leaves()
    wait_until(lambda: not cluster.run(HEAD, "squeue", "-h"), 60, "Slurm has no job")
