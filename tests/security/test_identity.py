# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody becomes anyone else: the deck's ``docker run -v /home:/home -u 1000``, tried at every layer."""

from __future__ import annotations

from typing import Any

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import job

from .attack import NUMBER, TWO_HOSTS, broker, check_refused, request, run, script

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("honest_job")]

SPOOF = ("docker", "run", "-v", "/home:/home", "-u", "1000", "mpihello:1", "touch", "/home/bob/spoofed")


def nothing_is_bobs(cluster: Cluster) -> bool:
    return not cluster.path("node1", "/home/bob/spoofed").exists()


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "argv",
    [SPOOF, ("docker", "ps"), ("docker", "exec", "x", "id"), ("docker", "-H", "tcp://localhost:2375", "ps")],
)
def test_a_user_has_no_docker(cluster: Cluster, argv: tuple[str, ...]) -> None:
    done = run(cluster, *argv)
    assert (done.status != 0, done.out) == (True, "")
    assert "permission denied" in done.err.lower() or "Cannot connect to the Docker daemon" in done.err
    assert nothing_is_bobs(cluster)


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "argv",
    [("sudo", "-n", *SPOOF), ("sudo", "-n", "-u", "dockerjob", *SPOOF), ("sudo", "-n", "-u", "bob", "id")],
)
def test_sudo_gives_nothing_but_the_broker(cluster: Cluster, argv: tuple[str, ...]) -> None:
    done = run(cluster, *argv)
    assert (done.status != 0, done.out) == (True, "")
    assert "a password is required" in done.err


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "changes",
    [
        {"user": "1000:1000"},
        {"uid": 1000},
        {"mounts": [{"source": "/home", "target": "/home"}]},
        {"docker_options": ["-v", "/home:/home", "-u", "1000"]},
        {"privileged": True},
        {"allocation": {"owner": "bob"}},
    ],
)
def test_a_request_has_no_room_for_docker_options(cluster: Cluster, changes: dict[str, Any]) -> None:
    check_refused(cluster, broker(cluster, request(**changes)), 201, "is not part of a request")


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "application",
    [
        "mpihello:1 -u 1000 -v /home:/home",
        "--privileged",
        "-v/home:/home",
        "mpihello:1\n-u1000",
        "../mpihello:1",
    ],
)
def test_an_image_name_has_no_room_for_docker_options(cluster: Cluster, application: str) -> None:
    check_refused(cluster, broker(cluster, request(application=application)), 201, "is no image name")


@pytest.mark.usefixtures("nothing_left")
def test_a_job_touches_another_users_file_on_no_host(cluster: Cluster) -> None:
    """The deck's example as COMMAND, on every node of a job whose environment claims to be bob's."""
    command = 'for n in $(cut -d" " -f1 /run/dockerjob/node/hostfile); do ssh $n "id -u; touch /home/bob/spoofed"; done'
    bob = cluster.run("node1", "id", "-u", "bob").strip()
    extra = f"export USER=bob LOGNAME=bob UID_=1 DOCKER_USER={bob} SUDO_UID={bob} SUDO_USER=bob"
    done = cluster.submit(job(command, extra=extra))
    alice = cluster.run("node1", "id", "-u", "alice").strip()
    assert done.out.split() == [alice, alice], done
    assert done.err.count("cannot touch '/home/bob/spoofed': Permission denied") == 2
    assert done.status != 0
    assert nothing_is_bobs(cluster)


@pytest.mark.usefixtures("nothing_left")
def test_a_script_that_lies_about_its_user_runs_as_its_user(cluster: Cluster) -> None:
    lies = "export USER=root LOGNAME=root HOME=/root LSFUSER=root LSB_JOB_EXECUSER=root SUDO_UID=0 SUDO_USER=root"
    done = cluster.submit(script(b'id -un; echo "$USER $LOGNAME $HOME"', extra=lies))
    assert done.out.splitlines() == ["alice", "alice alice /home/alice"], done


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("user", ["root", "daemon", "dockerjob", "nobody"])
def test_system_accounts_get_no_job(cluster: Cluster, user: str) -> None:
    """Even if the batch system says that it is theirs."""
    cluster.record_job(NUMBER, user, TWO_HOSTS)
    check_refused(cluster, broker(cluster, request(), user=user), 202, "is a system account", user)
