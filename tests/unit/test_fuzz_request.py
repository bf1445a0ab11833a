# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users send, by the wrapper or without it: taken with all its promises kept, or refused."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any

import pytest
from dockerjob.broker.policy import check_request
from dockerjob.request import MAX_COMMAND, JobRequest
from dockerjob.submit.cli import parse_wall_clock, request_from_environment
from dockerjob_core import names
from dockerjob_core.allocation import HOST_NAME, Allocation, HostSlots
from dockerjob_core.errors import DockerjobError, PolicyError, RequestError
from dockerjob_core.schedulers import lsf
from fuzz import JSON, NASTY, TEXT, mutated
from hypothesis import assume, example, given
from hypothesis import strategies as st
from test_policy import config

HONEST: dict[str, Any] = json.loads(
    JobRequest(
        Allocation("lsf", 102, 3, (HostSlots("node1", 2), HostSlots("node2", 2)), "name"),
        "openfoam:1912",
        b"mpirun simpleFoam",
        "/scratch/case",
        "system/machines",
        {"OMP_NUM_THREADS": "2"},
        3600,
        True,
    ).to_json()
)


def check_promises(request: JobRequest) -> None:
    """What the rest of the broker relies on."""
    assert names.check_job_id(request.job_id)
    hosts = [host.name for host in request.allocation.hosts]
    assert len(set(hosts)) == len(hosts) >= 1
    assert all(HOST_NAME.fullmatch(host) for host in hosts)
    assert all(host.slots >= 1 and type(host.slots) is int for host in request.allocation.hosts)
    assert re.fullmatch(r"[a-z0-9][\w./:-]*", request.application, re.ASCII)
    assert request.command.strip()
    assert len(request.command) <= MAX_COMMAND
    assert b"\0" not in request.command
    assert request.jobdir.startswith("/")
    for path in (request.jobdir, request.hostfile or "x"):
        assert ".." not in PurePosixPath(path).parts
        assert "\0" not in path
        assert path.encode()
    assert not (request.hostfile or "x").startswith("/")
    for name, value in request.environment.items():
        assert re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)
        assert b"\0" not in value.encode("utf-8", "surrogateescape")
    assert request.wall_clock is None or 0 < request.wall_clock <= 366 * 86400
    assert type(request.verbose) is bool


@given(mutated(HONEST))
@example(HONEST)
def test_a_request_is_taken_whole_or_refused(document: Any) -> None:
    try:
        request = JobRequest.from_json(json.dumps(document).encode() + b"\n")
    except RequestError:
        return
    check_promises(request)
    assert JobRequest.from_json(request.to_json()) == request


@given(st.dictionaries(TEXT, JSON, min_size=1, max_size=2))
def test_a_request_with_more_in_it_is_refused(more: dict[str, Any]) -> None:
    assume(not more.keys() & {*HONEST, *HONEST["allocation"]})
    for document in ({**HONEST, **more}, {**HONEST, "allocation": {**HONEST["allocation"], **more}}):
        with pytest.raises(RequestError, match="is not part of a request"):
            JobRequest.from_json(json.dumps(document).encode())


@given(mutated(HONEST), st.lists(st.sampled_from(["mpirun *", "*", "true", "a?[b-c]"]), max_size=2))
def test_the_policy_lets_in_or_refuses(document: Any, commands: list[str]) -> None:
    try:
        request = JobRequest.from_json(json.dumps({**HONEST, "application": "app:1"}).encode())
        request = JobRequest.from_json(json.dumps(document).encode())
        check_request(config(commands=commands), request)
    except (RequestError, PolicyError):
        return
    assert request.jobdir == "/scratch" or request.jobdir.startswith("/scratch/")
    assert {host.name for host in request.allocation.hosts} <= {"node1", "node2"}
    if commands:
        assert not set(request.command.decode()) & set("\n\r;&|<>()$`\\\"'*?[]#~!{}")


WORDS = st.sampled_from(["node1", "node2", "1", "2", "a.b-c", "-o", "0", "x;y"]) | NASTY
LIST = st.lists(WORDS, max_size=6).map(" ".join)
ENVIRONMENT = st.dictionaries(st.sampled_from(lsf.SYSTEM.variables), LIST | TEXT, max_size=7).map(
    lambda variables: {"LSB_JOBID": "748", "LSB_MCPU_HOSTS": "node1 2 ", **variables}
)


@given(ENVIRONMENT, LIST)
def test_lsfs_environment_is_an_allocation_or_refused(environment: dict[str, str], hostfile: str) -> None:
    try:
        allocation = lsf.read(environment, lambda path: hostfile)
    except RequestError:
        return
    assert names.check_job_id(allocation.job_id)
    assert allocation.slots == sum(host.slots for host in allocation.hosts) >= 1
    assert all(HOST_NAME.fullmatch(host.name) for host in allocation.hosts)
    per_slot = environment.get("LSB_HOSTS", "").split()
    assert not per_slot or allocation.hosts[0].name == per_slot[0]


@given(st.binary(max_size=60))
def test_a_hostfile_of_any_bytes_is_read_or_refused(content: bytes) -> None:
    try:
        allocation = lsf.read({"LSB_JOBID": "1", "LSB_DJOB_HOSTFILE": "/h"}, lambda path: content.decode())
    except RequestError:
        return
    assert allocation.slots == len(content.decode().split())


VARIABLE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
NAMES = ("APPLICATION", "COMMAND", "JOBDIR", "HOSTFILE", "WALLCLOCK", "DOCKERJOB_ENVIRONMENT", "A")


@given(st.dictionaries(st.sampled_from(NAMES), VARIABLE | st.sampled_from(["/tmp", "1:30", "A,B", "\udcff"])))
def test_a_submit_scripts_environment_is_a_request_or_refused(variables: dict[str, str]) -> None:
    honest = {"APPLICATION": "a:1", "COMMAND": "true", "JOBDIR": "/tmp", "LSB_JOBID": "1", "LSB_HOSTS": "n"}
    try:
        request = request_from_environment({**honest, **variables})
    except DockerjobError:
        return
    check_promises(request)
    assert JobRequest.from_json(request.to_json()) == request


@given(TEXT | st.from_regex(r"[0-9]{0,5}:?[0-9]{0,7}"))
def test_a_wall_clock_is_seconds_or_refused(text: str) -> None:
    try:
        seconds = parse_wall_clock(text)
    except RequestError:
        return
    assert seconds is None or (seconds >= 0 and seconds % 60 == 0)
