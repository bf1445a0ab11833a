# SPDX-License-Identifier: GPL-3.0-or-later
"""The request: what the wrapper reads from the environment, and what the broker takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dockerjob.request import MAX_COMMAND, JobRequest
from dockerjob.submit.cli import parse_wall_clock, request_from_environment
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import RequestError
from hypothesis import given
from hypothesis import strategies as st

ALLOCATION = Allocation("lsf", 102, None, (HostSlots("node1", 2), HostSlots("node2", 2)), "a\nname")


def request(**changes: object) -> JobRequest:
    values: dict[str, object] = {
        "allocation": ALLOCATION,
        "application": "openfoam:1912",
        "command": b"true",
        "jobdir": "/scratch/a",
    }
    return JobRequest(**{**values, **changes})  # type: ignore[arg-type]


@given(st.binary(min_size=1, max_size=300).filter(lambda b: b.strip() and b"\0" not in b))
def test_command_arrives_byte_for_byte(command: bytes) -> None:
    sent = request(
        command=command, environment={"A": "{{ lookup('pipe','id') }}"}, hostfile="system/machines"
    )
    line = sent.to_json()
    assert line.count(b"\n") == 1
    assert JobRequest.from_json(line) == sent


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=6)
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_whatever_is_sent_is_a_request_or_refused(line: bytes) -> None:
    with pytest.raises(RequestError):
        JobRequest.from_json(line)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"application": "--privileged"}, "APPLICATION"),
        ({"application": "a b"}, "APPLICATION"),
        ({"command": b"  \n"}, "COMMAND is empty"),
        ({"command": b"a\0b"}, "NUL"),
        ({"command": b"a" * (MAX_COMMAND + 1)}, "longer"),
        ({"jobdir": "scratch"}, "absolute"),
        ({"jobdir": "/a/../etc"}, "absolute"),
        ({"hostfile": "/etc/passwd"}, "HOSTFILE"),
        ({"hostfile": "../x"}, "HOSTFILE"),
        ({"environment": {"A=B": "1"}}, "environment"),
        ({"wall_clock": 0}, "WALLCLOCK"),
    ],
)
def test_what_cannot_be_a_job_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request(**changes)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("allocation", "number"), True),
        (("allocation", "number"), -1),
        (("allocation", "hosts"), [["node1", 2], ["; id", 1]]),
        (("allocation", "hosts"), []),
        (("command",), "not base64!"),
        (("wall_clock",), "60"),
    ],
)
def test_broker_takes_no_other_types(path: tuple[str, ...], value: object) -> None:
    document = json.loads(request().to_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(RequestError):
        JobRequest.from_json(json.dumps(document).encode())


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    values = {
        "APPLICATION": "openfoam:1912",
        "COMMAND": "true",
        "JOBDIR": str(tmp_path),
        "LSB_JOBID": "102",
        "LSB_MCPU_HOSTS": "node1 2 node2 2 ",
    }
    return {**values, **changes}


def test_the_environment_of_a_submit_script_becomes_a_request(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    made = request_from_environment(
        environment(tmp_path, JOBDIR=str(link), WALLCLOCK="1:30", DOCKERJOB_ENVIRONMENT="A B", A="1", B="x y")
    )
    assert made.jobdir == str(tmp_path.resolve())
    assert made.wall_clock == 90 * 60
    assert made.environment == {"A": "1", "B": "x y"}
    array = {"LSB_JOBINDEX": "3", "LSB_JOBINDEX_STEP": "2", "LSB_JOBINDEX_END": "9"}
    made = request_from_environment(environment(tmp_path, **array))
    assert made.environment == {"LSB_JOBINDEX_STEP": "2", "LSB_JOBINDEX_END": "9"}
    made = request_from_environment(environment(tmp_path, **{**array, "LSB_JOBINDEX": "0"}))
    assert made.environment == {}
    assert made.allocation.slots == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"APPLICATION": ""}, "APPLICATION is not set"),
        ({"COMMAND": " "}, "COMMAND is not set"),
        ({"JOBDIR": ""}, "JOBDIR is not set"),
        ({"JOBDIR": "relative"}, "not an absolute path"),
        ({"JOBDIR": "/no/such/place"}, "No such file"),
        ({"JOBDIR": "/etc/passwd"}, "not a directory"),
        ({"WALLCLOCK": "soon"}, "WALLCLOCK"),
        ({"DOCKERJOB_ENVIRONMENT": "NOPE"}, "NOPE, which is not set"),
    ],
)
def test_each_wrong_variable_is_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request_from_environment(environment(tmp_path, **changes))


def test_outside_a_batch_job_it_says_so(tmp_path: Path) -> None:
    bare = environment(tmp_path)
    del bare["LSB_JOBID"]
    with pytest.raises(RequestError, match="no batch job found"):
        request_from_environment(bare)


@pytest.mark.parametrize(("text", "seconds"), [("", None), ("5", 300), ("00:05", 300), ("100:00", 360000)])
def test_wall_clock_is_lsfs_form(text: str, seconds: int | None) -> None:
    assert parse_wall_clock(text) == seconds
