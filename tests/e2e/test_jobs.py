# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs that run: OpenFOAM, MPI of both families, exit statuses, signals, the wall-clock."""

from __future__ import annotations

import re
import signal
import time

import pytest
from dockerjob_lab.client import ROOT, Cluster, Outcome
from job_fixtures import job, signal_wrapper

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]


def submit_example(cluster: Cluster, name: str, user: str = "alice") -> Outcome:
    return cluster.submit((ROOT / "examples" / name).read_text(), user, timeout=900)


@pytest.mark.timeout(1000)
def test_openfoams_pitzdaily_converges_on_two_hosts(cluster: Cluster) -> None:
    prepared = submit_example(cluster, "pitzdaily_prepare.bsub")
    assert prepared.status == 0, prepared.err
    done = submit_example(cluster, "pitzdaily.bsub")
    assert done.status == 0, done.err
    assert "SIMPLE solution converged in" in done.out
    hosts = re.search(r"^Hosts\s*:\s*\(\s*\((\w+) 2\)\s*\((\w+) 2\)", done.out, re.MULTILINE)
    assert hosts, done.out[:2000]
    assert [name[-7:] for name in hosts.groups()] == ["_node_0", "_node_1"]
    assert re.search(r"nProcs\s*:\s*4", done.out)
    assert "exit status 0" in done.err


@pytest.mark.parametrize(
    "command", ["mpirun hello.openmpi", "mpirun.openmpi5 hello.openmpi5", "mpiexec.mpich hello.mpich"]
)
def test_mpi_finds_hosts_and_slots_without_flags(cluster: Cluster, command: str) -> None:
    done = cluster.submit(job(command))
    assert done.status == 0, done.err
    assert len(re.findall(r"^rank \d of 4 on ", done.out, re.MULTILINE)) == 4, done.out
    assert {name[-1] for name in re.findall(r"_node_\d", done.out)} == {"0", "1"}


def test_slots_of_uneven_hosts_are_kept(cluster: Cluster) -> None:
    done = cluster.submit(job("cat /run/dockerjob/node/hostfile", slots=5, ptile=3))
    assert re.findall(r"slots=(\d)", done.out) == ["3", "2"], done


@pytest.mark.parametrize(
    ("command", "status"),
    [("exit 3", 3), ("exit 1", 1), ("exit 0", 0), ("kill -TERM $$", 143), ("no-such-program", 127)],
)
def test_exit_status_is_commands_own(cluster: Cluster, command: str, status: int) -> None:
    assert cluster.submit(job(command)).status == status


def test_the_streams_stay_apart_and_nothing_is_lost(cluster: Cluster) -> None:
    done = cluster.submit(job("seq 200000; echo to-stderr >&2", slots=1, ptile=1), hosts="node1")
    assert done.status == 0, done.err
    assert done.out.split() == [str(n) for n in range(1, 200001)]
    assert "to-stderr" in done.err
    assert "to-stderr" not in done.out


def test_a_last_line_without_a_newline_is_not_lost(cluster: Cluster) -> None:
    script = job("printf out; printf err >&2", slots=1, ptile=1)
    done = [cluster.submit(script, hosts="node1") for _ in range(5)]
    assert [one.out for one in done] == ["out"] * 5
    assert all(re.search("^err", one.err, re.MULTILINE) for one in done), done[0].err


def test_output_is_live(cluster: Cluster) -> None:
    process = cluster.start(job("echo first; sleep 8; echo last"))
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    seen = time.monotonic()
    assert process.stdout.readline() == "last\n"
    assert time.monotonic() - seen > 4
    assert process.wait(60) == 0
    process.communicate()


def test_the_command_runs_as_the_user_and_nothing_more(cluster: Cluster) -> None:
    done = cluster.submit(
        job(
            "id -u; id -un; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status; touch made-by-job"
        )
    )
    uid = cluster.run("node1", "id", "-u", "alice").strip()
    assert done.out.split() == [uid, "alice", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
    assert cluster.run("node1", "stat", "-c", "%U", "/scratch/alice/made-by-job").strip() == "alice"


def test_ssh_works_both_ways(cluster: Cluster) -> None:
    command = (
        'set -- $(awk "{print \\$1}" /run/dockerjob/node/hostfile); ssh $2 hostname; ssh $2 ssh $1 hostname'
    )
    done = cluster.submit(job(command))
    assert [name[-1] for name in done.out.split()] == ["1", "0"], done


def test_a_command_with_every_kind_of_text_arrives_unchanged(cluster: Cluster) -> None:
    text = '{{ lookup("pipe","id") }} $(id) `id` ; & | \\ \t ü "two  words"'
    done = cluster.submit(
        job(
            'echo "$ODD"',
            extra=f"export ODD=$(cat <<'X'\n{text}\nX\n)\nexport DOCKERJOB_ENVIRONMENT=ODD",
        )
    )
    assert done.out == f"{text}\n", done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_cleanly(cluster: Cluster, number: signal.Signals) -> None:
    process = cluster.start(job("echo started; sleep 300"))
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    signal_wrapper(cluster, number.name[3:])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err


def test_a_signal_during_set_up_ends_it_cleanly(cluster: Cluster) -> None:
    process = cluster.start(job("sleep 300"))
    signal_wrapper(cluster, "INT", delay=0.7)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130, err


def test_the_wall_clock_ends_the_job(cluster: Cluster, site_config: object) -> None:
    site_config("limits", wall_clock=10)  # type: ignore[operator]
    done = cluster.submit(job("echo started; sleep 300"))
    assert done.status == 205, done
    assert "wall-clock limit of 10 s" in done.err


def test_an_array_element_has_a_job_id_of_its_own(cluster: Cluster) -> None:
    done = cluster.submit(job("hostname"), index=7)
    assert re.fullmatch(r"\d+_7_node_0\n", done.out), done


def test_the_same_job_id_may_come_again(cluster: Cluster) -> None:
    assert [cluster.submit(job("hostname"), number=987654).out for _ in range(2)] == ["987654_node_0\n"] * 2
