# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole jobs whose data are copied in and out, and what containers see of the hosts' file systems."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dockerjob_core import names
from dockerjob_lab.client import CONFIG, Cluster
from job_fixtures import WRAPPER, finish, job, refused, signal_wrapper, started, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

CASE = "/home/alice/case"
RSYNC = "/usr/bin/rsync"


def as_alice(cluster: Cluster, script: str, host: str = "node1") -> str:
    return cluster.run(
        host, "setpriv", "--reuid=alice", "--regid=alice", "--init-groups", "sh", "-ec", script
    )


@pytest.fixture
def case(cluster: Cluster) -> Iterator[Path]:
    """A directory of alice's, seen from here; what a test leaves of hers in scratch space goes, too."""
    as_alice(
        cluster,
        f"mkdir {CASE} /scratch/alice/job; cd {CASE}; mkdir -p in/deep; echo 7 >in/deep/seven; echo 'a b' >'a b'",
    )
    yield cluster.path("node1", CASE)
    cluster.run("node1", "sh", "-c", f"rm -rf {CASE} /scratch/alice/job /scratch/alice/dockerjob.*")


def in_scratch(cluster: Cluster) -> list[str]:
    return sorted(path.name for path in cluster.path("node1", "/scratch/alice").glob("dockerjob.*"))


@contextlib.contextmanager
def mounted(cluster: Cluster, path: str, *options: str) -> Iterator[Path]:
    """Have a file system of a test's own on node1."""
    cluster.run("node1", "mkdir", "-p", path)
    cluster.run("node1", "mount", "-t", "tmpfs", *options, "test", path)
    try:
        yield cluster.path("node1", path)
    finally:
        cluster.run("node1", "umount", "-R", path)
        cluster.run("node1", "rmdir", path)


def test_a_job_in_scratch_space_gets_its_inputs_and_brings_its_results(cluster: Cluster, case: Path) -> None:
    """All hosts see the inputs; results of a COMMAND that fails come, too; closed directories go."""
    command = """pwd; stat -c "%a %U" .; ls; cat in/deep/seven; echo here >here
set -- $(cut -d" " -f1 /run/dockerjob/node/hostfile)
ssh $2 "cd $PWD && cat in/deep/seven && echo there >out.there"
mkdir -p res/deep; mv here res/deep; mkdir closed; touch closed/x; chmod 500 closed
mkdir -m 300 dark; exit 3"""
    extra = (
        f'cd {CASE}; unset JOBDIR\nexport STAGE_IN="in \'a b\'" STAGE_OUT="out.* res" STAGE_OUT_TO=results'
    )
    done = cluster.submit(job(command, extra=extra))
    where, *lines = done.out.splitlines()
    assert done.status == 3, done
    assert where.startswith("/scratch/alice/dockerjob.")
    assert lines == ["700 alice", "a b", "in", "7", "7"]
    results = case / "results"
    assert (results / "out.there").read_text() == "there\n"
    assert (results / "res/deep/here").read_text() == "here\n"
    assert sorted(path.name for path in results.iterdir()) == ["out.there", "res"]
    assert in_scratch(cluster) == [], done.err


def test_a_jobdir_on_the_first_hosts_own_disk_reaches_the_others(cluster: Cluster, case: Path) -> None:
    """Its contents are on all hosts while COMMAND runs, and what that has made is there afterwards."""
    own = "/local/alice"
    cluster.run("node1", "install", "-d", "-o", "alice", own)
    as_alice(cluster, f"echo 7 >{own}/seven")
    command = """set -- $(cut -d" " -f1 /run/dockerjob/node/hostfile)
ssh $2 "cd $PWD && cat seven && echo there >out.there"; exit 4"""
    try:
        done = cluster.submit(job(command, jobdir=own, extra=f"cd {CASE}"))
        assert (done.status, done.out) == (4, "7\n"), done
        assert cluster.run("node1", "ls", own).split() == ["out.there", "seven"]
        assert cluster.run("node2", "ls", "-d", own, check=False) == ""
        assert in_scratch(cluster) == [], done.err
        cluster.run("node1", "sh", "-c", f"rm {own}/*")
        done = cluster.submit(job("echo wrote nothing", jobdir=own, extra=f"cd {CASE}"))
        assert (done.status, done.out) == (0, "wrote nothing\n"), done
        assert in_scratch(cluster) == [], done.err
    finally:
        cluster.run("node1", "rm", "-r", "/local")


def test_results_that_can_not_be_found_stay(cluster: Cluster, case: Path) -> None:
    command = "mkdir a b; echo 1 >a/x.dat; echo 2 >b/x.dat; chmod 300 b"
    extra = f"cd {CASE}; unset JOBDIR\nexport STAGE_OUT='**/*.dat'"
    done = cluster.submit(job(command, slots=1, extra=extra), hosts="node1")
    (kept,) = in_scratch(cluster)
    assert done.status == 206, done
    assert f"STAGE_OUT failed: /scratch/alice/{kept}/b/: Permission denied; the results stay in" in done.err
    assert cluster.path("node1", f"/scratch/alice/{kept}/b/x.dat").read_text() == "2\n"


