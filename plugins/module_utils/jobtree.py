# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's tree in etcd: its lease, ``FINISH``, its identity, and its record in the index of jobs.

The tree is under the lease, so a job that nobody ends goes away by itself.  The record
is not: whoever cleans up after a crash learns from it that the job was, and on which hosts.
So it is the first that is made and the last that goes, with the job's network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from . import names
from .errors import DiscoveryError, KvsError
from .kvs import KeyValue, Kvs

RUNNING = b"FALSE"
"""Value of ``FINISH`` until the master writes COMMAND's exit status."""

EXIT_STATUS = re.compile(rb"[0-9]{1,3}")


class TakenError(KvsError):
    """Another broker was faster: the job's tree is its own."""


@dataclass(frozen=True)
class JobTree:
    """What etcd holds of a job.

    Args:
        job_id: The job.
        lease_id: Lease of the tree; it may have ended.
        node_count: How many nodes the job has.
        record: What else its creator keeps in the record, such as the hosts.
        finish: Value of ``FINISH``; None when the tree is gone (lease ended, half torn down).
        leader: The lease of the broker that leads the job, 0 without one.  ``finish`` doesn't tell
            whether there is one, since the job itself may write it.
    """

    job_id: str
    lease_id: int
    node_count: int
    record: Mapping[str, Any] = field(default_factory=dict)
    finish: bytes | None = None
    leader: int = 0

    @property
    def running(self) -> bool:
        """Whether the tree is there and the job has not ended."""
        return self.finish == RUNNING

    @property
    def run(self) -> str:
        """Name of this run of the job, by which all that it has on its hosts is marked."""
        return names.run_id(self.lease_id)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The job's hosts in the order of its nodes, if the record has them."""
        return tuple(map(str, self.record.get("hosts", ())))

    def encode(self) -> bytes:
        """Return the record as it is kept in the index of jobs."""
        known = {"lease_id": self.lease_id, "node_count": self.node_count}
        return json.dumps({**self.record, **known}, sort_keys=True).encode()


def create_job_tree(
    kvs: Kvs, job_id: str, node_count: int, ttl: int, record: Mapping[str, Any] | None = None
) -> tuple[int, int]:
    """Make the job's record, tree and identity, after removing what an earlier run of it left.

    The batch system gives a job id again only to the same job, after its end (requeue); so
    whatever is there of this id is a leftover.  The record comes first: from then on, however
    this ends, :func:`remove_job_tree` finds everything.

    Args:
        kvs: Connection whose identities may be changed.
        job_id: The job.
        node_count: How many nodes it has.
        ttl: Seconds until the job's keys go away by themselves: wall-clock limit and grace.
        record: What else the record shall hold; must be JSON.

    Returns:
        The ids of the tree's lease and of the leader's, which whoever leads the job has to renew.

    Raises:
        TakenError: another broker made the same job's record meanwhile.
        KvsError: etcd failed.
    """
    if kvs.get(names.job_index_key(job_id)):
        remove_job_tree(kvs, job_id)
    return make_job_tree(kvs, job_id, node_count, ttl, record)


def make_job_tree(
    kvs: Kvs, job_id: str, node_count: int, ttl: int, record: Mapping[str, Any] | None = None
) -> tuple[int, int]:
    """As :func:`create_job_tree`, for a job of which nothing is there.

    Raises:
        TakenError: another broker has made the same job's record.
        KvsError: etcd failed.
    """
    index = names.job_index_key(job_id)
    lease = kvs.lease_grant(ttl)
    leader = kvs.lease_grant(ttl)
    tree = JobTree(job_id, lease, node_count, record or {})
    if not kvs.create_if_absent({index: tree.encode()}):
        kvs.lease_revoke(lease)
        kvs.lease_revoke(leader)
        raise TakenError(f"job {job_id}: its record {index} was made by another broker meanwhile")
    try:
        _plant(kvs, job_id, lease, leader)
    except KvsError:
        with suppress(KvsError):
            remove_job_tree(kvs, job_id, lease)
        raise
    return lease, leader


def _plant(kvs: Kvs, job_id: str, lease: int, leader: int) -> None:
    # A lease of its own: whoever puts a key under a lease must be allowed to write all its keys.
    kvs.put(names.leader_key(job_id), b"[]", leader)
    # At once: etcd lets any client end a lease that has no keys.
    kvs.put(names.finish_key(job_id), RUNNING, lease)
    kvs.identities.add(job_id)


