# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job has used, in its report: added up over its hosts, and nothing where one doesn't know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dockerjob.broker.report import Report
from dockerjob.broker.usage import size, total, used
from dockerjob_core.cgroup import Usage

MIB = 1 << 20
ONE = Usage(1.5, 1.25, 0.25, 100 * MIB, 0, 5 * MIB, 2 * MIB, 3 * MIB).as_dict()
TWO = Usage(2.0, 1.0, 1.0, 300 * MIB, 1024, 0, 3 * MIB, 2 * MIB).as_dict()


def test_it_is_added_up_and_of_memory_the_most_counts() -> None:
    assert total([ONE, TWO]) == {
        "cpu": 3.5,
        "cpu_user": 2.25,
        "cpu_system": 1.25,
        "memory": 300 * MIB,
        "block_read": 1024,
        "block_written": 5 * MIB,
        "network_received": 5 * MIB,
        "network_sent": 5 * MIB,
    }


@pytest.mark.parametrize("name", list(ONE))
def test_a_sum_with_something_unknown_is_unknown(name: str) -> None:
    found = total([ONE, {**TWO, name: None}])
    assert found.pop(name) is None
    assert None not in found.values()


def test_words() -> None:
    assert used(total([ONE, TWO])) == (
        "CPU 3.50 s (user 2.25 s, system 1.25 s), memory 300.0 MiB at most on a host, "
        "block devices 1.0 KiB read and 5.0 MiB written, network 5.0 MiB sent and 5.0 MiB received"
    )
    assert used(total([Usage().as_dict()])) == (
        "CPU not known, memory not known, block devices not known, network not known"
    )
    assert used(total([Usage(cpu=1).as_dict()])).startswith("CPU 1.00 s, memory not known")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 40, "5.0 TiB"), (9 << 50, "9216.0 TiB")],
)
def test_sizes(number: int, text: str) -> None:
    assert size(number) == text


def report(**changes: Any) -> Report:
    made = Report("748", "alice", "mpihello:1", ["node1", "node2"], status=0, **changes)
    made.phases = {"start": 1.0, "compute": 12.0}
    return made


def test_the_report_has_it_in_words_and_as_data(tmp_path: Path) -> None:
    made = report(usage={"node1": ONE, "node2": TWO}, suspended=2.0, limits={"node1": {"cpus": 2.0}})
    assert [line for line in made.lines() if line.startswith("  used ")] == [
        f"  used         {used(made.total)}"
    ]
    made.append_to(tmp_path / "jobs.jsonl")
    record = json.loads((tmp_path / "jobs.jsonl").read_text())
    assert record["usage"]["node2"] == TWO
    assert record["total"]["cpu"] == 3.5
    assert (record["suspended"], record["limits"]) == (2.0, {"node1": {"cpus": 2.0}})


def test_a_job_that_never_started_has_used_nothing(tmp_path: Path) -> None:
    made = report()
    assert not [line for line in made.lines() if "used" in line]
    made.append_to(tmp_path / "jobs.jsonl")
    assert set(json.loads((tmp_path / "jobs.jsonl").read_text())["total"].values()) == {None}


def test_what_the_batch_system_is_told_holds_no_text_of_a_users() -> None:
    made = report(usage={"node1": ONE}, suspended=2.0, error="alice's text")
    assert made.summary() == (f"dockerjob: exit status 0, compute 10 s, suspended 2 s, {used(total([ONE]))}")
    assert len(made.summary()) < 512