def test_an_output_file_without_space_costs_no_results(cluster: Cluster, case: Path) -> None:
    extra = f"cd {CASE}; unset JOBDIR\nexport STAGE_OUT=x STAGE_OUT_TO=results\nexec 2>/dev/full"
    done = cluster.submit(job("echo 1 >x; exit 3", slots=1, extra=extra), hosts="node1")
    assert (done.status, "hpc_submit_dockerjob" in done.err) == (3, False), done
    assert (case / "results/x").read_text() == "1\n"
    assert in_scratch(cluster) == []


def test_a_failed_stage_out_keeps_the_results_says_where_and_is_made_up_for(
    cluster: Cluster, case: Path
) -> None:
    extra = "unset JOBDIR\nexport STAGE_OUT=big STAGE_OUT_TO=/mnt/small/results"
    with mounted(cluster, "/mnt/small", "-o", "size=1m,mode=1777"):
        done = cluster.submit(job("head -c 3000000 /dev/urandom >big", slots=1, extra=extra), hosts="node1")
    (kept,) = in_scratch(cluster)
    assert (done.status, "No space left on device (28)" in done.err) == (206, True), done
    assert "hpc_submit_dockerjob: STAGE_OUT failed: " in done.err
    assert f"the results stay in /scratch/alice/{kept}; " in done.err
    as_alice(cluster, f"cd {CASE}; JOBDIR=/scratch/alice/{kept} STAGE_OUT=big {WRAPPER} --stage-out")
    assert (case / "big").read_bytes() == cluster.path("node1", f"/scratch/alice/{kept}/big").read_bytes()


def test_a_job_that_the_site_refuses_copies_nothing(cluster: Cluster, case: Path) -> None:
    extra = f"cd {CASE}\nexport STAGE_IN=in STAGE_OUT='*'"
    done = cluster.submit(job(jobdir="/scratch/alice/job", application="nosuch:1", extra=extra))
    refused(done, 201, "APPLICATION=nosuch:1 is not known here")
    refused(
        cluster.submit(job(extra=extra.replace("=in ", "=out "))), 201, f"STAGE_IN: there is no {CASE}/out"
    )
    assert list(cluster.path("node1", "/scratch/alice/job").iterdir()) == []
    assert "STAGE_IN:" not in done.err


@contextlib.contextmanager
def slow_rsync(cluster: Cluster) -> Iterator[None]:
    """Have node1's rsync copy 4 MB a second."""
    cluster.run("node1", "sh", "-ec", f"cp {RSYNC} /run/rsync; install -m 755 /dev/null /run/rsync.slow")
    cluster.path("node1", "/run/rsync.slow").write_text('#!/bin/sh\nexec /run/rsync --bwlimit=4m "$@"\n')
    cluster.run("node1", "mount", "--bind", "/run/rsync.slow", RSYNC)
    try:
        yield
    finally:
        cluster.run("node1", "umount", RSYNC)
        cluster.run("node1", "rm", "/run/rsync", "/run/rsync.slow")


def test_staging_that_a_signal_ends_goes_on_with_the_next_run(cluster: Cluster, case: Path) -> None:
    as_alice(cluster, f"head -c 100000000 /dev/urandom >{CASE}/big")
    jobdir = cluster.path("node1", "/scratch/alice/job")
    command = f"cmp big {CASE}/big && echo same"
    script = job(command, slots=1, jobdir="/scratch/alice/job", extra=f"export STAGE_IN={CASE}/big")
    with slow_rsync(cluster):
        process = cluster.start(script, hosts="node1")
        wait_until(
            lambda: any(path.stat().st_size > 6_000_000 for path in jobdir.iterdir()), 60, "some of it"
        )
        signal_wrapper(cluster, "USR2")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (140, ""), err
    assert "hpc_submit_dockerjob: ended by SIGUSR2" in err
    assert [path.name for path in jobdir.iterdir()] == [names.STAGING_PARTIAL]
    done = cluster.submit(script, hosts="node1")
    assert (done.out, done.status) == ("same\n", 0), done
    assert [path.name for path in jobdir.iterdir()] == ["big"]


def test_containers_see_what_is_mounted_later_and_may_not_write_where_it_is_read_only(
    cluster: Cluster,
) -> None:
    """As an automounter mounts a home when it is first looked at."""
    path = cluster.path("node1", CONFIG)
    original = path.read_text()
    document = yaml.safe_load(original)
    document["mounts"].append({"path": "/mnt/auto", "read_only": True, "propagation": "rslave"})
    with mounted(cluster, "/mnt/auto", "-o", "mode=1777") as auto:
        cluster.run("node1", "mount", "--make-shared", "/mnt/auto")
        (auto / "late").mkdir()
        (auto / "input").write_text("input\n")
        path.write_text(yaml.safe_dump(document))
        try:
            command = (
                "echo started; until [ -e /mnt/auto/late/file ]; do sleep 0.2; done; "
                "cat /mnt/auto/input /mnt/auto/late/file; touch /mnt/auto/x"
            )
            process = started(cluster, job(command, slots=1), hosts="node1")
            cluster.run("node1", "mount", "-t", "tmpfs", "late", "/mnt/auto/late")
            (auto / "late/file").write_text("late\n")
            out, err = finish(process)
        finally:
            path.write_text(original)
    assert (out, process.returncode) == ("input\nlate\n", 1), err
    assert "Read-only file system" in err
