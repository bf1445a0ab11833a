# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``integration/job_signal.sh``: only the wrapper gets what it can act on; other jobs get the usual."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from site_files import INTEGRATION, LSF_JOB, run


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Any]:
    """Starts a job: a script's shell that leads a process group, and a wrapper that writes down its signals."""
    wrapper = tmp_path / "hpc_submit_dockerjob"
    wrapper.write_text(
        "import os, signal, sys, time\n"
        "def note(number, frame):\n"
        "    with open(sys.argv[1], 'a') as log: log.write(signal.Signals(number).name + '\\n')\n"
        "    if number == signal.SIGTERM and sys.argv[2] == 'ends': time.sleep(0.5); os._exit(143)\n"
        "for number in (signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT): signal.signal(number, note)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    started: list[subprocess.Popen[str]] = []

    def start(kind: str) -> subprocess.Popen[str]:
        call = f"{sys.executable} -I {wrapper} {tmp_path}/signals {kind}" if kind else "echo ready; sleep 60"
        script = f"{call}\necho $? >{tmp_path}/status\n"
        process = subprocess.Popen(
            ["/bin/bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        with_group = process.poll() is None
        if with_group:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def control(*argv: object) -> Any:
    return run([str(INTEGRATION / "job_signal.sh"), *map(str, argv)], {"PATH": "/nowhere"})


def states(process: subprocess.Popen[str]) -> set[str]:
    done = run(["ps", "-o", "stat=", "-g", str(process.pid)], {"PATH": "/usr/bin:/bin"})
    return {line[0] for line in done.stdout.split() if line[0] != "Z"}


def test_suspend_and_resume_reach_the_wrapper_and_stop_nothing(job: Any, tmp_path: Path) -> None:
    process = job("stays")
    assert control("suspend", 60, process.pid).returncode == 0
    assert control("resume", 60, process.pid).returncode == 0
    for _ in range(100):
        if (found := (tmp_path / "signals").read_text().split()) == ["SIGTSTP", "SIGCONT"]:
            break
        time.sleep(0.05)
    assert found == ["SIGTSTP", "SIGCONT"]
    assert states(process) == {"S"}


def test_the_wrapper_has_time_and_the_script_its_exit_status(job: Any, tmp_path: Path) -> None:
    process = job("ends")
    assert control("terminate", 30, process.pid).returncode == 0
    assert process.wait(5) == 0
    assert (tmp_path / "status").read_text() == "143\n"
    assert (tmp_path / "signals").read_text().split()[-1] == "SIGTERM"


def test_a_wrapper_that_does_not_end_is_killed_with_all_else(job: Any, tmp_path: Path) -> None:
    process = job("stays")
    assert control("terminate", 1, process.pid).returncode == 0
    assert process.wait(5) == -signal.SIGKILL
    assert "SIGTERM" in (tmp_path / "signals").read_text().split()
    assert states(process) == set()


def test_other_jobs_get_what_the_batch_system_would_send(job: Any, tmp_path: Path) -> None:
    process = job("")
    assert control("suspend", 60, process.pid).returncode == 0
    assert states(process) == {"T"}
    assert control("resume", 60, process.pid).returncode == 0
    assert states(process) == {"S"}
    assert control("terminate", 60, process.pid).returncode == 0
    assert process.wait(5) == -signal.SIGKILL
    assert not (tmp_path / "status").exists()


def test_lsf_names_every_process(job: Any, tmp_path: Path) -> None:
    process = job("ends")
    listed = run(["pgrep", "-g", str(process.pid)], {"PATH": "/usr/bin:/bin"}).stdout.split()
    line = f"exec {INTEGRATION}/job_signal.sh terminate 30 $LSB_JOBPIDS"
    assert run(["/bin/sh", "-c", line], {**LSF_JOB, "LSB_JOBPIDS": " ".join(listed)}).returncode == 0
    assert process.wait(5) == 0


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("terminate", "60"),
        ("terminate", "60", "1"),
        ("terminate", "60", "0"),
        ("terminate", "60", "-1"),
        ("terminate", "x", "99999999"),
        ("explode", "60", "99999999"),
        ("terminate", "60", "99999999; id"),
    ],
)
def test_what_makes_no_sense_is_refused(argv: tuple[str, ...]) -> None:
    done = control(*argv)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("usage:")


def test_processes_that_are_gone_are_fine() -> None:
    for action in ("suspend", "resume", "terminate"):
        assert control(action, 60, 99999999).returncode == 0
