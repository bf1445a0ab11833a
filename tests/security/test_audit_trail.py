# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every request is one record, and nobody writes another's, or none."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator

import pytest
from dockerjob.request import CHECK
from dockerjob_lab.client import Cluster

from .attack import (
    AUDIT,
    BROKER,
    NUMBER,
    ONE_HOST,
    SUDO,
    audit_records,
    broker,
    last_audit,
    request,
    run,
    which_limits,
)

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

AUTHPRIV_WARNING, AUTHPRIV_INFO = 10 * 8 + 4, 10 * 8 + 6
LISTEN = """
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
    log.bind("/run/test-log"); print("ready", flush=True); log.settimeout(60)
    while b"dockerjob-broker[" not in (line := log.recv(65536)): pass
    print(line.decode(), flush=True)
"""


@pytest.fixture
def syslog(cluster: Cluster) -> Iterator[subprocess.Popen[str]]:
    """A listener in the place of node1's syslog; prints the broker's first line."""
    log = "test ! -e /dev/log || mv /dev/log /dev/log.away; ln -s /run/test-log /dev/log"
    back = "rm -f /dev/log /run/test-log; test ! -e /dev/log.away || mv /dev/log.away /dev/log"
    argv = ["nsenter", "-t", str(cluster.pids["node1"]), "-a", "/usr/bin/python3", "-c", LISTEN]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd="/") as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        cluster.run("node1", "chmod", "0666", "/run/test-log")
        cluster.run("node1", "sh", "-c", log)
        try:
            yield listener
        finally:
            cluster.run("node1", "sh", "-c", back)
            with contextlib.suppress(ProcessLookupError):
                listener.kill()


def heard(listener: subprocess.Popen[str]) -> tuple[int, dict[str, object]]:
    """Priority and record of the line that the listener got."""
    assert listener.stdout is not None
    priority, _, line = listener.stdout.readline().partition(">")
    return int(priority[1:]), json.loads(line[line.index("{") :])


def test_a_refused_request_is_a_record_in_syslog(cluster: Cluster, syslog: subprocess.Popen[str]) -> None:
    cluster.record_job(NUMBER, "bob", ONE_HOST)
    assert broker(cluster, request(ONE_HOST)).status == 202
    priority, record = heard(syslog)
    assert priority == AUTHPRIV_WARNING
    assert (record["decision"], record["user"], record["job"]) == ("refused", "alice", str(NUMBER))
    assert record["reason"] == f"job {NUMBER} is not yours, alice"
    filed = last_audit(cluster)
    assert filed.pop("time")
    assert filed == record


def test_an_accepted_request_is_a_record_with_its_image_and_hosts(
    cluster: Cluster, syslog: subprocess.Popen[str]
) -> None:
    cluster.record_job(NUMBER, "alice", ONE_HOST)
    assert broker(cluster, request(ONE_HOST)).status == 0
    priority, record = heard(syslog)
    assert priority == AUTHPRIV_INFO
    assert (record["decision"], record["user"], record["job"]) == ("accepted", "alice", str(NUMBER))
    assert (record["hosts"], record["scheduler"], record["application"]) == (["node1"], "lsf", "mpihello:1")
    assert "/mpihello@sha256:" in str(record["image"])
    filed = last_audit(cluster)
    assert filed.pop("time")
    assert filed == record


@pytest.mark.parametrize(("owner", "status", "decision"), [("alice", 0, "accepted"), ("bob", 202, "refused")])
def test_a_question_before_a_job_is_a_record_that_says_so(
    cluster: Cluster, owner: str, status: int, decision: str
) -> None:
    cluster.record_job(NUMBER, owner, ONE_HOST)
    before = len(audit_records(cluster))
    assert broker(cluster, CHECK + json.dumps(request(ONE_HOST)).encode() + b"\n").status == status
    [record] = audit_records(cluster)[before:]
    assert (record["decision"], record["user"], record["job"]) == (decision, "alice", str(NUMBER))
    assert record["application"] == "query check mpihello:1"


@pytest.mark.parametrize(
    "text",
    ['x\n{"decision": "accepted", "user": "bob"}', "x\r\x1b[2J\u2028{}", '"}, {"decision": "accepted'],
    ids=repr,
)
def test_a_users_text_makes_no_record_of_its_own(cluster: Cluster, text: str) -> None:
    before = len(audit_records(cluster))
    broker(cluster, request(ONE_HOST, allocation={"scheduler": text}))
    broker(cluster, request(ONE_HOST, application=text))
    [one, other] = audit_records(cluster)[before:]
    assert (one["decision"], other["decision"]) == ("refused", "refused")
    assert (one["scheduler"], one["user"]) == (text, "alice")


@pytest.mark.parametrize("limit", ["f 0", "n 30", "c unlimited", "t 1", "v 60000", "d 10000"])
def test_limits_of_the_callers_keep_nothing_off_the_record(cluster: Cluster, limit: str) -> None:
    limit = f"{which_limits()}{limit}"
    before = len(audit_records(cluster))
    line = json.dumps(request(ONE_HOST, command="")).encode() + b"\n"
    done = run(cluster, "/bin/bash", "-c", f"ulimit {limit}; exec {' '.join(SUDO)} {BROKER}", data=line)
    assert done.status == 201, done
    assert [record["decision"] for record in audit_records(cluster)[before:]] == ["refused"]


def test_the_records_are_not_the_users(cluster: Cluster) -> None:
    before = audit_records(cluster)
    for attempt in (f"echo '{{}}' >>{AUDIT}", f"rm -f {AUDIT}", f"truncate -s0 {AUDIT}", f"cat {AUDIT}"):
        done = run(cluster, "/bin/sh", "-c", attempt)
        assert (done.status != 0, done.out) == (True, ""), attempt
    assert audit_records(cluster) == before
