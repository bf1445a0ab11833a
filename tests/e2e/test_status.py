# SPDX-License-Identifier: GPL-3.0-or-later
"""What people are told of jobs and of the cluster: users of their own jobs, administrators of all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import DOCKERJOB, running_job, service_stopped, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

NUMBER = "988201"


def dockerjob(cluster: Cluster, user: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``dockerjob`` as *user* on node2, where the job's broker is not."""
    argv = [
        "nsenter",
        "-t",
        str(cluster.pids["node2"]),
        "-a",
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
    ]
    return subprocess.run(
        [*argv, "--init-groups", DOCKERJOB, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=60,
    )


@pytest.fixture(scope="class")
def running(cluster: Cluster) -> Iterator[None]:
    """A job of alice's."""
    with running_job(cluster, "alice", "node1,node2", int(NUMBER)):
        # It is loaded after the job has begun, and is nothing that a test leaves behind.
        waiting = "pgrep", "-f", "job_teardown.yml"
        wait_until(lambda: bool(cluster.run("node1", *waiting, check=False)), 30, "Ansible waits for the end")
        yield


@pytest.mark.usefixtures("running")
class TestJobs:
    def test_a_user_sees_the_own_job(self, cluster: Cluster) -> None:
        found: list[dict[str, Any]] = json.loads(dockerjob(cluster, "alice", "jobs", "--json").stdout)
        assert [(one["job_id"], one["phase"], one["ready"]) for one in found] == [(NUMBER, "compute", 2)]
        table = dockerjob(cluster, "alice", "jobs").stdout
        assert "node[1-2]" in table
        assert "2/2" in table

    def test_others_see_nothing_of_it(self, cluster: Cluster) -> None:
        assert json.loads(dockerjob(cluster, "bob", "jobs", "--json").stdout) == []
        for words in (("show", NUMBER), ("logs", NUMBER), ("show", "1")):
            done = dockerjob(cluster, "bob", *words)
            assert (done.returncode, done.stdout) == (201, "")
            assert f"there is no job {words[1]} of yours here now" in done.stderr

    def test_root_sees_all(self, cluster: Cluster) -> None:
        done = dockerjob(cluster, "root", "jobs", "--json")
        assert NUMBER in {one["job_id"] for one in json.loads(done.stdout)}, done.stderr

    def test_show_says_all_there_is(self, cluster: Cluster) -> None:
        found: dict[str, Any] = json.loads(dockerjob(cluster, "alice", "show", NUMBER, "--json").stdout)
        assert [node["ready"] for node in found["nodes"]] == [True, True]
        assert [event["phase"] for event in found["events"]] == ["prepare", "start", "discovery", "compute"]
        assert found["network"]
        text = dockerjob(cluster, "alice", "show", NUMBER).stdout
        for word in ("compute", f"{NUMBER}_node_1", "node2", "VLAN"):
            assert word in text

    def test_logs_are_commands_output_or_the_agents_story(self, cluster: Cluster) -> None:
        assert dockerjob(cluster, "alice", "logs", NUMBER).stdout == "started\nline\n"
        story = dockerjob(cluster, "alice", "logs", NUMBER, "--node", "1", "--agent").stdout
        assert "RECEIVED A READY STATE FOR ALL NODES" in story
        assert dockerjob(cluster, "alice", "logs", NUMBER, "--node", "7").returncode == 201


def test_nothing_runs(cluster: Cluster) -> None:
    assert dockerjob(cluster, "alice", "jobs").stdout == "no jobs\n"


def test_a_question_that_is_none(cluster: Cluster) -> None:
    done = dockerjob(cluster, "alice", "show", "../1")
    assert done.returncode == 201
    assert "is no job id" in done.stderr


class TestDoctor:
    @staticmethod
    def wrong(cluster: Cluster) -> dict[str, str]:
        done = dockerjob(cluster, "root", "doctor", "--json")
        findings = json.loads(done.stdout)
        wrong = {
            f"{one['where']} {one['what']}": one["remedy"] for one in findings if one["level"] == "wrong"
        }
        assert done.returncode == bool(wrong)
        assert all(wrong.values())
        return wrong

    def test_a_cluster_that_is_well(self, cluster: Cluster) -> None:
        assert self.wrong(cluster) == {}

    @pytest.mark.parametrize(
        ("host", "service", "what"),
        [("node3", "docker", "docker"), ("node3", "haproxy", "relay"), ("node3", "ssh", "ssh")],
    )
    def test_what_is_down_is_named(self, cluster: Cluster, host: str, service: str, what: str) -> None:
        with service_stopped(cluster, host, service):
            assert list(self.wrong(cluster)) == [f"{host} {what}"]

    def test_strays_are_named(self, cluster: Cluster) -> None:
        cluster.run("node3", "mkdir", "-p", "/run/dockerjob/jobs/988299")
        try:
            assert list(self.wrong(cluster)) == ["node3 job 988299"]
        finally:
            cluster.run("node3", "rmdir", "/run/dockerjob/jobs/988299")

    def test_it_is_not_for_users(self, cluster: Cluster) -> None:
        done = dockerjob(cluster, "alice", "doctor")
        assert (done.returncode, "only root and dockerjob" in done.stderr) == (202, True)
