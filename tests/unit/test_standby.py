# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that has loaded before the set-up's task comes."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from dockerjob_core import node_task, standby
from dockerjob_core.standby import Standby, hand_over
from dockerjob_lab.system import wait_until

NOBODY = 65534
RUN = f"{os.getpid():x}"
"""Abstract addresses are the machine's: another test run may be at it."""

TASK: dict[str, Any] = {"options": {"job_id": "7", "run": RUN, "state": "present"}, "check_mode": False}
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def answer() -> dict[str, Any] | None:
    """What the process says, once it has loaded."""
    found: list[dict[str, Any]] = []

    def asked() -> bool:
        result = hand_over(TASK)
        found.extend([result] if result else [])
        return bool(result)

    assert wait_until(asked, 10)
    return found[0]


def somebody_listens() -> bool:
    with open("/proc/net/unix", encoding="utf-8") as sockets:
        return any(line.rstrip().endswith(f"/7/{RUN}") for line in sockets)


@contextmanager
def forked(action: Callable[[], None]) -> Iterator[int]:
    """A child of this process that does *action*, and is killed at the end."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture(autouse=True)
def performed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the task does is not the matter here: it says who did it."""

    def perform(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
        who = {"pid": os.getpid(), "nice": os.getpriority(os.PRIO_PROCESS, 0)}
        return {"options": options, "check_mode": check_mode, **who}

    monkeypatch.setattr(node_task, "perform", perform)


def test_it_does_the_task_in_its_own_process_and_ends() -> None:
    held = Standby("7", RUN)
    result = answer()
    assert result
    assert result["options"] == TASK["options"]
    assert result["check_mode"] is False
    assert result["pid"] != os.getpid()
    assert wait_until(lambda: not os.path.exists(f"/proc/{result['pid']}"), 10)
    assert hand_over(TASK) is None
    held.release()


@ROOT_ONLY
def test_it_works_with_the_guards_own_niceness() -> None:
    held = Standby("7", RUN)
    result = answer()
    assert result
    assert result["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    held.release()


def test_one_that_was_released_ends_and_leaves_nothing() -> None:
    held = Standby("7", RUN)
    assert wait_until(somebody_listens, 10)
    held.release()
    assert wait_until(lambda: not somebody_listens(), 10)
    assert hand_over(TASK) is None


def test_one_that_waits_for_a_task_in_vain_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "PATIENCE", 0.2)
    held = Standby("7", RUN)
    assert wait_until(somebody_listens, 10)
    assert wait_until(lambda: not somebody_listens(), 10)
    held.release()


def test_without_one_the_program_does_its_task_itself() -> None:
    assert hand_over(TASK) is None


def test_another_run_of_the_job_is_not_its_business() -> None:
    held = Standby("7", RUN)
    assert wait_until(somebody_listens, 10)
    assert hand_over({**TASK, "options": {**TASK["options"], "run": "20"}}) is None
    assert answer()
    held.release()


def test_one_that_dies_over_its_task_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    monkeypatch.setattr(node_task, "perform", die)
    held = Standby("7", RUN)
    assert wait_until(somebody_listens, 10)
    assert wait_until(lambda: hand_over(TASK) is None and not somebody_listens(), 10)
    held.release()


@ROOT_ONLY
def test_a_user_who_listens_there_first_gets_no_task() -> None:
    got = os.pipe()

    def squat() -> None:
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(standby._address("7", RUN))
            listener.listen()
            connection, _ = listener.accept()
            os.write(got[1], b"[" + connection.recv(4096) + b"]")

    with forked(squat):
        assert wait_until(somebody_listens, 10)
        assert hand_over(TASK) is None
        assert os.read(got[0], 8192) == b"[]"


@ROOT_ONLY
def test_a_user_who_hands_in_a_task_is_not_served() -> None:
    held = Standby("7", RUN)
    said = os.pipe()

    def hand_in() -> None:
        os.setuid(NOBODY)
        while True:
            with socket.socket(socket.AF_UNIX) as connection:
                try:
                    connection.connect(standby._address("7", RUN))
                except ConnectionRefusedError:
                    time.sleep(0.01)
                    continue
                try:
                    connection.sendall(b'{"options": {"job_id": "7"}, "check_mode": false}\n')
                    os.write(said[1], b"[" + connection.recv(4096) + b"]")
                except (BrokenPipeError, ConnectionResetError):  # it may have been sent away by then
                    os.write(said[1], b"[]")
                return

    assert wait_until(somebody_listens, 10)
    with forked(hand_in):
        assert os.read(said[0], 8192) == b"[]"
    held.release()
