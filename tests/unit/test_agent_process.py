# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's processes: exit statuses, supervisor's poller, the job's tree, the image check."""

from __future__ import annotations

import os
import select
import signal
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from dockerjob_agent import check, cli, command, init, services
from dockerjob_agent.log import StoryLog
from dockerjob_agent.tree import Change, Follower, Leaf
from dockerjob_core.errors import DiscoveryError, DockerjobError
from dockerjob_core.kvs import KeyValue, Kvs, Snapshot
from test_agent_files import parsed


@pytest.mark.parametrize(("returncode", "status"), [(0, 0), (7, 7), (255, 255), (-9, 137), (-15, 143)])
def test_exit_status_is_the_shells(returncode: int, status: int) -> None:
    assert command.exit_status(returncode) == status


def test_exit_status_of_the_container(tmp_path: Path) -> None:
    log = StoryLog(tmp_path)
    assert init.exit_status(tmp_path, 0, log) == 0
    log.error("why")
    assert init.exit_status(tmp_path, DiscoveryError.exit_status, log) == DiscoveryError.exit_status
    (tmp_path / "exit_status").write_text("1\n")
    assert init.exit_status(tmp_path, 1, log) == 1


@pytest.mark.parametrize(("output", "reason"), [("Traceback\nKeyError: 1\n", "KeyError: 1"), ("", "killed")])
def test_agent_that_dies_leaves_a_reason(tmp_path: Path, output: str, reason: str) -> None:
    (tmp_path / "agent.out").write_text(output)
    assert (
        init.exit_status(tmp_path, -1 if not output else 1, StoryLog(tmp_path)) == DockerjobError.exit_status
    )
    assert reason in (tmp_path / "agent_error").read_text()


class Poller:
    """The part of supervisor's poller that is wrapped."""

    def __init__(self) -> None:
        self._poll = select.poll()

    def register_readable(self, descriptor: int) -> None:
        self._poll.register(descriptor, select.POLLIN)

    def poll(self, timeout: float) -> tuple[list[int], list[int]]:
        return [descriptor for descriptor, _ in self._poll.poll(timeout * 1000)], []


def test_poller_wakes_at_once_for_a_signal() -> None:
    started: list[str] = []
    ending: list[bool] = []
    poller = services.PromptPoller(Poller(), lambda: started.append("now"), lambda: bool(ending))
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        assert poller.poll(30) == ([], [])
        assert started == ["now"]
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert poller.poll(30) == ([], [])
        assert started == ["now"]
        ending.append(True)
        assert poller.poll(30) == ([], [])
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, previous)


def test_supervisor_keeps_quiet_on_the_containers_output() -> None:
    text = services.supervisord_conf(Path("/run/dockerjob/node"))
    assert "silent=true" in text
    assert "autorestart=false" in text
    assert "/dev/stdout" not in text


class Taken:
    """A follower that is fed by the test."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Follower, "_run", lambda self: None)
        self.changes: list[Change] = []
        keys: dict[str, tuple[int | None, Leaf]] = {
            "/102/FINISH": (None, "FINISH"),
            "/102/102_node_0/IP": (0, "IP"),
        }
        kvs = cast(Kvs, None)
        self.follower = Follower(kvs, parsed(), keys, self.changes.append, StoryLog(directory))

    def snapshot(self, revision: int, *items: tuple[str, str, int, int]) -> None:
        found = tuple(KeyValue(key, value.encode(), lease, at, at) for key, value, lease, at in items)
        self.follower._take_snapshot("/102/", Snapshot(revision, found))


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Taken:
    return Taken(tmp_path, monkeypatch)


def test_tree_delivers_each_change_once(taken: Taken) -> None:
    taken.snapshot(5, ("/102/FINISH", "FALSE", 123, 3), ("/102/102_node_0/IP", "10.128.0.1", 123, 4))
    taken.snapshot(6, ("/102/FINISH", "FALSE", 123, 3), ("/102/102_node_0/IP", "10.128.0.1", 123, 4))
    assert taken.changes == [Change("FINISH", None, "FALSE"), Change("IP", 0, "10.128.0.1")]


def test_tree_without_finish_is_over(taken: Taken) -> None:
    taken.snapshot(5)
    assert taken.changes == [Change("FINISH", None, None)]


def test_deletion_is_seen_by_event_and_by_reading(taken: Taken) -> None:
    taken.snapshot(5, ("/102/FINISH", "FALSE", 123, 3))
    taken.follower._take("/102/FINISH", 7, None, 0)
    taken.follower._take("/102/FINISH", 6, b"0", 123)
    taken.snapshot(8)
    assert taken.changes[1:] == [Change("FINISH", None, None)]


def test_another_jobs_lease_is_not_ours(taken: Taken) -> None:
    """The batch system ran the same job id again: for the old containers it is over."""
    taken.snapshot(5, ("/102/FINISH", "FALSE", 123, 3))
    taken.follower._take("/102/FINISH", 9, b"FALSE", 456)
    assert taken.changes[1:] == [Change("FINISH", None, None)]


def test_check_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check, "ROOT", tmp_path)
    found = {finding.name: finding for finding in check.findings(application=False)}
    assert found["shell"].level == "ok"
    for name in ("python", "agent", "entry point"):
        assert found[name].level == "missing"
        assert check.render(found[name]).startswith("missing ")
        assert "images/infra" in check.render(found[name])


def test_check_finds_what_is_closed_to_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("PATH", f"/usr/bin:{tmp_path}/bin")
    assert "closed to users" in check._path().detail
    monkeypatch.setenv("PATH", "/usr/bin:/no/such/directory")
    assert check._path().level == "ok"


@pytest.mark.parametrize(("version", "names"), [("4.0.2", ["MPICH", "MPI"]), ("5.0.2", ["MPI"])])
def test_check_knows_an_mpi_that_hangs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, names: list[str]
) -> None:
    launcher = tmp_path / "mpiexec.mpich"
    launcher.write_text(f"#!/bin/sh\necho 'HYDRA build details:'; echo '    Version:    {version}'\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = list(check._mpi())
    assert [finding.name for finding in found] == names
    assert found[-1].detail == f"{launcher} {version}"


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help"]) == 0
    assert cli.main(["unknown"]) == 2
    shown: Any = capsys.readouterr()
    assert "init" in shown.out
    assert shown.err.startswith("usage:")
