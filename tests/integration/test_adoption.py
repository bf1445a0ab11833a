# SPDX-License-Identifier: GPL-3.0-or-later
"""A guard takes the broker out of the job's cgroup, and nothing of the user's; on this machine's cgroups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerjob_core import adoption
from dockerjob_lab import cgroups
from dockerjob_lab.system import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are root's")

JOB, GUARD = "/dockerjob-adoption/job", "/dockerjob-adoption/guard"
ACCOUNT, USER = 65534, 64999

BROKER = """
import json, os, subprocess, sys
from dockerjob_core.adoption import identity
os.setuid(65534)
child = subprocess.Popen(["sleep", "60"])
print(json.dumps([identity(), child.pid]), flush=True)
sys.stdin.read()
child.kill()
"""
ADOPT = """
import json, sys
from dockerjob_core.adoption import adopt
freezer = adopt(json.loads(sys.argv[1]))
print(freezer.path if freezer else "")
"""


def started(cgroup: str, *argv: str, uid: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: (cgroups.join(cgroup), os.setuid(uid)),
    )


@pytest.fixture
def broker() -> Iterator[tuple[dict[str, Any], set[int]]]:
    """A broker with a child in the job's cgroup: its identity, and the numbers of both."""
    for group in (JOB, GUARD):
        cgroups.create(group)
    process = started(JOB, sys.executable, "-c", BROKER)
    assert process.stdout
    who, child = json.loads(process.stdout.readline())
    yield who, {process.pid, child}
    cgroups.kill_all("/dockerjob-adoption")
    process.communicate()
    cgroups.remove("/dockerjob-adoption")


def adopted(who: dict[str, Any]) -> str:
    """Have a guard adopt *who*; return where it would look whether the job is frozen."""
    out, _ = started(GUARD, sys.executable, "-c", ADOPT, json.dumps(who)).communicate(timeout=30)
    return out.strip()


def test_the_broker_and_its_children_leave_and_the_users_processes_stay(
    broker: tuple[dict[str, Any], set[int]],
) -> None:
    who, brokers = broker
    users = started(JOB, "sleep", "60", uid=USER)
    roots = started(JOB, "sleep", "60")
    try:
        path = adopted(who)
        assert cgroups.processes(GUARD) == brokers
        assert cgroups.processes(JOB) == {users.pid, roots.pid}
        assert JOB in path
        # Once it has left, there is nothing to do.
        assert adopted(who) == ""
    finally:
        for process in (users, roots):
            process.kill()
            process.communicate()


@pytest.mark.parametrize("change", [{"start": 1}, {"boot": "another"}, {"namespace": "pid:[1]"}])
def test_a_process_of_the_same_number_on_another_host_is_left_alone(
    broker: tuple[dict[str, Any], set[int]], change: dict[str, Any]
) -> None:
    who, brokers = broker
    assert adopted({**who, **change}) == ""
    assert cgroups.processes(JOB) == brokers


def test_the_sudo_that_started_the_broker_comes_along_and_no_other() -> None:
    for group in (JOB, GUARD):
        cgroups.create(group)
    ours = started(JOB, "sudo", "-n", "-u", f"#{ACCOUNT}", "sleep", "60")
    other = started(JOB, "sudo", "-n", "-u", "bin", "sleep", "60")
    try:
        assert wait_until(lambda: len(cgroups.processes(JOB)) == 4, 10)
        [broker] = _children(ours.pid)
        assert JOB in adopted({"pid": broker, **adoption._marks(broker)})
        assert cgroups.processes(GUARD) == {ours.pid, broker}
        assert other.pid in cgroups.processes(JOB)
    finally:
        cgroups.kill_all("/dockerjob-adoption")
        for process in (ours, other):
            process.communicate()
        cgroups.remove("/dockerjob-adoption")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_job_that_is_frozen_and_thawed_or_gone_is_seen(broker: tuple[dict[str, Any], set[int]]) -> None:
    freezer = adoption.Freezer(adopted(broker[0]))
    users = started(JOB, "sleep", "60", uid=USER)
    try:
        # By the cgroup above it, as a batch system does.
        assert freezer.frozen() is False
        freeze("/dockerjob-adoption", frozen=True)
        assert wait_until(lambda: freezer.frozen() is True, 5)
        freeze("/dockerjob-adoption", frozen=False)
        assert wait_until(lambda: freezer.frozen() is False, 5)
    finally:
        users.kill()
        users.communicate()
    cgroups.remove(JOB)
    assert freezer.frozen() is None


def freeze(cgroup: str, *, frozen: bool) -> None:
    for hierarchy in cgroups.hierarchies():
        for name, words in (("freezer.state", ("THAWED", "FROZEN")), ("cgroup.freeze", ("0", "1"))):
            file = hierarchy / cgroup.strip("/") / name
            if file.exists():
                file.write_text(words[frozen])
