# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts as cluster_setup.yml leaves them: sockets, keys, ports, the service account."""

from __future__ import annotations

import json
import stat

import pytest
from dockerjob_lab.client import Cluster

from .attack import run

pytestmark = pytest.mark.lab

HOSTS = ("node1", "node2", "node3")


@pytest.mark.parametrize("host", HOSTS)
def test_dockers_socket_is_roots_alone_and_the_only_one(cluster: Cluster, host: str) -> None:
    status = cluster.path(host, "/run/docker.sock").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode) & 0o007) == (0, 0, 0)
    listening = cluster.run(host, "ss", "-Hltnp")
    assert "sshd" in listening
    assert "dockerd" not in listening
    members = [
        line for line in cluster.run(host, "getent", "group").splitlines() if line.startswith("docker:")
    ]
    assert [line for line in members if not line.endswith(":")] == []


@pytest.mark.parametrize("host", HOSTS)
def test_the_brokers_key_opens_a_shell_and_nothing_else(cluster: Cluster, host: str) -> None:
    keys = cluster.path(host, "/root/.ssh/authorized_keys").read_text().splitlines()
    [line] = [key for key in keys if key.endswith(" dockerjob")]
    options = line.partition("ssh-ed25519")[0]
    assert "restrict" in options.strip().split(",")
    assert 'from="' in options
    assert "pty" not in options.replace("restrict", "")


def test_a_user_reaches_no_host_with_the_brokers_key(cluster: Cluster) -> None:
    known = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes")
    done = run(cluster, "ssh", *known, "-i", "/var/lib/dockerjob/.ssh/id_ed25519", "root@node2", "id")
    assert (done.status, done.out) == (255, ""), done
    assert "Permission denied" in done.err or "Could not resolve" in done.err


@pytest.mark.parametrize("host", HOSTS)
def test_the_service_account_is_nobody_elsewhere(cluster: Cluster, host: str) -> None:
    entry = cluster.run(host, "getent", "passwd", "dockerjob").strip().split(":")
    assert int(entry[2]) < 1000
    assert entry[6] == "/usr/sbin/nologin"
    assert cluster.run(host, "id", "-Gn", "dockerjob").split() == ["dockerjob"]
    assert cluster.run(host, "getent", "shadow", "dockerjob").split(":")[1] in ("!", "*", "!*")
    listed = cluster.run(host, "sudo", "-l", "-U", "dockerjob", check=False)
    assert "NOPASSWD" not in listed.replace(
        '(dockerjob) NOPASSWD: /share/dockerjob/bin/dockerjob-broker ""', ""
    )


@pytest.mark.parametrize("host", HOSTS)
def test_sudo_takes_the_rule_and_it_is_the_only_one(cluster: Cluster, host: str) -> None:
    assert "parsed OK" in cluster.run(host, "visudo", "-c")
    listed = cluster.run(host, "sudo", "-l", "-U", "alice")
    allowed = [line.strip() for line in listed.splitlines() if line.strip().startswith("(")]
    assert allowed == ['(dockerjob) NOPASSWD: /share/dockerjob/bin/dockerjob-broker ""']


def test_the_seccomp_profile_is_roots(cluster: Cluster) -> None:
    status = cluster.path("node1", "/etc/dockerjob/seccomp.json").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode) & 0o022) == (0, 0)
    assert (
        json.loads(cluster.path("node1", "/etc/dockerjob/seccomp.json").read_text())["defaultAction"]
        == "SCMP_ACT_ERRNO"
    )
