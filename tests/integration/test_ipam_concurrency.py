# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reservations of networks and job trees against a real etcd, many at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from dockerjob_core import ipam, names
from dockerjob_core.errors import KvsError, NoFreeNetworkError
from dockerjob_core.ipam import JobNetwork, NetworkPool
from dockerjob_core.jobtree import (
    create_job_tree,
    list_job_trees,
    read_job_tree,
    remove_job_tree,
)
from dockerjob_core.kvs import Kvs
from etcd_fixtures import EtcdServer

pytestmark = pytest.mark.integration

POOL = NetworkPool("10.128.0.0/12", 24, "100-999")

RESERVE_MANY = """
import dataclasses, json, sys
from concurrent.futures import ThreadPoolExecutor
from dockerjob_core import ipam
from dockerjob_core.kvs import Endpoint, Kvs
endpoint, pool, jobs = json.loads(sys.argv[1])
with Kvs.connect(Endpoint(**endpoint)) as kvs, ThreadPoolExecutor(8) as threads:
    pool = ipam.NetworkPool(*pool)
    def reserve(job):
        return job, dataclasses.astuple(ipam.reserve(kvs, pool, job))
    print(json.dumps(dict(threads.map(reserve, jobs))))
"""


@pytest.fixture(autouse=True)
def _nothing_is_left(kvs: Kvs) -> Iterator[None]:
    """Every test leaves etcd as it found it: empty."""
    yield
    left = [item.key for item in kvs.get_prefix("").items]
    kvs.delete_prefix("")
    assert left == []
    assert [name for name in kvs.auth.users() if name != "root"] == []


def test_processes_reserving_at_once_never_collide(etcd: EtcdServer, kvs: Kvs) -> None:
    """Four processes of eight threads; the pool is only a little larger than needed."""
    pool = ("10.128.0.0/16", 24, "1000-1259")
    share = [[str(number) for number in range(first, 240, 4)] for first in range(1, 5)]
    request = [
        json.dumps([vars(etcd.endpoint(timeout=30)), pool, [*jobs, "7777"]]) for jobs in share
    ]  # all four also want the same network for job 7777
    children = [
        subprocess.Popen([sys.executable, "-c", RESERVE_MANY, text], stdout=subprocess.PIPE, text=True)
        for text in request
    ]
    answers = [json.loads(child.communicate(timeout=60)[0]) for child in children]
    assert [child.returncode for child in children] == [0] * 4
    assert len({tuple(answer["7777"]) for answer in answers}) == 1
    networks = {job: JobNetwork(*network) for answer in answers for job, network in answer.items()}
    assert len(networks) == 240
    assert len({network.subnet for network in networks.values()}) == 240
    assert len({network.vlan for network in networks.values()}) == 240
    assert ipam.list_networks(kvs) == networks
    assert len(kvs.get_prefix(names.NETWORKS).items) == 3 * 240
    for job in networks:
        assert ipam.release(kvs, job) == networks[job]


def test_reserve_and_release_may_be_repeated(kvs: Kvs, job_id: str) -> None:
    network = ipam.reserve(kvs, POOL, job_id)
    assert ipam.reserve(kvs, POOL, job_id) == network
    assert ipam.reserve(kvs, NetworkPool("10.0.0.0/16", 28, "7"), job_id) == network
    assert ipam.list_networks(kvs) == {job_id: network}
    assert ipam.release(kvs, job_id) == network
    assert ipam.release(kvs, job_id) is None


def test_an_exhausted_pool_says_so_and_a_release_helps(kvs: Kvs) -> None:
    pool = NetworkPool("10.128.0.0/23", 24, "100-3999")
    ipam.reserve(kvs, pool, "1")
    second = ipam.reserve(kvs, pool, "2")
    with pytest.raises(NoFreeNetworkError, match=r"no free job network.*2 jobs; wait"):
        ipam.reserve(kvs, pool, "3")
    ipam.release(kvs, "2")
    assert ipam.reserve(kvs, pool, "3").subnet == second.subnet
    ipam.release(kvs, "1")
    ipam.release(kvs, "3")


def test_keys_without_a_job_are_avoided_and_never_released(kvs: Kvs) -> None:
    """What an admin set aside by hand (or a lost record) is nobody's to give or take."""
    pool = NetworkPool("10.128.0.0/23", 24, "100-101")
    aside = {names.subnet_key("10.128.0.0/24"): b"site", names.vlan_key(100): b"site"}
    kvs.create_if_absent(aside)
    assert ipam.reserve(kvs, pool, "1") == JobNetwork("10.128.1.0/24", 101)
    with pytest.raises(NoFreeNetworkError):
        ipam.reserve(kvs, pool, "2")
    kvs.put(names.vlan_key(101), "site")  # someone took it over by hand
    ipam.release(kvs, "1")
    assert {item.key for item in kvs.get_prefix(names.NETWORKS).items} == {*aside, names.vlan_key(101)}
    kvs.delete_prefix(names.NETWORKS)


def test_a_broken_record_is_an_error_not_a_network(kvs: Kvs, job_id: str) -> None:
    kvs.put(names.network_key(job_id), "{}")
    with pytest.raises(KvsError, match="no network reservation"):
        ipam.reserve(kvs, POOL, job_id)
    kvs.delete(names.network_key(job_id))


def test_a_reservation_takes_milliseconds_beside_many_jobs(kvs: Kvs) -> None:
    for number in range(1, 101):
        ipam.reserve(kvs, POOL, str(number))
    started = time.perf_counter()
    ipam.reserve(kvs, POOL, "101")
    took = time.perf_counter() - started
    kvs.delete_prefix(names.NETWORKS)
    assert took < 0.25, f"{took:.3f} s"


