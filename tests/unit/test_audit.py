# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit record: one per request, one line, whatever the user wrote."""

from __future__ import annotations

import json
import syslog
from pathlib import Path

import pytest
from dockerjob.broker.audit import LONGEST, Audit


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    written: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda priority, line: written.append((priority, line)))
    monkeypatch.setenv("SUDO_UID", "2001")
    return written


def test_an_accepted_request_is_recorded_once(lines: list[tuple[int, str]], tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.know(user="alice", job="748", image="sha256:0", hosts=["node1", "node2"])
    audit.accepted()
    audit.refused("it failed later, which is no refusal")
    [(priority, line)] = lines
    assert priority == syslog.LOG_INFO
    filed = json.loads((tmp_path / "audit.jsonl").read_text())
    assert filed.pop("time")
    assert (
        json.loads(line)
        == filed
        == {
            "decision": "accepted",
            "reason": "",
            "uid": "2001",
            "user": "alice",
            "job": "748",
            "image": "sha256:0",
            "hosts": ["node1", "node2"],
        }
    )


def test_a_users_text_is_cut_and_can_not_end_the_line(lines: list[tuple[int, str]], tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.know(application='x\n{"decision": "accepted"}\r\u2028\x1b[2J')
    audit.refused("no" * 1000)
    [(priority, line)] = lines
    assert priority == syslog.LOG_WARNING
    assert line.isascii()
    assert line.isprintable()
    assert len(json.loads(line)["reason"]) == LONGEST
