# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user prepares before the broker starts, or does while it runs, changes nothing for others."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import yaml
from dockerjob.request import JobRequest
from dockerjob_core import names
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_lab.client import CONFIG, Cluster

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

BROKER = "/share/dockerjob/bin/dockerjob-broker"
NUMBER = 986_000
ALL = (("node1", 2), ("node2", 2))
ONE = ALL[:1]
WITH_KVS = """
import os, sys, time
sys.path.insert(0, "/opt/dockerjob/lib/python3.11/site-packages")
from dockerjob_core.kvs import Endpoint, Kvs
files = "/run/dockerjob/job"
socket = "unix:/run/dockerjob/relay/etcd.sock"
kvs = Kvs.connect(Endpoint(socket, f"{files}/ca.pem", f"{files}/cert.pem", f"{files}/key.pem"))
own = os.environ["DOCKERJOB_JOB"]
"""


class Broker:
    """A broker that a user has called by hand; its standard input stays open until :meth:`hang_up`."""

    def __init__(self, cluster: Cluster, host: str, user: str, before: Sequence[str], request: bytes) -> None:
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        argv = [*become, *before, "sudo", "-n", "-u", "dockerjob", BROKER]
        self._process = subprocess.Popen(
            ["nsenter", "-t", str(cluster.pids[host]), "-a", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        assert self._process.stdin
        assert self._process.stdout
        self.stdin, self.stdout = self._process.stdin, self._process.stdout
        self.stdin.write(request.decode())
        self.stdin.flush()

    def end(self, timeout: float = 120) -> tuple[int, str, str]:
        """Wait for its end; return status, output, errors."""
        assert self._process.stderr
        status = self._process.wait(timeout)
        return status, self.stdout.read(), self._process.stderr.read()

    def hang_up(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()


@pytest.fixture
def call(cluster: Cluster) -> Iterator[Any]:
    """Call the broker as the owner of a running job, or as somebody else."""
    started: list[Broker] = []

    def start(
        command: str,
        hosts: Sequence[tuple[str, int]] = ONE,
        host: str = "node1",
        user: str = "alice",
        before: Sequence[str] = (),
    ) -> Broker:
        allocation = Allocation("lsf", NUMBER, None, tuple(HostSlots(*pair) for pair in hosts))
        request = JobRequest(allocation, "mpihello:1", command.encode(), "/scratch/alice")
        started.append(Broker(cluster, host, user, before, request.to_json()))
        return started[-1]

    cluster.record_job(NUMBER, "alice", ONE)
    yield start
    for broker in started:
        broker.hang_up()
        broker.end()


def python(code: str) -> str:
    """COMMAND that runs *code* with a connection ``kvs`` to etcd."""
    encoded = base64.b64encode((WITH_KVS + code).encode()).decode()
    return f"echo {encoded} | base64 -d | /opt/dockerjob/bin/python -"


@contextlib.contextmanager
def settings(cluster: Cluster, host: str, section: str, **keys: Any) -> Iterator[None]:
    """Change the configuration of one host."""
    path = cluster.path(host, CONFIG)
    original = path.read_text()
    document = yaml.safe_load(original)
    document.setdefault(section, {}).update(keys)
    path.write_text(yaml.safe_dump(document))
    try:
        yield
    finally:
        path.write_text(original)


def keys(cluster: Cluster) -> set[str]:
    with cluster.kvs() as kvs:
        return {item.key for item in kvs.get_prefix("/").items}


def test_a_second_wrapper_takes_nothing_of_the_first(cluster: Cluster, call: Any) -> None:
    """Its network must stay its own as long as it has ports, or another user's job gets it too."""
    cluster.record_job(NUMBER, "alice", ALL)
    with settings(cluster, "node2", "limits", lease_ttl=10):
        first = call("echo started; sleep 60", ALL)
        assert first.stdout.readline() == "started\n"
        before = keys(cluster)
        assert names.leader_key(str(NUMBER)) in before
        status, _, errors = call("echo second", ALL, host="node2").end()
    assert (status, "already run by another wrapper, on node1" in errors) == (202, True), errors
    assert keys(cluster) == before
    first.hang_up()
    assert first.end()[0] == 129


def test_another_user_can_not_hold_a_job_s_lock(cluster: Cluster, call: Any) -> None:
    others = [call("true", user="bob") for _ in range(3)]
    time.sleep(0.4)
    status, out, errors = call("echo mine").end()
    assert (status, out) == (0, "mine\n"), errors
    for other in others:
        status, out, errors = other.end()
        assert (status, out) in ((202, ""), (201, "")), errors


@pytest.mark.parametrize(
    ("value", "status"), [("abc", 204), ("-5", 204), ("1_0", 204), ("9" * 30, 204), ("300", 204), ("7", 7)]
)
def test_an_odd_finish_is_an_error_with_a_report(
    call: Any, cluster: Cluster, value: str, status: int
) -> None:
    ended, _, errors = call(python(f"kvs.put(f'/{{own}}/FINISH', '{value}'); time.sleep(9)")).end()
    assert ended == status
    assert "Traceback" not in errors
    assert ("no exit status" in errors) == (status == 204)
    report = cluster.path("node1", "/var/log/dockerjob/jobs.jsonl").read_text().splitlines()[-1]
    assert json.loads(report)["status"] == status


def test_keys_that_are_no_text_disturb_nobody(call: Any) -> None:
    put = (
        "kvs._channel.kv.Put(kvs._rpc.PutRequest(key=f'/{own}/'.encode() + b'\\xff', value=b'x'), timeout=5)"
    )
    status, out, errors = call(python(f"{put}; time.sleep(2); print('end')")).end()
    assert (status, out) == (0, "end\n")
    assert "Traceback" not in errors


def test_a_job_that_the_batch_system_has_ended_loses_its_containers(cluster: Cluster, call: Any) -> None:
    """Also where the caller lives on, in a session of its own for example."""
    with settings(cluster, "node1", "batch", recheck=2):
        broker = call("echo started; sleep 100; echo still")
        assert broker.stdout.readline() == "started\n"
        cluster.record_job(NUMBER, "alice", ONE, "USUSP")
        time.sleep(5)
        assert f"{NUMBER}_node_0" in cluster.run("node1", "docker", "ps", "--format", "{{.Names}}")
        cluster.record_job(NUMBER, "alice", ONE, "DONE")
        status, out, errors = broker.end(40)
    assert (status, out) == (202, "")
    assert "LSF says DONE; its containers were ended" in errors


def test_an_ignored_signal_of_the_caller_s_changes_no_status(call: Any) -> None:
    code = "import os, signal, sys; signal.signal(17, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    status, _, errors = call("exit 3", before=("python3", "-c", code)).end()
    assert status == 3
    assert "Traceback" not in errors


@pytest.mark.parametrize("option", ["--fsize=1024", "--cpu=2", "--nofile=40"])
def test_limits_of_the_caller_s_are_refused_and_recorded(cluster: Cluster, call: Any, option: str) -> None:
    log = cluster.path("node1", "/var/log/dockerjob/audit.jsonl")
    before = len(log.read_text().splitlines())
    status, _, errors = call("true", before=("prlimit", option)).end()
    assert (status, "the limit of this shell" in errors) == (201, True), errors
    recorded = log.read_text().splitlines()[before:]
    # What can't be written to the file is in syslog only.
    assert [json.loads(line)["decision"] for line in recorded] in (["refused"], [])
    assert recorded or option.startswith("--fsize")


def test_what_follows_the_request_is_no_memory(cluster: Cluster, call: Any) -> None:
    broker = call("echo started; sleep 60")
    assert broker.stdout.readline() == "started\n"
    for _ in range(200):
        broker.stdin.write("x" * 1_000_000)
    sizes = cluster.run("node1", "ps", "-o", "rss=", "-u", "dockerjob").split()
    assert max(map(int, sizes)) < 150_000
    broker.hang_up()
    assert broker.end()[0] == 129


@pytest.mark.parametrize("group", ["docker", "disk"])
def test_the_system_s_groups_stay_outside(cluster: Cluster, call: Any, group: str) -> None:
    cluster.run("node1", "usermod", "--append", "--groups", group, "alice")
    try:
        status, out, errors = call("id -G; id -g").end()
        uid = cluster.run("node1", "id", "-g", "alice").strip()
        socket = cluster.run("node1", "stat", "-L", "-c", "%u %g %A", "/var/run/docker.sock").split()
    finally:
        cluster.run("node1", "gpasswd", "--delete", "alice", group)
    assert (status, out.split()) == (0, [uid, uid]), errors
    assert socket[:2] == ["0", "0"]
    assert socket[2].endswith("---")


def test_a_closed_account_starts_nothing(cluster: Cluster, call: Any) -> None:
    cluster.run("node1", "usermod", "--shell", "/usr/sbin/nologin", "alice")
    try:
        status, _, errors = call("true").end()
    finally:
        cluster.run("node1", "usermod", "--shell", "/bin/bash", "alice")
    assert (status, "account alice is closed" in errors) == (202, True), errors
    cluster.run("node1", "usermod", "--expiredate", "2000-01-01", "alice")
    try:
        status, out, errors = call("echo ran").end()
    finally:
        cluster.run("node1", "usermod", "--expiredate", "", "alice")
    assert (status, out, "account validation failure" in errors) == (1, "", True), errors