def remove_job_tree(kvs: Kvs, job_id: str, own_lease: int | None = None) -> bool:
    """Remove all that etcd holds of the job but its network; say whether there was anything.

    With *own_lease*, the tree is left alone when another run of the job has made it.  The leader's
    lease goes last: as long as it is there, nobody else takes the job for dead.
    """
    tree = read_job_tree(kvs, job_id)
    if tree and own_lease is not None and tree.lease_id != own_lease:
        return False
    something = retire(kvs, job_id)
    record = kvs.delete(names.job_index_key(job_id))
    if tree:
        end_leases(kvs, tree)
    return record or something


def end_leases(kvs: Kvs, tree: JobTree) -> None:
    """End the leases of a run whose keys are gone; the leader's, if it is still there, is *tree*'s."""
    kvs.lease_revoke(tree.lease_id)
    if tree.leader:
        kvs.lease_revoke(tree.leader)


def retire(kvs: Kvs, job_id: str) -> bool:
    """Remove the job's keys and its identity, and leave its record; say whether there was anything.

    First the keys, so that the agents see ``FINISH`` go and end; then the identity, so that nobody
    writes any more; then what was written in between.
    """
    prefix = names.job_prefix(job_id)
    keys = kvs.delete_prefix(prefix)
    identity = kvs.identities.remove(job_id)
    return kvs.delete_prefix(prefix) + keys > 0 or identity


def is_dead(kvs: Kvs, tree: JobTree) -> bool:
    """Tell whether nobody leads this job any more: neither of its two leases is there.

    The job's own processes can end the tree's, and its broker goes on to take it down.  Of a
    job that is just being made only that one is there.
    """
    return kvs.get(names.leader_key(tree.job_id)) is None and kvs.lease_remaining(tree.lease_id) == 0


def note_phases(kvs: Kvs, tree: JobTree, phases: Sequence[Mapping[str, Any]]) -> None:
    """Publish how far the job is: its phases so far, each with ``phase`` and ``since`` (seconds since the epoch)."""
    kvs.put(names.leader_key(tree.job_id), json.dumps(list(phases)), tree.leader)


def read_phases(kvs: Kvs, job_id: str) -> list[dict[str, Any]]:
    """Return what :func:`note_phases` has published; nothing for a job that is over."""
    item = kvs.get(names.leader_key(job_id))
    return [dict(entry) for entry in json.loads(item.value)] if item else []


def exit_status(finish: bytes) -> int:
    """Read COMMAND's exit status from ``FINISH``, where the job's own processes may have written anything.

    Raises:
        DiscoveryError: it is none.
    """
    if not EXIT_STATUS.fullmatch(finish) or int(finish) > 255:
        raise DiscoveryError(
            f"FINISH holds {finish[:40]!r}, which is no exit status; a process of the job wrote it"
        )
    return int(finish)


def read_job_tree(kvs: Kvs, job_id: str) -> JobTree | None:
    """Read the job's record, ``FINISH`` and its leader's lease; None if the index of jobs does not have it."""
    item = kvs.get(names.job_index_key(job_id))
    if item is None:
        return None
    leader = kvs.get(names.leader_key(job_id))
    tree = _tree(item, job_id, kvs.get(names.finish_key(job_id)))
    return replace(tree, leader=leader.lease if leader else 0)


def list_job_trees(kvs: Kvs) -> dict[str, JobTree]:
    """Return all jobs of the index by job id, without their ``FINISH``."""
    prefix = f"{names.JOBS}/"
    ids = {item.key.removeprefix(prefix): item for item in kvs.get_prefix(prefix).items}
    return {job_id: _tree(item, job_id, None) for job_id, item in ids.items()}


def _tree(item: KeyValue, job_id: str, finish: KeyValue | None) -> JobTree:
    try:
        record = json.loads(item.value)
        lease, count = int(record.pop("lease_id")), int(record.pop("node_count"))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise KvsError(f"etcd holds no job record at {item.key} but {item.value[:80]!r}") from error
    return JobTree(job_id, lease, count, record, finish.value if finish else None)
