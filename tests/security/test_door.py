# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""sudo's one rule, and what comes through it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import WRAPPER

from .attack import (
    BROKER,
    SUDO,
    audit_records,
    broker,
    check_refused,
    encoded,
    last_audit,
    request,
    run,
    script,
    which_limits,
)

pytestmark = pytest.mark.lab

TRAP = "/scratch/alice/trap"


def line(**changes: Any) -> bytes:
    return json.dumps(request(**changes)).encode() + b"\n"


MALFORMED = {
    "nothing": b"",
    "a bare newline": b"\n",
    "an empty object": b"{}\n",
    "a list": b"[]\n",
    "deep nesting": b"[" * 100_000 + b"\n",
    "an empty allocation": b'{"allocation": {}}\n',
    "no unicode": b"\xff\xfe\n",
    "no end": b"x" * 2_000_000,
    "too long": b"x" * 2_000_000 + b"\n",
    "no newline": line()[:-1],
    "a number of 5000 digits": b'{"allocation": ' + b"9" * 5000 + b"}\n",
    "no base64": line(command="not base64!"),
    "a NUL in COMMAND": line(command=encoded(b"a\0b")),
    "an empty COMMAND": line(command=encoded(b" \n")),
    "a COMMAND beyond execve": line(command=encoded(b"a" * 131_072)),
    "HOSTFILE above JOBDIR": line(hostfile="../../../etc/cron.d/x"),
    "HOSTFILE elsewhere": line(hostfile="/etc/cron.d/x"),
    "APPLICATION with a command": line(application="../x; id"),
    "a variable that is none": line(environment={"A=B": "x"}),
    "a variable with a NUL": line(environment={"A": "x\0y"}),
    "a variable that can't be encoded": line(environment={"A": "\ud800"}),
    "a variable beyond execve": line(environment={"A": "x" * 131_072}),
    "a wall-clock before now": line(wall_clock=-1),
    "a number for a truth": line(verbose=1),
    "a truth for a number": line(allocation={"number": True}),
    "a host with a command": line(allocation={"hosts": [["node1;id", 1]]}),
    "a host that is an option": line(allocation={"hosts": [["-oProxyCommand=id", 1]]}),
    "no slots": line(allocation={"hosts": [["node1", 0]]}),
    "no host": line(allocation={"hosts": []}),
    "job 0": line(allocation={"number": 0}),
    "a job that is a path": line(allocation={"number": "../1"}),
}


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_one_line(cluster: Cluster, data: bytes) -> None:
    check_refused(cluster, broker(cluster, data), 201, "")


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "argv",
    [
        (*SUDO, BROKER, "--help"),
        (*SUDO, BROKER, "-c", "id"),
        (*SUDO, "/bin/sh", "-c", "id"),
        (*SUDO, "/share/dockerjob/bin/python", BROKER),
        (*SUDO, f"{BROKER}/../python"),
        ("sudo", "-n", BROKER),
        ("sudo", "-n", "-u", "root", BROKER),
        ("sudo", "-n", "-u", "dockerjob", "-g", "root", BROKER),
        ("sudo", "-n", "-u", "dockerjob", "-s"),
        ("sudoedit", "-n", "-u", "dockerjob", "/etc/dockerjob/config.yml"),
    ],
)
def test_the_rule_fits_no_other_call(cluster: Cluster, argv: tuple[str, ...]) -> None:
    before = len(audit_records(cluster))
    done = run(cluster, *argv)
    assert (done.status, done.out) == (1, ""), done
    assert "a password is required" in done.err or "not allowed" in done.err or "not permitted" in done.err, (
        done
    )
    assert len(audit_records(cluster)) == before


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "argv",
    [
        (*SUDO, "PATH=/scratch", BROKER),
        (*SUDO, "-E", BROKER),
        (*SUDO, "-C", "100", BROKER),
    ],
)
def test_the_rule_lets_no_setting_through(cluster: Cluster, argv: tuple[str, ...]) -> None:
    done = run(cluster, *argv)
    assert (done.status, done.out) == (1, ""), done
    assert "not allowed" in done.err or "not permitted" in done.err or "a password is required" in done.err, (
        done
    )


