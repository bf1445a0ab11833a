# SPDX-License-Identifier: GPL-3.0-or-later
"""LSF's environment to an allocation: forms seen on real systems, and contradictions."""

from __future__ import annotations

import pytest
from dockerjob_core.allocation import Allocation, HostSlots, inventory_of
from dockerjob_core.errors import RequestError
from dockerjob_core.schedulers import lsf


def read(files: dict[str, str] | None = None, **environment: str) -> Allocation:
    def read_file(path: str) -> str:
        if files is None or path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return files[path]

    return lsf.read({"LSB_JOBID": "748", "LSB_JOBINDEX": "0", **environment}, read_file)


def test_counts_come_from_mcpu_hosts_with_its_trailing_blank() -> None:
    allocation = read(LSB_MCPU_HOSTS="n3 3 n2 4 ", LSB_HOSTS="n3 n3 n3 n2 n2 n2 n2", LSB_DJOB_NUMPROC="7")
    assert allocation.hosts == (HostSlots("n3", 3), HostSlots("n2", 4))
    assert (allocation.job_id, allocation.slots) == ("748", 7)


def test_order_is_that_of_lsb_hosts_and_a_host_may_come_twice() -> None:
    # Recorded on LSF 7: the same multiset in another order; the job runs on grid01.
    allocation = read(
        LSB_HOSTS="grid01 grid01 grid05 grid03", LSB_MCPU_HOSTS="grid03 1 grid05 1 grid01 1 grid01 1 "
    )
    assert [host.name for host in allocation.hosts] == ["grid01", "grid05", "grid03"]
    assert allocation.hosts[0].slots == 2


def test_long_jobs_have_no_lsb_hosts() -> None:
    allocation = read(LSB_MCPU_HOSTS="".join(f"n{i} 48 " for i in range(300)), LSB_DJOB_NUMPROC="14400")
    assert len(allocation.hosts) == 300


def test_hostfile_is_read_when_there_is_no_mcpu_hosts() -> None:
    allocation = read({"/h": "a\na\nb\n"}, LSB_DJOB_HOSTFILE="/h")
    assert allocation.hosts == (HostSlots("a", 2), HostSlots("b", 1))


def test_array_elements_have_their_own_job_id() -> None:
    assert read(LSB_JOBID="19", LSB_JOBINDEX="3", LSB_HOSTS="a").job_id == "19_3"
    assert read(LSB_JOBID="19", LSB_JOBINDEX="", LSB_HOSTS="a").job_id == "19"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "none of LSB_MCPU_HOSTS"),
        ({"LSB_MCPU_HOSTS": "a"}, "pairs"),
        ({"LSB_MCPU_HOSTS": "a b"}, "whole number"),
        ({"LSB_MCPU_HOSTS": "a 0"}, "whole number from 1"),
        ({"LSB_MCPU_HOSTS": "a -1"}, "whole number"),
        ({"LSB_MCPU_HOSTS": "-oProxyCommand=id 1"}, "no host name"),
        ({"LSB_HOSTS": "a;id"}, "no host name"),
        ({"LSB_HOSTS": "a b", "LSB_MCPU_HOSTS": "a 2 "}, "different hosts or slots"),
        ({"LSB_HOSTS": "a b", "LSB_DJOB_NUMPROC": "3"}, "gives 2 slots"),
        ({"LSB_DJOB_HOSTFILE": "/missing"}, "No such file"),
        ({"LSB_HOSTS": "a", "LSB_JOBID": "12x"}, "LSB_JOBID"),
        ({"LSB_HOSTS": "a", "LSB_JOBID": "0"}, "LSB_JOBID"),
        ({"LSB_HOSTS": "a", "LSB_JOBINDEX": "²"}, "LSB_JOBINDEX"),
    ],
)
def test_what_cannot_be_is_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read(None, **environment)


def test_inventory_keeps_the_order_of_the_nodes() -> None:
    tree = inventory_of(read(LSB_HOSTS="b a a"), {"a": {"ansible_host": "192.0.2.1"}})
    group = tree["all"]["children"]["allocation"]
    assert group["vars"] == {"dockerjob_job_id": "748"}
    assert group["hosts"] == {
        "b": {"dockerjob_slots": 1, "dockerjob_node_index": 0},
        "a": {"dockerjob_slots": 2, "dockerjob_node_index": 1, "ansible_host": "192.0.2.1"},
    }
