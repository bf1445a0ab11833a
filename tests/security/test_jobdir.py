# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""JOBDIR and what lies in it are the user's to arrange: links, swaps, traps in a mounted home."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import job

from .attack import NUMBER, ONE_HOST, as_user, broker, encoded, request, run, script, write_as

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

CASE = "/scratch/alice/case"


@pytest.fixture
def case(cluster: Cluster) -> Iterator[str]:
    """An empty directory of alice's, for a job."""
    cluster.record_job(NUMBER, "alice", ONE_HOST)
    cluster.run("node1", "install", "-d", "-o", "alice", "-g", "alice", CASE)
    yield CASE
    cluster.run("node1", "rm", "-rf", CASE)


@pytest.mark.parametrize("target", ["/etc", "/scratch/bob", "/"])
def test_a_jobdir_that_leads_elsewhere_is_refused(cluster: Cluster, case: str, target: str) -> None:
    """If a request is written by hand; the wrapper names the directory that the link leads to."""
    cluster.run("node1", "ln", "-sfn", target, f"{case}/link")
    done = broker(cluster, request(ONE_HOST, jobdir=f"{case}/link", command=encoded("touch x; pwd")))
    assert (done.status, done.out) == (204, ""), done
    assert f"JOBDIR {case}/link leads to {target}" in done.err
    assert not cluster.path("node1", "/scratch/bob/x").exists()


def test_a_jobdir_below_a_link_is_refused(cluster: Cluster, case: str) -> None:
    cluster.run("node1", "ln", "-sfn", "/scratch/bob", f"{case}/link")
    cluster.run("node1", "install", "-d", "-o", "bob", "-g", "bob", "/scratch/bob/sub")
    try:
        done = broker(cluster, request(ONE_HOST, jobdir=f"{case}/link/sub"))
    finally:
        cluster.run("node1", "rmdir", "/scratch/bob/sub")
    assert (done.status, done.out) == (204, ""), done
    assert "leads to /scratch/bob/sub" in done.err


def test_the_wrapper_refuses_a_link_out_of_the_mounts(cluster: Cluster, case: str) -> None:
    cluster.run("node1", "ln", "-sfn", "/etc", f"{case}/link")
    done = cluster.submit(job(jobdir=f"{case}/link"))
    assert (done.status, done.out) == (202, ""), done
    assert "JOBDIR=/etc is on no file system that the containers see" in done.err


def test_a_jobdir_of_another_user_can_not_be_entered(cluster: Cluster, private_directory: str) -> None:
    cluster.record_job(NUMBER, "alice", ONE_HOST)
    done = broker(cluster, request(ONE_HOST, jobdir=private_directory, command=encoded("cat secret")))
    assert (done.status != 0, done.out) == (True, ""), done
    assert private_directory in done.err
    assert "hidden" not in done.err


def test_a_jobdir_swapped_in_a_race_leads_nowhere(
    cluster: Cluster, case: str, private_directory: str
) -> None:
    """Whatever it is at the moment of its use, the user's own rights are all that counts."""
    swap = f"""
cd {case}; mkdir work
while [ ! -e stop ]; do
  mv -T work real; ln -s {private_directory} work; rm work; mv -T real work
done
"""
    argv = ["nsenter", "-t", str(cluster.pids["node1"]), "-a", *as_user("alice", "/bin/sh", "-c", swap)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True) as swapping:
        try:
            probe = encoded("pwd -P; cat secret; exit 7")
            ends = [
                broker(cluster, request(ONE_HOST, jobdir=f"{case}/work", command=probe)) for _ in range(4)
            ]
        finally:
            cluster.run("node1", "touch", f"{case}/stop")
            swapping.wait(20)
    for done in ends:
        assert "hidden" not in done.out + done.err
        assert done.status != 0
        assert done.out.strip() in ("", f"{case}/work", f"{case}/real"), done


@pytest.mark.parametrize("mode", ["0600", "0666"])
def test_a_hostfile_that_is_a_link_is_replaced_and_not_followed(
    cluster: Cluster, case: str, mode: str
) -> None:
    theirs = write_as(cluster, "bob", "/scratch/bob/notes", "bob's\n", mode)
    cluster.run("node1", "ln", "-s", "/scratch/bob/notes", f"{case}/machines")
    try:
        done = broker(
            cluster, request(ONE_HOST, jobdir=case, hostfile="machines", command=encoded("cat machines"))
        )
        assert theirs.read_text() == "bob's\n"
    finally:
        theirs.unlink()
    assert (done.out, done.status) == (f"{NUMBER}_node_0 slots=1\n", 0), done
    assert cluster.path("node1", f"{case}/machines").is_symlink() is False


def test_a_hostfile_below_a_link_out_of_jobdir_is_refused(cluster: Cluster, case: str) -> None:
    cluster.run("node1", "ln", "-s", "/scratch/lustre", f"{case}/out")
    done = broker(cluster, request(ONE_HOST, jobdir=case, hostfile="out/machines"))
    assert (done.status, done.out) == (204, ""), done
    assert "HOSTFILE out/machines leads out of JOBDIR" in done.err
    assert not cluster.path("node1", "/scratch/lustre/machines").exists()


TRAPS = {
    ".ssh/config": "Host *\n  PermitLocalCommand yes\n  LocalCommand id -u >>/home/alice/marks\n",
    ".ssh/rc": "id -u >>/home/alice/marks\n",
    ".bashrc": "id -u >>/home/alice/marks\n",
    ".bash_profile": "id -u >>/home/alice/marks\n",
    ".profile": "id -u >>/home/alice/marks\n",
    ".local/lib/python3.11/site-packages/usercustomize.py": (
        "import os; open('/home/alice/marks', 'a').write(f'{os.getuid()}\\n')\n"
    ),
    ".ansible.cfg": "[defaults]\nlibrary = /home/alice\n",
    ".docker/config.json": '{"credsStore": "../../../../home/alice/.bashrc"}\n',
}  # fmt: skip


@pytest.fixture
def mined_home(cluster: Cluster) -> Iterator[None]:
    """Files in alice's home that leave a mark when a shell, ssh or Python reads them."""
    kept = "/home/alice.kept"
    cluster.run("node1", "cp", "-a", "/home/alice", kept)
    for name, text in TRAPS.items():
        write_as(cluster, "alice", f"/home/alice/{name}", text, "0644")
    cluster.run("node1", "chown", "-R", "alice:alice", "/home/alice")
    yield
    cluster.run("node1", "sh", "-c", f"rm -rf /home/alice && mv {kept} /home/alice")


@pytest.mark.usefixtures("mined_home")
def test_files_in_a_mounted_home_run_as_their_user_or_not_at_all(cluster: Cluster) -> None:
    done = cluster.submit(
        job("ssh $(sed -n 2p /run/dockerjob/node/hostfile | cut -d' ' -f1) id -u".replace("'", '"'))
    )
    alice = cluster.run("node1", "id", "-u", "alice").strip()
    assert (done.out.strip(), done.status) == (alice, 0), done
    assert set(cluster.path("node1", "/home/alice/marks").read_text().split()) == {alice}


def test_a_jobdir_that_vanishes_ends_the_job_alone(cluster: Cluster, case: str) -> None:
    done = cluster.submit(script(b"cd /; rm -rf /scratch/alice/case; exit 3", jobdir=case), hosts="node1")
    assert done.status == 3, done
    assert run(cluster, "ls", case).status != 0
