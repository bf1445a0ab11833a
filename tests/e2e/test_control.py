# SPDX-License-Identifier: GPL-3.0-or-later
"""The batch system is in charge: signals of every kind, in every phase, and SIGKILL without a word."""

from __future__ import annotations

import random
import re
import signal
import time

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import containers, finish, forgotten, job, signal_wrapper, started, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

COUNT = "echo started; i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.1; done"


def test_a_suspended_job_stands_still_on_all_hosts_and_goes_on(cluster: Cluster) -> None:
    process = started(cluster, job(COUNT), number=988001)
    signal_wrapper(cluster, "TSTP")
    wait_until(lambda: len(containers(cluster, 988001, "paused")) == 2, 20, "both containers are paused")
    time.sleep(7)  # longer than COMMAND would take
    signal_wrapper(cluster, "CONT")
    out, err = finish(process, 60)
    assert (process.returncode, out.split()) == (0, [str(n) for n in range(1, 61)]), err
    assert float(re.findall(r"suspended +([0-9.]+) s", err)[0]) >= 7


def test_suspended_time_is_not_run_time(cluster: Cluster, site_config: object) -> None:
    site_config("limits", wall_clock=20)  # type: ignore[operator]
    process = started(cluster, job(COUNT), number=988002)
    signal_wrapper(cluster, "TSTP")
    time.sleep(15)
    signal_wrapper(cluster, "CONT")
    _, err = finish(process, 60)
    assert process.returncode == 0, err


def test_a_suspended_job_can_be_ended(cluster: Cluster) -> None:
    process = started(cluster, job("echo started; sleep 300"), number=988003)
    signal_wrapper(cluster, "TSTP")
    wait_until(lambda: len(containers(cluster, 988003, "paused")) == 2, 20, "both containers are paused")
    signal_wrapper(cluster, "TERM")
    _, err = finish(process, 60)
    assert process.returncode == 143, err


def test_a_job_that_only_the_batch_system_has_suspended_stands_still(
    cluster: Cluster, site_config: object
) -> None:
    """As by SIGSTOP, which stops the wrapper without a word: the next recheck sees it, and its end."""
    site_config("batch", recheck=1)  # type: ignore[operator]
    process = started(cluster, job(COUNT), number=988004)
    hosts = [("node1", 2), ("node2", 2)]
    signal_wrapper(cluster, "STOP")
    cluster.record_job(988004, "alice", hosts, "USUSP")
    wait_until(lambda: len(containers(cluster, 988004, "paused")) == 2, 20, "both containers are paused")
    cluster.record_job(988004, "alice", hosts, "RUN")
    wait_until(lambda: not containers(cluster, 988004, "paused"), 20, "they go on")
    signal_wrapper(cluster, "CONT")
    out, err = finish(process, 60)
    assert (process.returncode, out.split()) == (0, [str(n) for n in range(1, 61)]), err


@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_a_warning_reaches_command(cluster: Cluster, name: str) -> None:
    process = started(
        cluster, job(f'trap "echo warned; exit 7" {name}; echo started; while :; do sleep 0.1; done')
    )
    signal_wrapper(cluster, name)
    out, err = finish(process, 60)
    assert (out, process.returncode) == ("warned\n", 7), err


def test_command_may_tidy_up_before_it_is_killed(cluster: Cluster) -> None:
    process = started(
        cluster, job('trap "sleep 1; echo tidied; exit 0" TERM; echo started; while :; do sleep 0.1; done')
    )
    signal_wrapper(cluster, "TERM")
    out, err = finish(process, 60)
    # It ended because it was told to: that is what the batch system hears.
    assert (out, process.returncode) == ("tidied\n", 143), err


def test_a_command_that_ignores_signals_is_killed_after_the_grace(
    cluster: Cluster, site_config: object
) -> None:
    site_config("limits", kill_grace=2)  # type: ignore[operator]
    process = started(cluster, job('trap "" INT TERM HUP; echo started; while :; do sleep 0.1; done'))
    signal_wrapper(cluster, "INT")
    _, err = finish(process, 30)
    assert process.returncode == 130, err


def test_more_signals_do_not_break_the_teardown(cluster: Cluster) -> None:
    process = started(cluster, job("echo started; sleep 300"))
    for name in ("INT", "TERM", "INT", "HUP", "USR1", "TSTP", "CONT"):
        signal_wrapper(cluster, name, delay=0.05, still_there=False)
    _, err = finish(process, 60)
    assert process.returncode == 130, err
    assert "left behind" not in err


@pytest.mark.parametrize("seed", range(6))
def test_a_signal_in_any_phase_ends_the_job_cleanly(cluster: Cluster, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same moments every time
    process = cluster.start(job("echo started; sleep 1"), number=988010 + seed)
    signal_wrapper(cluster, chance.choice(["INT", "TERM"]), chance.uniform(0, 6), still_there=False)
    _, err = finish(process, 90)
    assert process.returncode in (0, 130, 143), err
    assert "left behind" not in err


def killed(cluster: Cluster, pattern: str, user: str) -> None:
    cluster.run("node1", "pkill", "-KILL", "-u", user, "-f", pattern)


@pytest.mark.parametrize("victims", ["wrapper", "broker", "both"])
def test_after_a_kill_without_a_word_everything_goes(cluster: Cluster, victims: str) -> None:
    """Containers within 15 s, all else within 60 s; the fixture sees that nothing is left."""
    process = started(cluster, job("echo started; sleep 300"), number=988020)
    assert len(containers(cluster, 988020)) == 2
    # One call, so that none sees the other's end first.
    users = {"wrapper": "alice", "broker": "dockerjob", "both": "alice,dockerjob"}[victims]
    pattern = {"wrapper": "hpc_submit_dockerjob", "broker": "dockerjob-broker", "both": "."}[victims]
    killed(cluster, pattern, users)
    begin = time.monotonic()
    wait_until(lambda: not containers(cluster, 988020, "running"), 15, "all containers have ended")
    finish(process, 30)
    left = 60 - (time.monotonic() - begin)
    wait_until(lambda: forgotten(cluster, 988020), left, "etcd holds nothing of the job")
    assert process.returncode != 0


def test_a_killed_job_that_is_requeued_at_once_runs(cluster: Cluster) -> None:
    first = started(cluster, job("echo started; sleep 300"), number=988030)
    killed(cluster, ".", "alice,dockerjob")
    finish(first, 30)
    second = cluster.submit(job("echo again"), number=988030)
    assert (second.status, second.out) == (0, "again\n"), second.err


def test_a_stopped_wrapper_can_still_be_killed(cluster: Cluster) -> None:
    process = started(cluster, job("echo started; sleep 300"), number=988031)
    signal_wrapper(cluster, "STOP")
    signal_wrapper(cluster, "KILL")
    wait_until(lambda: not containers(cluster, 988031), 20, "the containers are gone")
    finish(process, 30)
    assert process.returncode == 128 + signal.SIGKILL
