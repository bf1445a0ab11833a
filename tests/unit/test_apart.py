# SPDX-License-Identifier: GPL-3.0-or-later
"""The broker is no descendant of what sudo has started, which waits for its status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
from dockerjob.broker.apart import stand_apart
def work():
    print(os.getpid(), os.getpgid(0), os.getsid(0), flush=True)
    sys.stdin.readline()
    return 7
sys.exit(stand_apart(work))
"""


class Caller:
    """A process that does the work of PROGRAM apart."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout
        self.worker, self.group, self.session = map(int, self.process.stdout.readline().split())

    def say(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def state(self) -> str:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    yield caller
    if caller.process.poll() is None:
        os.killpg(caller.process.pid, signal.SIGKILL)
    caller.process.communicate()


def ancestors(pid: int) -> set[int]:
    found = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(pid)
    return found


def test_the_status_comes_back_from_a_process_that_is_no_descendant(caller: Caller) -> None:
    deadline = time.monotonic() + 10  # the process between the two may not have ended yet
    while caller.process.pid in ancestors(caller.worker):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (caller.group, caller.session) == (caller.worker, caller.process.pid)
    caller.say()
    assert caller.process.wait(10) == 7


def test_sigterm_ends_neither(caller: Caller) -> None:
    os.killpg(caller.process.pid, signal.SIGTERM)
    time.sleep(0.1)
    caller.say()
    assert caller.process.wait(10) == 7


def test_the_work_goes_on_while_who_waits_is_stopped_and_lets_it_go_on(caller: Caller) -> None:
    caller.process.send_signal(signal.SIGSTOP)
    for _ in range(100):
        if caller.state() == "T":
            break
        time.sleep(0.02)
    assert caller.state() == "T"
    caller.say()
    assert caller.process.wait(10) == 7


def test_a_worker_that_is_killed_counts_as_killed(caller: Caller) -> None:
    os.kill(caller.worker, signal.SIGKILL)
    assert caller.process.wait(10) == 137
