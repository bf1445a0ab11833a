# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys are where they are needed and nowhere else: not in listings, logs, Docker, Ansible's files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from dockerjob_core import names
from dockerjob_lab.client import Cluster
from job_fixtures import job

from .attack import run

pytestmark = pytest.mark.lab

SECRET = re.compile(r"BEGIN [A-Z ]*PRIVATE|content_b64|LS0tLS1CRUdJTi|the-users-own-word")
"""A private key, plain or in base64, the field that carries files, and a variable of the user's."""

GATHER = r"""
for p in /proc/[0-9]*; do tr '\0' '\n' <$p/cmdline; echo; done 2>/dev/null
cat /var/log/dockerjob/* /var/log/auth.log /var/log/syslog /var/log/docker* /var/log/*/docker* 2>/dev/null
find /var/lib/dockerjob/run -type f -exec cat {} + 2>/dev/null
find /tmp /var/tmp /root/.ansible -newer /var/lib/dockerjob/run -type f -exec cat {} + 2>/dev/null
docker ps -aq --filter label=dockerjob.job | xargs -r docker inspect
for p in $(docker ps -q --filter label=dockerjob.job); do docker logs $p; done 2>&1
true
"""
"""All that a look at a host shows while a job runs, but its own directory, which is root's."""


@pytest.fixture(scope="module")
def seen(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Both hosts from the start of a job to its end, and a copy of its certificate."""
    extra = "export WORD=the-users-own-word DOCKERJOB_ENVIRONMENT=WORD"
    copy = "/scratch/alice/stolen"
    command = f"mkdir -p {copy}; cp /run/dockerjob/job/*.pem {copy}; echo $DOCKERJOB_JOB; sleep 4"
    process = cluster.start(job(command, extra=extra))
    texts = []
    while process.poll() is None:
        texts += [cluster.run(host, "sh", "-c", GATHER) for host in ("node1", "node2")]
        time.sleep(0.1)
    out, err = process.communicate()
    assert process.returncode == 0, err
    yield {"text": "\n".join([*texts, err]), "job": out.strip(), "copy": copy}
    cluster.run("node1", "rm", "-rf", copy)


def test_what_was_gathered_is_what_a_host_shows(seen: dict[str, Any]) -> None:
    for sign in ("docker logs --follow", "ansible-playbook", '"decision": "accepted"', "dockerjob.spec"):
        sign = sign.replace(" ", "\n") if sign.startswith("docker logs") else sign
        assert sign in seen["text"]


def test_no_secret_is_in_listings_logs_docker_or_ansibles_files(seen: dict[str, Any]) -> None:
    found = {match.group() for match in SECRET.finditer(seen["text"])}
    # The user's own submit script runs with the user's variables, which others can't read.
    assert found == set()


def test_a_certificate_is_worthless_after_its_job(cluster: Cluster, seen: dict[str, Any]) -> None:
    """What a user copies out of the container opens nothing once the job is over."""
    copy, own = seen["copy"], names.job_prefix(seen["job"])
    client = ("etcdctl", "--endpoints=unix:///run/dockerjob/relay/etcd.sock", "--command-timeout=5s",
              f"--cacert={copy}/ca.pem", f"--cert={copy}/cert.pem", f"--key={copy}/key.pem")  # fmt: skip
    for action in (
        ("get", own, "--prefix"),
        ("put", f"{own}FINISH", "0"),
        ("get", "/", "--prefix"),
        ("del", own, "--prefix"),
    ):
        done = run(cluster, "env", "ETCDCTL_API=3", *client, *action)
        assert (done.status != 0, done.out) == (True, ""), (action, done)
    with cluster.kvs() as kvs:
        assert kvs.get_prefix(own).items == ()


@pytest.mark.usefixtures("nothing_left")
def test_a_running_jobs_files_are_closed_to_everyone_else(cluster: Cluster) -> None:
    process = cluster.start(job("echo started; exec sleep 600", slots=1, ptile=1), hosts="node1")
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "started\n"
        [name] = cluster.run(
            "node1", "docker", "ps", "--format", "{{.Names}}", "--filter", "label=dockerjob.job"
        ).split()
        job_id = name.split("_node_")[0]
        [broker] = cluster.run("node1", "pgrep", "-o", "-u", "dockerjob", "-f", "dockerjob-broker").split()
        agent = json.loads(cluster.run("node1", "docker", "inspect", name))[0]["State"]["Pid"]
        directory = names.host_job_directory(job_id)
        for user, path in (
            ("bob", f"/proc/{agent}/environ"), ("bob", f"/proc/{agent}/root/run/dockerjob/job/key.pem"),
            ("bob", f"/proc/{agent}/cwd"), ("alice", f"/proc/{broker}/environ"), ("alice", f"/proc/{broker}/mem"),
            ("alice", f"{directory}/ro/key.pem"), ("bob", f"{directory}/ro/key.pem"), ("bob", directory),
        ):  # fmt: skip
            done = run(cluster, "head", "-c1", path, user=user)
            assert (done.status != 0, done.out) == (True, ""), (user, path)
            assert "Permission denied" in done.err
        for user in ("alice", "bob"):
            done = run(cluster, "kill", "-STOP", broker, user=user)
            assert (done.status != 0, "not permitted" in done.err) == (True, True), done
    finally:
        cluster.run("node1", "pkill", "-INT", "-u", "alice", "-f", "bin/hpc_submit_dockerjob")
        process.communicate(timeout=60)
