# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that reach etcd, Docker, Open vSwitch and the file system are checked where they are made."""

from __future__ import annotations

import re

import pytest
from dockerjob_core import names
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("job_id", ["1", "748", "19_3", "999999999999999999", "7_0"])
def test_job_ids(job_id: str) -> None:
    assert names.check_job_id(job_id) == job_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0748",
        "-1",
        "19_",
        "_3",
        "19_3_1",
        "1/2",
        "../1",
        "1 ",
        "1\n",
        "1;reboot",
        "٣",
        "1e3",
        "19[3]",
    ],
)
def test_what_is_no_job_id(text: str) -> None:
    with pytest.raises(ValueError, match="not a job id"):
        names.check_job_id(text)


@pytest.mark.parametrize(
    "make",
    [
        names.job_prefix,
        names.finish_key,
        names.job_index_key,
        names.network_key,
        names.etcd_user,
        names.host_job_directory,
        lambda text: names.node_name(text, 0),
        lambda text: names.node_key(text, 0, "IP"),
    ],
)
def test_nothing_is_built_from_what_is_no_job_id(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="not a job id"):
        make("748/../../etc")


def test_names_as_documented() -> None:
    assert names.job_id_of(748) == "748"
    assert names.job_id_of(19, 3) == "19_3"
    assert names.node_name("19_3", 2) == "19_3_node_2"
    assert names.finish_key("748") == "/748/FINISH"
    assert names.node_key("748", 0, "READY") == "/748/748_node_0/READY"
    assert names.job_index_key("748") == "/dockerjob/jobs/748"
    assert names.network_key("748") == "/dockerjob/networks/job/748"
    assert names.subnet_key("10.128.0.0/24") == "/dockerjob/networks/subnet/10.128.0.0_24"
    assert names.vlan_key(100) == "/dockerjob/networks/vlan/100"
    assert names.etcd_user("748") == "job-748"
    assert names.host_job_directory("748") == "/run/dockerjob/jobs/748"


@given(st.integers(1, 10**17), st.integers(0, 10**9 - 1), st.integers(0, 10**5))
def test_what_is_built_holds_in_its_place(number: int, index: int, node: int) -> None:
    job_id = names.job_id_of(number, index)
    name = names.node_name(job_id, node)
    assert len(name) <= 63  # a DNS label, and with it a host name
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name)  # Docker's rule for container names
    assert len(names.port_name(name)) <= 15  # the kernel's for links
    assert not names.job_prefix(job_id).startswith(names.BOOKKEEPING)


@given(st.integers(1, 10**17), st.none() | st.integers(0, 10**9 - 1))
def test_a_job_id_is_taken_apart_as_it_was_made(number: int, index: int | None) -> None:
    assert names.parts_of_job_id(names.job_id_of(number, index)) == (number, index)


@given(st.integers(1, 10**17), st.integers(1, 10**17))
def test_no_job_prefix_holds_another(one: int, other: int) -> None:
    if one != other:
        assert not names.job_prefix(names.job_id_of(one)).startswith(names.job_prefix(names.job_id_of(other)))