@pytest.fixture
def trap(cluster: Cluster) -> Iterator[Path]:
    """A directory of alice's with files that leave a mark when someone loads or runs them."""
    cluster.run("node1", "install", "-d", "-m", "0777", "-o", "alice", TRAP)
    directory = cluster.path("node1", TRAP)
    mark = f"import os; open(f'{TRAP}/ran.{{os.getuid()}}', 'w')\n"
    for name in ("sitecustomize.py", "usercustomize.py", "ansible.py", "json.py", "yaml.py", "dockerjob.py"):
        (directory / name).write_text(mark)
    (directory / "ansible.cfg").write_text(f"[defaults]\nlibrary = {TRAP}\nstrategy_plugins = {TRAP}\n")
    for name in ("ssh", "python3", "python", "ansible-playbook", "docker", "sudo", "sh", "bjobs"):
        (directory / name).write_text(f"#!/bin/sh\ntouch {TRAP}/ran.$(id -u)\n")
        (directory / name).chmod(0o755)
    cluster.run("node1", "chmod", "-R", "a+rwX", TRAP)
    yield directory
    cluster.run("node1", "rm", "-rf", TRAP)


POISON = {
    "ANSIBLE_CONFIG": f"{TRAP}/ansible.cfg",
    "ANSIBLE_LIBRARY": TRAP,
    "ANSIBLE_STRATEGY_PLUGINS": TRAP,
    "BASH_ENV": f"{TRAP}/ssh",
    "DOCKER_HOST": "tcp://192.0.2.1:2375",
    "ENV": f"{TRAP}/ssh",
    "HOME": TRAP,
    "LD_LIBRARY_PATH": TRAP,
    "LD_PRELOAD": f"{TRAP}/nothing.so",
    "LSF_ENVDIR": TRAP,
    "PATH": TRAP,
    "PYTHONHOME": TRAP,
    "PYTHONPATH": TRAP,
    "PYTHONSTARTUP": f"{TRAP}/json.py",
    "PYTHONUSERBASE": TRAP,
    "SSH_AUTH_SOCK": f"{TRAP}/socket",
    "SUDO_ASKPASS": f"{TRAP}/ssh",
    "SUDO_UID": "0",
    "SUDO_USER": "root",
    "TMPDIR": TRAP,
}


@pytest.mark.usefixtures("nothing_left", "honest_job")
def test_a_poisoned_caller_runs_nothing_as_the_broker(cluster: Cluster, trap: Path) -> None:
    """Environment, directory, umask, open files and limits are the caller's; the broker has its own."""
    settings = " ".join(f"{name}={value}" for name, value in POISON.items())
    low = ("c unlimited", "f 0", "t 2", "n 30", "v 60000", "d 10000")
    limits = "; ".join(f"ulimit {which_limits()}{limit}" for limit in low)
    call = f"exec /usr/bin/env {settings} /usr/bin/sudo -n -u dockerjob {BROKER}"
    shell = f"cd {TRAP}; umask 0; exec 7</etc/passwd 8>{TRAP}/open; {limits}; {call}"
    before = len(audit_records(cluster))
    done = run(cluster, "/bin/bash", "-c", shell, data=line())
    assert done.status == 0, done
    assert not list(trap.glob("ran.*"))
    assert (trap / "open").read_bytes() == b""
    [record] = audit_records(cluster)[before:]
    assert (record["decision"], record["user"]) == ("accepted", "alice")