# -- job trees --------------------------------------------------------------------------


def test_a_job_tree_comes_and_goes(etcd: EtcdServer, kvs: Kvs, job_id: str) -> None:
    lease, _ = create_job_tree(kvs, job_id, 2, 60, {"hosts": ["n1", "n2"]})
    tree = read_job_tree(kvs, job_id)
    assert tree is not None
    assert (tree.lease_id, tree.node_count, tree.record, tree.running) == (
        lease,
        2,
        {"hosts": ["n1", "n2"]},
        True,
    )
    assert list_job_trees(kvs)[job_id].record == {"hosts": ["n1", "n2"]}
    with Kvs.connect(etcd.endpoint(names.etcd_user(job_id))) as job:
        job.put(names.node_key(job_id, 0, "IP"), "10.128.0.1", lease)
        job.put(names.job_prefix(job_id) + "own", "without the lease")
    finish = kvs.get(names.finish_key(job_id))
    assert finish is not None
    assert finish.lease == lease
    assert remove_job_tree(kvs, job_id)
    assert not remove_job_tree(kvs, job_id)
    assert read_job_tree(kvs, job_id) is None


def test_an_ended_lease_takes_the_tree_and_leaves_the_record(kvs: Kvs, job_id: str) -> None:
    lease, _ = create_job_tree(kvs, job_id, 1, 60)
    kvs.lease_revoke(lease)
    tree = read_job_tree(kvs, job_id)
    assert tree is not None
    assert not tree.running
    assert remove_job_tree(kvs, job_id)


def test_a_requeued_job_starts_from_nothing(kvs: Kvs, job_id: str) -> None:
    first, _ = create_job_tree(kvs, job_id, 2, 60)
    kvs.put(names.node_key(job_id, 1, "READY"), "True", first)
    kvs.put(names.finish_key(job_id), "137", first)
    second, _ = create_job_tree(kvs, job_id, 1, 60)
    assert second != first
    assert kvs.lease_keepalive(first) == 0
    items = kvs.get_prefix(names.job_prefix(job_id)).items
    assert [(item.key, item.value, item.lease) for item in items] == [
        (names.finish_key(job_id), b"FALSE", second)
    ]
    remove_job_tree(kvs, job_id)


def test_a_job_can_not_make_itself_seem_over(etcd: EtcdServer, kvs: Kvs, job_id: str) -> None:
    """Who could would start it twice, and the first one's end would give the second one's network away."""
    lease, leader = create_job_tree(kvs, job_id, 1, 60)
    with Kvs.connect(etcd.endpoint(names.etcd_user(job_id))) as job:
        job.put(names.finish_key(job_id), "0", lease)
        with pytest.raises(KvsError, match="permission denied"):
            job.lease_revoke(leader)
        with pytest.raises(KvsError, match="permission denied"):
            job.delete(names.leader_key(job_id))
    tree = read_job_tree(kvs, job_id)
    assert tree is not None
    assert (tree.running, tree.leader) == (False, leader)
    assert remove_job_tree(kvs, job_id)
    assert kvs.get(names.leader_key(job_id)) is None


def test_an_earlier_run_takes_nothing_of_a_later_one(kvs: Kvs, job_id: str) -> None:
    first, _ = create_job_tree(kvs, job_id, 1, 60)
    network = ipam.reserve(kvs, POOL, job_id)
    tree = read_job_tree(kvs, job_id)
    assert tree is not None
    own = {names.job_index_key(job_id): tree.encode()}
    kvs.lease_revoke(first)
    second, _ = create_job_tree(kvs, job_id, 1, 60)
    assert ipam.reserve(kvs, POOL, job_id) == network
    assert ipam.release(kvs, job_id, own) is None
    assert not remove_job_tree(kvs, job_id, first)
    tree = read_job_tree(kvs, job_id)
    assert tree is not None
    assert (tree.lease_id, ipam.find(kvs, job_id)) == (second, network)
    assert ipam.release(kvs, job_id) == network
    assert remove_job_tree(kvs, job_id, second)


def test_keys_that_are_no_text_are_nobody_s(etcd: EtcdServer, kvs: Kvs, job_id: str) -> None:
    create_job_tree(kvs, job_id, 1, 60)
    prefix = names.job_prefix(job_id)
    watch = kvs.watch_prefix(prefix, kvs.get_prefix(prefix).revision + 1)
    with Kvs.connect(etcd.endpoint(names.etcd_user(job_id))) as job:
        # As a job's process does it, with a client of its own: Kvs itself takes text only.
        request = job._rpc.PutRequest(key=prefix.encode() + b"\xff\xfe", value=b"x")
        job._channel.kv.Put(request, timeout=5)
    event = watch.next(5)
    assert event is not None
    assert event.key == f"{prefix}\\xff\\xfe"
    assert event.key in {item.key for item in kvs.get_prefix(prefix).items}
    assert remove_job_tree(kvs, job_id)


def test_what_a_crash_left_half_made_is_removed(kvs: Kvs, job_id: str) -> None:
    kvs.identities.add(job_id)
    assert remove_job_tree(kvs, job_id)
    kvs.put(names.finish_key(job_id), "FALSE")
    assert remove_job_tree(kvs, job_id)


def test_a_neighbours_job_is_not_touched(kvs: Kvs, job_id: str) -> None:
    neighbour = job_id + "0"
    create_job_tree(kvs, neighbour, 1, 60)
    create_job_tree(kvs, job_id, 1, 60)
    remove_job_tree(kvs, job_id)
    tree = read_job_tree(kvs, neighbour)
    assert tree is not None
    assert tree.running
    remove_job_tree(kvs, neighbour)
