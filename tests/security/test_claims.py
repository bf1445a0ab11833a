# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment says what job this is; only the batch system knows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dockerjob.request import CHECK
from dockerjob_lab.client import CONFIG, Cluster, Outcome
from job_fixtures import job

from .attack import NUMBER, TWO_HOSTS, broker, check_refused, last_audit, request

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("honest_job")]

MORE = (("node1", 2), ("node2", 3))
OUTSIDE = (("node1", 2), ("node3", 2))


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    ("record", "claim", "message"),
    [
        pytest.param({"user": "bob"}, {}, f"job {NUMBER} is not yours, alice", id="another user's job"),
        pytest.param(
            {"user": "bob", "state": "DONE"}, {}, "is not yours, alice", id="no word of another's state"
        ),
        pytest.param({"state": "DONE"}, {}, "is not running; LSF says DONE", id="a finished job"),
        pytest.param({"state": "EXIT"}, {}, "is not running; LSF says EXIT", id="a failed job"),
        pytest.param({"state": "USUSP"}, {}, "is not running; LSF says USUSP", id="a suspended job"),
        pytest.param(
            {"allocation": TWO_HOSTS[:1]},
            {},
            "LSF gave node1:2, claimed is node1:2 node2:2",
            id="a host more",
        ),
        pytest.param(
            {}, {"hosts": OUTSIDE}, "claimed is node1:2 node3:2", id="a host outside the allocation"
        ),
        pytest.param({}, {"hosts": MORE}, "claimed is node1:2 node2:3", id="a slot more"),
        pytest.param({}, {"hosts": TWO_HOSTS[:1]}, "claimed is node1:2", id="a host less"),
        pytest.param(
            {}, {"hosts": (("node1", 4), *TWO_HOSTS)}, "claimed is node1:6 node2:2", id="a host twice"
        ),
        pytest.param(
            {}, {"hosts": (("head", 1),)}, "host head is not in this cluster", id="a host that is none"
        ),
        pytest.param(
            {},
            {"allocation": {"number": NUMBER + 1}},
            f"LSF has no job {NUMBER + 1}",
            id="a job that is none",
        ),
        pytest.param(
            {},
            {"allocation": {"array_index": 5}},
            f"LSF has no job {NUMBER}[5]",
            id="an element that is none",
        ),
        pytest.param(
            {},
            {"allocation": {"scheduler": "none"}},
            "'none' can't be proven",
            id="a batch system that is none",
        ),
    ],
)
def test_a_false_claim_is_refused(
    cluster: Cluster, record: dict[str, Any], claim: dict[str, Any], message: str
) -> None:
    told: dict[str, Any] = {"user": "alice", "allocation": TWO_HOSTS, "state": "RUN", **record}
    cluster.record_job(NUMBER, told["user"], told["allocation"], told["state"])
    check_refused(cluster, broker(cluster, request(**claim)), 202, message)
    assert last_audit(cluster)["user"] == "alice"


@pytest.mark.usefixtures("nothing_happens")
def test_the_question_before_data_are_copied_is_answered_as_the_job_would_be(cluster: Cluster) -> None:
    question = CHECK + json.dumps(request()).encode() + b"\n"
    cluster.record_job(NUMBER, "alice", TWO_HOSTS)
    assert broker(cluster, question) == Outcome(0, "", "")
    cluster.record_job(NUMBER, "bob", TWO_HOSTS)
    check_refused(cluster, broker(cluster, question), 202, f"job {NUMBER} is not yours, alice")
    check_refused(cluster, broker(cluster, CHECK + b"{}\n"), 201, "malformed")


@pytest.mark.usefixtures("nothing_happens")
def test_a_claim_of_the_environment_is_worth_nothing(cluster: Cluster) -> None:
    """The wrapper itself, told by its environment that it is another user's job."""
    cluster.record_job(NUMBER, "bob", TWO_HOSTS)
    done = cluster.submit(
        job(
            extra=f"export LSB_JOBID={NUMBER} LSB_BATCH_JID={NUMBER} USER=bob LOGNAME=bob LSFUSER=bob SUDO_UID=0"
        )
    )
    assert done.status == 202, done
    assert f"job {NUMBER} is not yours, alice" in done.err


@pytest.mark.usefixtures("nothing_happens")
def test_a_batch_system_that_does_not_answer_is_no_proof(cluster: Cluster, site_config: Any) -> None:
    site_config("batch", lsf={"bjobs": "/bin/false"})
    check_refused(cluster, broker(cluster, request()), 213, "LSF gave no answer")


@pytest.mark.usefixtures("nothing_left")
def test_a_second_wrapper_of_a_live_job_is_refused(cluster: Cluster, site_config: Any) -> None:
    site_config("limits", lease_ttl=10)
    process = cluster.start(job("echo started; sleep 40; echo done"), number=NUMBER)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    check_refused(cluster, broker(cluster, request()), 201, "already run by another wrapper on this host")
    path = cluster.path("node2", CONFIG)
    original = path.read_text()
    try:
        path.write_text(original.replace("limits: {", 'limits: {"lease_ttl": 10, ').replace(", }", "}"))
        there = broker(cluster, request(), host="node2")
    finally:
        path.write_text(original)
    assert (there.status, "by another wrapper, on node1" in there.err) == (202, True), there
    assert "by another wrapper" in last_audit(cluster, "node2")["reason"]
    out, _ = process.communicate(timeout=90)
    assert (out, process.returncode) == ("done\n", 0)