@pytest.mark.usefixtures("nothing_left")
def test_a_poisoned_wrapper_runs_nothing_as_another(cluster: Cluster, trap: Path) -> None:
    # With Python's own variables users break their wrapper, and nothing else.
    names = [name for name in POISON if name != "PATH" and not name.startswith("PYTHON")]
    settings = "\n".join(f"export {name}={POISON[name]}" for name in names)
    done = cluster.submit(
        script(b"id -un", extra=f"cd {TRAP}\numask 0\n{settings}\nexport PATH={TRAP}:$PATH")
    )
    alice = cluster.run("node1", "id", "-u", "alice").strip()
    # What the user makes the user's own processes run is the user's business.
    assert {path.name for path in trap.glob("ran.*")} <= {f"ran.{alice}"}
    assert (done.out, done.status) == ("alice\n", 0), done


@pytest.mark.usefixtures("nothing_left", "honest_job")
def test_the_broker_ends_cleanly_when_nobody_reads_what_it_says(cluster: Cluster) -> None:
    before = len(cluster.path("node1", "/var/log/dockerjob/jobs.jsonl").read_text().splitlines())
    done = run(cluster, "/bin/sh", "-c", f"exec sudo -n -u dockerjob {BROKER} >&- 2>/dev/full", data=line())
    assert done.status == 0, done
    reports = cluster.path("node1", "/var/log/dockerjob/jobs.jsonl").read_text().splitlines()[before:]
    assert [json.loads(report)["status"] for report in reports] == [0]
    assert last_audit(cluster)["decision"] == "accepted"


@pytest.mark.usefixtures("nothing_left", "honest_job")
def test_noise_after_the_request_keeps_no_job_alive(cluster: Cluster) -> None:
    """The end of the wrapper is seen behind whatever it has written before."""
    noise = b"[" * 50_000 + b"\n" + b'{"signal": 10}\n' * 1000 + b"x" * 100_000
    sleeping = line(command=encoded(b"sleep 600"))
    cluster.path("node1", "/scratch/alice/noise").write_bytes(sleeping + noise)
    try:
        done = run(cluster, "/bin/sh", "-c", f"exec sudo -n -u dockerjob {BROKER} </scratch/alice/noise")
    finally:
        cluster.run("node1", "rm", "-f", "/scratch/alice/noise")
    assert done.status == 129, done


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "path",
    [
        "/etc/dockerjob/config.yml",
        "/etc/dockerjob/pki",
        "/etc/dockerjob/pki/auth.pem",
        "/etc/dockerjob/pki/broker.pem",
        "/etc/dockerjob/pki/job_ca.pem",
        "/etc/sudoers.d/dockerjob",
        "/var/lib/dockerjob/.ssh/id_ed25519",
        "/var/lib/dockerjob/run",
        "/var/log/dockerjob/audit.jsonl",
        "/var/log/dockerjob/jobs.jsonl",
    ],
)
@pytest.mark.parametrize("user", ["alice", "daemon"])
def test_what_is_the_brokers_can_not_be_read(cluster: Cluster, path: str, user: str) -> None:
    place = cluster.path("node1", path)
    assert place.exists()
    done = run(cluster, "ls" if place.is_dir() else "cat", path, user=user)
    assert (done.status != 0, done.out) == (True, ""), done
    assert "Permission denied" in done.err
    denied = run(cluster, "/bin/sh", "-c", f"echo x >>{path}/x || echo x >>{path}", user=user)
    assert denied.status != 0


@pytest.mark.usefixtures("nothing_happens")
def test_nothing_on_the_way_to_the_broker_is_the_users_to_write(cluster: Cluster) -> None:
    places = (
        "/share/dockerjob",
        "/share/bin",
        "/share/lsf",
        "/usr/local/libexec/dockerjob",
        "/etc/dockerjob",
        "/etc/sudoers.d",
    )
    # Directories that can't be entered are not the user's to write either.
    # Users' own jobs are spooled in one like /tmp, which the lab's bsub has for want of a daemon of root's.
    spool = ("-path", "/share/lsf/spool", "-prune", "-o")
    found = run(cluster, "find", "-L", *places, *spool, "-writable", "-print")
    assert found.out == ""
    assert run(cluster, "test", "-x", WRAPPER).status == 0
