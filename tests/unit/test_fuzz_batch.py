# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any environment is an allocation or refused, and any answer a record or none, in every batch system."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dockerjob_core import names
from dockerjob_core.allocation import HOST_NAME, Allocation, HostSlots
from dockerjob_core.errors import BatchError, RequestError
from dockerjob_core.schedulers import SYSTEMS, pbs, read_allocation, slurm
from dockerjob_core.schedulers.base import Answer, BatchRecord, bytes_of, seconds_of
from fuzz import JSON, NASTY, TEXT, mutated
from hypothesis import example, given
from hypothesis import strategies as st
from test_batch_corpus import answer_of, cases, text_of

ALPHABET = st.sampled_from([*"n0189[]-,x()@/+* \n.:|<>_", "node", "10", "undefined", "server", "UNDEFINED"])
WORDS = st.lists(ALPHABET, max_size=12).map("".join) | NASTY
CLAIMS = {
    name: Allocation(name, 8, None if name == "slurm" else 3, (HostSlots("n1", 2),)) for name in SYSTEMS
}


def good_environments(name: str) -> list[dict[str, str]]:
    """The corpus's own environments that are not too long to be changed a little."""
    found = []
    for document, case in (parameter.values for parameter in cases(proofs=False)):
        if document["system"] == name and "hosts" in case:
            given = {**document["base"], **case.get("environment", {})}
            found.append({key: text_of(value)[:500] for key, value in given.items() if value is not None})
    return found


def answers_of(name: str) -> list[list[Answer]]:
    return [
        [answer_of(answer) for answer in case["answers"]]
        for document, case in (parameter.values for parameter in cases(proofs=True))
        if document["system"] == name
    ]


@st.composite
def cut_and_joined(draw: st.DrawFn, text: str) -> str:
    """Draw a text with something put in place of a part of it."""
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, min(len(text), begin + 30)))
    return text[:begin] + draw(WORDS | TEXT) + text[end:]


@pytest.mark.parametrize("name", SYSTEMS)
@given(st.data())
def test_an_environment_is_an_allocation_or_refused(name: str, data: st.DataObject) -> None:
    environment = dict(data.draw(st.sampled_from(good_environments(name))))
    variables = st.sampled_from([*SYSTEMS[name].variables, "SLURM_OVERCOMMIT"])
    environment.update(data.draw(st.dictionaries(variables, WORDS, max_size=3)))
    content = data.draw(WORDS | st.just("n1 2 main.q@n1 UNDEFINED\n") | st.just("n1\nn1\nn2\n"))
    try:
        allocation = read_allocation(environment, lambda path: content, name)
    except RequestError:
        return
    assert names.check_job_id(allocation.job_id)
    assert allocation.scheduler == name
    assert allocation.slots == sum(host.slots for host in allocation.hosts) >= 1
    assert all(HOST_NAME.fullmatch(host.name) and host.slots >= 1 for host in allocation.hosts)
    assert len({host.name for host in allocation.hosts}) == len(allocation.hosts)


@pytest.mark.parametrize("name", SYSTEMS)
@given(st.data())
def test_an_answer_is_a_record_or_none(name: str, data: st.DataObject) -> None:
    answers = data.draw(st.sampled_from(answers_of(name)))
    changed = [
        Answer(data.draw(cut_and_joined(answer.stdout)), answer.stderr, data.draw(st.integers(0, 1)))
        for answer in answers
    ]
    check_record(name, changed)


@pytest.mark.parametrize("name", SYSTEMS)
@given(st.data())
def test_noise_is_no_record(name: str, data: st.DataObject) -> None:
    noise = st.text(max_size=80) | JSON.map(json.dumps) | st.just("<" * 1000) | st.just("<a>" * 100_000)
    count = len(SYSTEMS[name].questions(CLAIMS[name], "alice", dict.fromkeys(SYSTEMS[name].programs, "/x")))
    record = check_record(name, [Answer(data.draw(noise)) for _ in range(count)])
    assert record is None


def check_record(name: str, answers: list[Answer]) -> BatchRecord | None:
    try:
        record = SYSTEMS[name].record(answers, CLAIMS[name])
    except BatchError:
        return None
    if record is not None:
        assert record.phase in ("waiting", "running", "suspended", "held", "none")
        assert isinstance(record.user, str)
        assert record.uid is None or type(record.uid) is int
        assert all(HOST_NAME.fullmatch(host) for host in record.hosts)
    return record


@given(
    mutated(
        {
            "Jobs": {
                "8[3].s": {
                    "Job_Owner": "alice@h",
                    "job_state": "R",
                    "exec_host": "n1/0*2",
                    "Resource_List": {"walltime": "1:0:0", "mem": "1gb"},
                }
            }
        }
    )
)
def test_pbs_json_is_a_record_or_none(document: Any) -> None:
    check_record("pbs", [Answer(json.dumps(document))])


@given(WORDS)
@example("n[" + "1-9," * 1000 + "1]")
@example("[1-2]")
@example("n[1-65536]n[1-65536]")
@example("[" * 10_000)
def test_a_host_list_is_expanded_or_refused(text: str) -> None:
    try:
        hosts = slurm.expand(text)
    except ValueError:
        return
    assert 1 <= len(hosts) == len(set(hosts)) <= 65536
    assert not any(set(host) & set("[],") for host in hosts)


@given(st.integers(0, 3000), st.integers(0, 50), st.integers(1, 5))
def test_a_range_is_what_it_says(low: int, more: int, width: int) -> None:
    names_ = [f"n{number:0{width}d}" for number in range(low, low + more + 1)]
    assert slurm.expand(f"n[{low:0{width}d}-{low + more}]") == names_


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 300)), min_size=1, max_size=6))
def test_counts_are_what_they_say(pairs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{count}(x{repeat})" if repeat > 1 else str(count) for count, repeat in pairs)
    assert slurm.expand_counts(text) == [count for count, repeat in pairs for _ in range(repeat)]


@given(WORDS | st.lists(st.sampled_from(["n1", "/", "0", "-", "3", "*2", "+", ","]), max_size=9).map("".join))
def test_hosts_of_pbs_are_read_or_refused(text: str) -> None:
    for read in (pbs.openpbs_hosts, pbs.torque_hosts):
        try:
            hosts = read(text)
        except BatchError:
            continue
        assert all(HOST_NAME.fullmatch(host) for host in hosts)


@given(TEXT | WORDS | st.from_regex(r"[0-9]{0,3}-?[0-9]{0,3}:?[0-9]{0,3}:?[0-9]{1,3}"))
def test_limits_are_numbers_or_none(text: str) -> None:
    for value in (seconds_of(text), bytes_of(text)):
        assert value is None or value >= 0
