# SPDX-License-Identifier: GPL-3.0-or-later
"""What an epilog calls: it waits for broker and guard, and does their work only when they don't."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from dockerjob_core import release as module
from dockerjob_core.release import release


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
    monkeypatch.setattr(module, "perform", perform)
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
