# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the batch system gave becomes limits, the site's are the ceiling, and nothing of the user's counts."""

from __future__ import annotations

import os
from typing import Any

import pytest
from dockerjob.broker.limits import LEAST_MEMORY, NodeLimits, bound_cpus, cpu_list, job_limits
from dockerjob.config import BatchSettings, ContainerSettings, Ulimit
from dockerjob.schedulers import run_limit
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import RequestError
from dockerjob_core.schedulers.base import BatchRecord
from pydantic import ValidationError

GIB = 1 << 30
HOSTS = (HostSlots("n1", 3), HostSlots("n2", 1))
JOB = Allocation("lsf", 748, None, HOSTS)
LSF = BatchSettings.model_validate({"lsf": {"bjobs": "/b"}})


def record(hosts: dict[str, int | None] | None = None, **changes: Any) -> BatchRecord:
    return BatchRecord("RUN", "running", hosts or {"n1": 3, "n2": 1}, **changes)


def limits(found: BatchRecord, **site: Any) -> list[NodeLimits]:
    return list(job_limits(ContainerSettings.model_validate(site), found, JOB).values())


class TestMemory:
    @pytest.mark.parametrize(
        ("per", "expected"),
        [
            ("host", [8 * GIB, 8 * GIB]),
            ("slot", [24 * GIB, 8 * GIB]),
            ("cpu", [24 * GIB, 8 * GIB]),
            ("job", [6 * GIB, 2 * GIB]),
        ],
    )
    def test_what_a_limit_is_for(self, per: Any, expected: list[int]) -> None:
        found = limits(record(memory_limit=8 * GIB, memory_per=per))
        assert [each.memory for each in found] == expected

    def test_per_cpu_where_a_slot_has_several(self) -> None:
        found = record({"n1": None, "n2": None}, counted="cpus", total=8, memory_limit=GIB, memory_per="cpu")
        assert [each.memory for each in limits(found)] == [6 * GIB, 2 * GIB]

    def test_a_jobs_share_is_that_of_its_cpus_where_these_are_known(self) -> None:
        found = record({"n1": 1, "n2": 3}, counted="cpus", memory_limit=8 * GIB)
        assert [each.memory for each in limits(found)] == [2 * GIB, 6 * GIB]

    def test_the_smaller_one_counts_whichever_it_is(self) -> None:
        found = record(memory_limit=2 * GIB, memory_per="host")
        assert [each.memory for each in limits(found, memory_per_slot=GIB)] == [2 * GIB, GIB]

    def test_no_limit_at_all(self) -> None:
        assert [each.memory for each in limits(record())] == [None, None]

    def test_too_little_to_start_is_said_before_anything_is_made(self) -> None:
        with pytest.raises(RequestError, match="63 MiB of memory on n1, and a container needs 64 MiB"):
            limits(record(memory_limit=LEAST_MEMORY - 1, memory_per="host"))


class TestCpus:
    def test_a_slot_is_one(self) -> None:
        assert [each.cpus for each in limits(record())] == [3.0, 1.0]

    def test_the_sites_share_of_a_slot(self) -> None:
        assert [each.cpus for each in limits(record(), cpus_per_slot=0.5)] == [1.5, 0.5]
        assert [each.cpus for each in limits(record(), cpus_per_slot=None)] == [None, None]

    def test_several_per_task_of_which_the_sum_is_known(self) -> None:
        found = record({"n1": None, "n2": None}, counted="cpus", total=8)
        assert [each.cpus for each in limits(found)] == [6.0, 2.0]

    def test_those_of_each_host(self) -> None:
        found = record({"n1": 4, "n2": 6}, counted="cpus")
        assert [each.cpus for each in limits(found)] == [4.0, 6.0]

    def test_claimed_slots_never_give_more_in_all(self) -> None:
        found = record({"n1": None, "n2": None}, counted="cpus", total=5)
        assert sum(each.cpus or 0 for each in limits(found)) == 5.0


class TestCpuset:
    def test_is_that_of_the_jobs_own_processes(self) -> None:
        made = job_limits(ContainerSettings(), record(), JOB, {0, 1, 2, 8})
        assert [each.cpuset for each in made.values()] == ["0-2,8", None]

    def test_none_where_they_are_not_bound(self) -> None:
        if len(os.sched_getaffinity(0)) == os.cpu_count():
            assert bound_cpus() == ()
        assert limits(record())[0].cpuset is None

    def test_a_process_that_is_bound_knows_it(self) -> None:
        before = os.sched_getaffinity(0)
        if len(before) < 2:
            pytest.skip("one CPU can't be fewer")
        os.sched_setaffinity(0, {max(before)})
        try:
            assert bound_cpus() == {max(before)}
        finally:
            os.sched_setaffinity(0, before)

    @pytest.mark.parametrize(
        ("cpus", "text"), [((), ""), ((7,), "7"), ((0, 1), "0-1"), ((5, 3, 2, 9, 0), "0,2-3,5,9")]
    )
    def test_list(self, cpus: tuple[int, ...], text: str) -> None:
        assert cpu_list(cpus) == text


class TestRunLimit:
    def test_what_is_left_and_the_batch_systems_own_time(self) -> None:
        assert run_limit(LSF, JOB, record(run_limit=3600, run_time=600)) == (
            3660,
            "LSF's run limit of 3600 s",
        )

    def test_the_sites_own_time(self) -> None:
        settings = BatchSettings.model_validate({"lsf": {"bjobs": "/b", "overtime": 0}})
        assert run_limit(settings, JOB, record(run_limit=60, run_time=50)) == (10, "LSF's run limit of 60 s")

    def test_one_that_is_over_is_over(self) -> None:
        found = run_limit(LSF, JOB, record(run_limit=60, run_time=5000))
        assert found
        assert found.seconds == 660

    def test_none(self) -> None:
        assert run_limit(LSF, JOB, record()) is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"name": "files", "soft": 1, "hard": 1}, "Input should be 'core'"),
        ({"name": "nofile", "soft": 2, "hard": 1}, "the soft limit of nofile, 2, is above the hard one, 1"),
        ({"name": "nofile", "soft": -1, "hard": 1}, "is above the hard one"),
        ({"name": "nofile", "soft": -2, "hard": -1}, "greater than or equal to -1"),
    ],
)
def test_a_wrong_ulimit_is_named(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Ulimit.model_validate(document)


def test_ulimits() -> None:
    assert Ulimit(name="stack", soft=8 << 20, hard=-1).hard == -1
