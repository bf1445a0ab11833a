# SPDX-License-Identifier: GPL-3.0-or-later
"""What an epilog calls: it waits for broker and guard, and does their work only when they don't."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from dockerjob_core import node_task
from dockerjob_core import release as module
from dockerjob_core.release import announce, is_guarded, release


@pytest.fixture
def performed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Take a directory for the host's /run/dockerjob, and keep what would have been done."""
    done: list[dict[str, Any]] = []

    def perform(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
        assert not check_mode
        done.append(options)
        return {"failed": True, "msg": "no daemon"} if len(done) > 1 else {"changed": True}

    (tmp_path / "jobs").mkdir()
    monkeypatch.setattr(module, "RUNTIME_ROOT", str(tmp_path))
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    monkeypatch.setattr(node_task, "perform", perform)
    return done


def test_a_job_that_was_not_here_needs_no_docker(performed: list[dict[str, Any]]) -> None:
    assert release("7", "br-job", 0) == ""
    assert performed == []


def test_a_job_that_is_being_taken_down_is_waited_for(
    performed: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "jobs/7").mkdir()
    threading.Timer(0.2, (tmp_path / "jobs/7").rmdir).start()
    begin = time.monotonic()
    assert release("7", "br-job", 10) == ""
    assert 0.15 < time.monotonic() - begin < 5
    assert performed == []


def test_what_stays_is_removed_and_what_can_not_be_is_said(
    performed: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "jobs/7_3").mkdir()
    assert release("7_3", "br-x", 0) == ""
    assert release("7_3", "br-x", 0) == "no daemon"
    assert [(one["job_id"], one["bridge"], one["state"]) for one in performed] == [
        ("7_3", "br-x", "absent")
    ] * 2


@pytest.mark.parametrize("job_id", ["", "../7", "7+0", "7.batch"])
def test_what_is_no_job_id_is_no_path(performed: list[dict[str, Any]], job_id: str) -> None:
    with pytest.raises(ValueError, match="not a job id"):
        release(job_id, "br-job", 0)


def test_a_job_that_is_still_led_is_waited_for_though_nothing_is_here_yet(
    performed: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = announce("7", str(tmp_path))
    # Another file description is another owner of the lock.
    assert is_guarded("7", str(tmp_path))
    assert not is_guarded("77", str(tmp_path))
    threading.Timer(0.2, os.unlink, [path]).start()
    begin = time.monotonic()
    assert release("7", "br-job", 10) == ""
    assert 0.15 < time.monotonic() - begin < 5
    assert performed == []


def test_the_file_of_a_guard_that_was_killed_is_none(performed: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "guards").mkdir()
    (tmp_path / "guards/7.1234").touch()
    assert release("7", "br-job", 10) == ""
    assert list((tmp_path / "guards").iterdir()) == []


def test_a_guard_of_a_clean_host_does_not_hold_it_up_for_ever(
    performed: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Its broker may wait for another host of the job, one that is gone."""
    announce("7", str(tmp_path))
    assert release("7", "br-job", 0) == ""
    assert performed == []
