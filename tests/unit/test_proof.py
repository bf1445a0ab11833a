# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof of an allocation: what of LSF's answers counts, and what is only noise or a claim."""

from __future__ import annotations

import json
import queue
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dockerjob.broker.recheck import Recheck
from dockerjob.config import BatchSettings, SystemSettings
from dockerjob.schedulers import confirm, proof, prove
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import BatchError, PolicyError
from dockerjob_core.schedulers import lsf
from dockerjob_core.schedulers.base import Answer

HOSTS = (HostSlots("node1", 2), HostSlots("node2", 1))
CLAIM = Allocation("lsf", 748, None, HOSTS)
RECORD = {"JOBID": "748", "JOBINDEX": "0", "STAT": "RUN", "USER": "alice", "EXEC_HOST": "node1:node1:node2"}
NOISE = "LSF is processing your request. Please wait ...\n"


def answer(*records: dict[str, Any]) -> str:
    return NOISE + json.dumps({"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records}) + "\n"


def bjobs(tmp_path: Path, text: str) -> BatchSettings:
    """A program that records its arguments and environment and prints *text*."""
    program = tmp_path / "bjobs"
    (tmp_path / "answer").write_text(text)
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/argv\nenv >{tmp_path}/env\ncat {tmp_path}/answer\n')
    program.chmod(0o755)
    return settings_of(bjobs=str(program), environment={"LSF_ENVDIR": "/etc/lsf"}, timeout=5)


def settings_of(**lsf_keys: Any) -> BatchSettings:
    return BatchSettings.model_validate({"lsf": lsf_keys})


def test_a_true_claim_is_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSF_BINDIR", "/home/mallory")
    prove(bjobs(tmp_path, answer(RECORD)), CLAIM, "alice", 1000)
    assert (tmp_path / "argv").read_text() == "-a -X -o jobid jobindex stat user exec_host -json 748\n"
    environment = (tmp_path / "env").read_text()
    assert "LSF_ENVDIR=/etc/lsf" in environment
    assert "mallory" not in environment


def test_an_element_of_an_array_is_asked_for_by_its_index(tmp_path: Path) -> None:
    records = [{**RECORD, "JOBINDEX": str(index)} for index in (1, 2, 3)]
    prove(bjobs(tmp_path, answer(*records)), Allocation("lsf", 748, 3, HOSTS), "alice", 1000)
    assert (tmp_path / "argv").read_text().endswith("748[3]\n")


@pytest.mark.parametrize(
    ("changes", "user", "message"),
    [
        ({}, "mallory", "job 748 is not yours, mallory$"),
        ({"STAT": "DONE"}, "mallory", "is not yours"),
        ({"STAT": "DONE"}, "alice", "not running; LSF says DONE"),
        ({"STAT": "USUSP"}, "alice", "not running; LSF says USUSP"),
        ({"STAT": ""}, "alice", "not running; LSF says nothing"),
        ({"EXEC_HOST": "node1:node1"}, "alice", "LSF gave node1:2, claimed is node1:2 node2:1"),
        ({"EXEC_HOST": "node1:node2"}, "alice", "LSF gave node1:1 node2:1, claimed"),
        ({"EXEC_HOST": "node1:node1:node2:node3"}, "alice", "LSF gave node1:2 node2:1 node3:1"),
        ({"EXEC_HOST": ""}, "alice", "LSF gave no host"),
    ],
)
def test_what_differs_is_refused(changes: dict[str, str], user: str, message: str) -> None:
    record = lsf.record([Answer(answer({**RECORD, **changes}))], CLAIM)
    claim = proof.Claim(CLAIM, user, 1000)
    with pytest.raises(PolicyError, match=message):
        proof.check(record, lsf.SYSTEM, SystemSettings(), claim, proof.RUNNING)


def test_a_job_that_lsf_does_not_call_running_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "PATIENCE", 1.5)
    settings = bjobs(tmp_path, answer({**RECORD, "STAT": "PEND", "EXEC_HOST": ""}))
    with pytest.raises(PolicyError, match="LSF says PEND"):
        prove(settings, CLAIM, "alice", 1000)
    (tmp_path / "next").write_text(answer(RECORD))
    program = tmp_path / "bjobs"
    program.write_text(f"{program.read_text()}cp {tmp_path}/next {tmp_path}/answer\n")
    prove(settings, CLAIM, "alice", 1000)


@pytest.mark.parametrize(
    "records",
    [(), ({"JOBID": "748", "ERROR": "Job <748> is not found"},), ({**RECORD, "JOBID": "7480"},)],
)
def test_a_job_that_is_not_there_is_refused(records: tuple[dict[str, str], ...], tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"^LSF has no job 748$"):
        prove(bjobs(tmp_path, answer(*records)), CLAIM, "alice", 1000)


@pytest.mark.parametrize("text", ["", NOISE, "{", '{"RECORDS": 1}', '{"RECORDS": [1]}', "[]"])
def test_no_answer_is_no_proof(tmp_path: Path, text: str) -> None:
    with pytest.raises(BatchError, match="no answer about job 748"):
        prove(bjobs(tmp_path, text), CLAIM, "alice", 1000)


def test_a_bjobs_that_hangs_or_is_missing_is_said(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    with pytest.raises(BatchError, match="did not answer about job 748 in 1 s"):
        prove(settings_of(bjobs=str(slow), timeout=1), CLAIM, "alice", 1000)
    with pytest.raises(BatchError, match=re.escape("/no/bjobs: No such file")):
        prove(settings_of(bjobs="/no/bjobs"), CLAIM, "alice", 1000)


@pytest.mark.parametrize("state", ["RUN", "USUSP", "SSUSP", "UNKWN"])
def test_a_job_that_is_suspended_keeps_its_hosts(state: str, tmp_path: Path) -> None:
    confirm(bjobs(tmp_path, answer({**RECORD, "STAT": state})), CLAIM, "alice", 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"STAT": "DONE"},
        {"STAT": "EXIT"},
        {"STAT": "PEND"},
        {"EXEC_HOST": "node1"},
        {"USER": "bob"},
        {"JOBID": "9"},
    ],
)
def test_a_job_that_ended_or_moved_has_lost_them(changes: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        confirm(bjobs(tmp_path, answer({**RECORD, **changes})), CLAIM, "alice", 1000)


def test_no_answer_takes_nothing_back(tmp_path: Path) -> None:
    """Who asks again and again goes on after this error, and not after the other."""
    lost: queue.SimpleQueue[str] = queue.SimpleQueue()
    settings = bjobs(tmp_path, NOISE)
    recheck = Recheck(0.05, lambda: confirm(settings, CLAIM, "alice", 1000), lost.put, lambda _: None)
    with pytest.raises(queue.Empty):
        lost.get(timeout=0.5)
    (tmp_path / "answer").write_text(answer({**RECORD, "STAT": "DONE"}))
    assert lost.get(timeout=10) == "job 748 is not running; LSF says DONE"
    recheck.stop()


def test_a_suspension_is_told_once_and_so_is_its_end(tmp_path: Path) -> None:
    """LSF calls a job unknown when it has lost touch with a host: that says nothing of it."""
    told: queue.SimpleQueue[bool] = queue.SimpleQueue()
    settings = bjobs(tmp_path, answer(RECORD))

    def say(state: str) -> None:
        (tmp_path / "new").write_text(answer({**RECORD, "STAT": state}))
        (tmp_path / "new").rename(tmp_path / "answer")

    recheck = Recheck(0.02, lambda: confirm(settings, CLAIM, "alice", 1000), lambda _: None, told.put)
    for state, expected in (("USUSP", True), ("UNKWN", None), ("SSUSP", None), ("RUN", False)):
        say(state)
        if expected is None:
            with pytest.raises(queue.Empty):
                told.get(timeout=0.3)
        else:
            assert told.get(timeout=10) is expected
    recheck.stop()


def test_a_batch_system_that_the_site_does_not_have_is_refused() -> None:
    with pytest.raises(PolicyError, match="'lsf' can't be proven"):
        prove(BatchSettings(), CLAIM, "alice", 1000)
    with pytest.raises(PolicyError, match="'pbs' can't be proven"):
        prove(settings_of(bjobs="/bjobs"), Allocation("pbs", 1, None, HOSTS), "alice", 1000)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("h1", {"h1": 1}),
        ("h1:h1:h2", {"h1": 2, "h2": 1}),
        ("4*h1:2*h2.site.org", {"h1": 4, "h2.site.org": 2}),
        ("h1:2*h1:h2", {"h1": 3, "h2": 1}),
    ],
)
def test_every_form_of_exec_host_is_read(text: str, hosts: dict[str, int]) -> None:
    assert lsf.hosts_of(text) == Counter(hosts)


@pytest.mark.parametrize("text", ["h1 h2", "*h1", "h1;id", "9999999*h1", "-"])
def test_an_unknown_form_of_exec_host_is_no_proof(text: str) -> None:
    with pytest.raises(BatchError, match="no known form"):
        lsf.hosts_of(text)
