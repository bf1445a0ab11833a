# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of a job on a host: what it says, and when it acts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerjob_core import adoption, node_task
from dockerjob_core import guard as guard_module
from dockerjob_core.adoption import Freezer
from dockerjob_core.errors import HostError
from dockerjob_core.guard import Guard
from dockerjob_core.release import is_guarded
from dockerjob_lab.system import wait_until

OPTIONS = {
    "job_id": "7",
    "state": "absent",
    "run": "1f",
    "bridge": "br-job",
    "runtime_root": "/proc/no-such-place",
}


class NoStandby:
    """In place of the process that waits for the set-up's task."""

    def __init__(self, job_id: str, run: str) -> None: ...

    def release(self) -> None: ...


class Broker:
    """The other end of the guard's two pipes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        commands, self._input = os.pipe()
        self._output, answers = os.pipe()
        self.performed: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        monkeypatch.setattr(node_task, "perform", self._perform)
        # Forked from here it would hold these pipes, too; tests/unit/test_standby.py has the real one.
        monkeypatch.setattr(guard_module, "Standby", NoStandby)
        monkeypatch.setattr(guard_module, "QUIET", 0.05)
        monkeypatch.setattr(guard_module, "PAUSE", 0.0)
        monkeypatch.setattr("signal.signal", lambda *_: None)  # not in the main thread here
        self._thread = threading.Thread(target=Guard(commands, answers).run)
        self._thread.start()
        assert self.read() == {"ready": True}

    def _perform(self, options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
        assert not check_mode
        self.performed.append(options)
        return self.results.pop(0) if self.results else {"changed": True}

    def read(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(os.read(self._output, 4096))
        return line

    def tell(self, **command: Any) -> None:
        os.write(self._input, json.dumps(command).encode() + b"\n")

    def die(self) -> None:
        os.close(self._input)
        self.ends_by_itself()

    def ends_by_itself(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    return Broker(monkeypatch)  # type: ignore[return-value]


def test_it_does_nothing_when_the_broker_dies_before_anything_was_made(broker: Broker) -> None:
    broker.die()
    assert broker.performed == []


def test_it_takes_the_node_down_when_the_broker_dies(broker: Broker, tmp_path: Path) -> None:
    own = tmp_path / "7"
    own.mkdir()
    (own / "socket").touch()
    broker.tell(arm=OPTIONS, remove=[str(own), str(tmp_path / "not-there")])
    broker.die()
    assert broker.performed == [OPTIONS]
    assert not own.exists()


def test_it_shows_that_it_stands_by_until_it_goes(broker: Broker, tmp_path: Path) -> None:
    broker.tell(arm={**OPTIONS, "runtime_root": str(tmp_path)}, remove=[])
    assert wait_until(lambda: is_guarded("7", str(tmp_path)), 5)
    broker.die()
    assert list((tmp_path / "guards").iterdir()) == []


def test_a_takedown_that_fails_is_tried_again(broker: Broker) -> None:
    broker.results = [{"failed": True, "msg": "the Docker daemon is away"}] * 2
    broker.tell(arm=OPTIONS, remove=[])
    broker.die()
    assert len(broker.performed) == 3


def test_it_goes_without_a_deed_when_all_is_well(broker: Broker) -> None:
    broker.tell(arm=OPTIONS, remove=[])
    broker.tell(end=True)
    broker.die()
    assert broker.performed == []


def test_a_command_in_pieces_is_one_command(broker: Broker) -> None:
    line = json.dumps({"arm": OPTIONS, "remove": []}).encode() + b"\n"
    os.write(broker._input, line[:9])
    os.write(broker._input, line[9:])
    broker.die()
    assert broker.performed == [OPTIONS]


def test_it_says_when_the_container_has_ended(broker: Broker) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin
    group = Path(f"/proc/{child.pid}/cgroup").read_text()
    broker.tell(watch={"pid": child.pid, "id": group[:8]})
    broker.tell(arm=OPTIONS, remove=[])
    child.stdin.close()
    child.wait()
    assert broker.read() == {"ended": group[:8]}
    broker.tell(end=True)
    broker.die()


def held_networks() -> set[str]:
    """Network namespaces that this process, which is the guard's, has open."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {name for name in found if name.startswith("net:")}


def test_it_keeps_the_container_s_network_when_that_has_ended(broker: Broker) -> None:
    """Its link has counted what the takedown asks for, and would be gone."""
    child = subprocess.Popen(
        ["unshare", "--user", "--net", sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin
    assert child.stdout
    assert child.stdout.readline() == b"\n"
    network = os.readlink(f"/proc/{child.pid}/ns/net")
    before = held_networks()
    group = Path(f"/proc/{child.pid}/cgroup").read_text()
    broker.tell(watch={"pid": child.pid, "id": group[:8]})
    broker.tell(arm=OPTIONS, remove=[])
    for _ in range(100):
        if held_networks() - before:
            break
        time.sleep(0.02)
    child.stdin.close()
    child.wait()
    assert broker.read() == {"ended": group[:8]}
    assert held_networks() - before == {network}
    broker.tell(end=True)
    broker.die()


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1])
def test_a_process_that_is_not_the_containers_has_ended(broker: Broker, pid: int) -> None:
    broker.tell(watch={"pid": pid, "id": "f" * 64})
    assert broker.read() == {"ended": "f" * 64}
    broker.die()


def test_who_waits_for_the_dead_broker_is_let_go(broker: Broker, tmp_path: Path) -> None:
    """As ansible-playbook does that was about to open its inventory."""
    pipe = tmp_path / "7" / "job_setup" / "inventory.json"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.DEVNULL)
    broker.tell(arm=OPTIONS, remove=[str(tmp_path / "7")])
    broker.die()
    assert reader.wait(5) == 0
    assert not pipe.exists()


def test_it_goes_when_somebody_else_has_taken_the_node_down(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the reaper does after the network was cut, of which the connection may not know for hours."""
    monkeypatch.setattr(guard_module, "LONELY", 0.1)
    broker.tell(arm=OPTIONS, remove=[])
    broker.tell(watch={"pid": os.getpid(), "id": "f" * 64})
    broker.ends_by_itself()
    assert broker.performed == []


def test_it_says_when_the_jobs_cgroup_is_frozen_and_goes_on(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = tmp_path / "freezer.state"
    state.write_text("THAWED\n")
    monkeypatch.setattr(guard_module, "SUSPENSION", 0.02)
    monkeypatch.setattr(adoption, "adopt", lambda who: Freezer(str(state)) if who == {"pid": 5} else None)
    broker.tell(adopt={"pid": 5})
    state.write_text("FROZEN\n")
    assert broker.read() == {"suspended": True}
    state.write_text("THAWED\n")
    assert broker.read() == {"suspended": False}
    state.unlink()
    broker.tell(arm=OPTIONS, remove=[])
    broker.die()
    assert broker.performed == [OPTIONS]


def test_a_broker_that_can_not_be_taken_along_is_guarded_all_the_same(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adopt(who: object) -> None:
        raise HostError("no")

    monkeypatch.setattr(adoption, "adopt", adopt)
    broker.tell(adopt={"pid": 5})
    broker.tell(arm=OPTIONS, remove=[])
    broker.die()
    assert broker.performed == [OPTIONS]
