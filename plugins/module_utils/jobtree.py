# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's tree in etcd: its lease, ``FINISH``, its identity, and its record in the index of jobs.

The tree is under the lease, so a job that nobody ends goes away by itself.  The record
is not: whoever cleans up after a crash learns from it that the job was, and on which hosts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import names
from .errors import KvsError
from .kvs import KeyValue, Kvs

RUNNING = b"FALSE"
"""Value of ``FINISH`` until the master writes COMMAND's exit status."""


@dataclass(frozen=True)
class JobTree:
    """What etcd holds of a job.

    Args:
        job_id: The job.
        lease_id: Lease of the tree; it may have ended.
        node_count: How many nodes the job has.
        record: What else its creator keeps in the record, such as the hosts.
        finish: Value of ``FINISH``; None when the tree is gone (lease ended, half torn down).
    """

    job_id: str
    lease_id: int
    node_count: int
    record: Mapping[str, Any] = field(default_factory=dict)
    finish: bytes | None = None

    @property
    def running(self) -> bool:
        """Whether the tree is there and the job has not ended."""
        return self.finish == RUNNING

    def encode(self) -> bytes:
        """Return the record as it is kept in the index of jobs."""
        known = {"lease_id": self.lease_id, "node_count": self.node_count}
        return json.dumps({**self.record, **known}, sort_keys=True).encode()


def create_job_tree(
    kvs: Kvs, job_id: str, node_count: int, ttl: int, record: Mapping[str, Any] | None = None
) -> int:
    """Make the job's record, identity and tree, after removing what an earlier run of it left.

    The batch system gives a job id again only to the same job, after its end (requeue); so
    whatever is there of this id is a leftover.  The record comes first: from then on, however
    this ends, :func:`remove_job_tree` finds everything.

    Args:
        kvs: Connection with the role ``root``.
        job_id: The job.
        node_count: How many nodes it has.
        ttl: Seconds until the job's keys go away by themselves: wall-clock limit and grace.
        record: What else the record shall hold; must be JSON.

    Returns:
        The id of the lease.

    Raises:
        KvsError: etcd failed, or another broker made the same job's record meanwhile.
    """
    index = names.job_index_key(job_id)
    if kvs.get(index):
        remove_job_tree(kvs, job_id)
    lease = kvs.lease_grant(ttl)
    tree = JobTree(job_id, lease, node_count, record or {})
    if not kvs.create_if_absent({index: tree.encode()}):
        kvs.lease_revoke(lease)
        raise KvsError(f"job {job_id}: its record {index} was made by another broker meanwhile")
    kvs.add_identity(names.etcd_user(job_id), names.job_prefix(job_id))
    kvs.put(names.finish_key(job_id), RUNNING, lease)
    return lease


def remove_job_tree(kvs: Kvs, job_id: str) -> bool:
    """Remove all that etcd holds of the job but its network; say whether there was anything.

    First the lease, so that the agents see ``FINISH`` go and end; then the identity, so that
    nobody writes any more; then what was written without the lease; the record last.
    """
    tree = read_job_tree(kvs, job_id)
    if tree:
        kvs.lease_revoke(tree.lease_id)
    identity = kvs.remove_identity(names.etcd_user(job_id))
    keys = kvs.delete_prefix(names.job_prefix(job_id))
    return kvs.delete(names.job_index_key(job_id)) or identity or keys > 0


def read_job_tree(kvs: Kvs, job_id: str) -> JobTree | None:
    """Read the job's record and ``FINISH``; None if the index of jobs does not have it."""
    item = kvs.get(names.job_index_key(job_id))
    return None if item is None else _tree(item, job_id, kvs.get(names.finish_key(job_id)))


def list_job_trees(kvs: Kvs) -> dict[str, JobTree]:
    """Return all jobs of the index by job id, without their ``FINISH``."""
    prefix = f"{names.JOBS}/"
    ids = {item.key.removeprefix(prefix): item for item in kvs.get_prefix(prefix).items}
    return {job_id: _tree(item, job_id, None) for job_id, item in ids.items()}


def _tree(item: KeyValue, job_id: str, finish: KeyValue | None) -> JobTree:
    try:
        record = json.loads(item.value)
        lease, count = int(record.pop("lease_id")), int(record.pop("node_count"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KvsError(f"etcd holds no job record at {item.key} but {item.value[:80]!r}") from error
    return JobTree(job_id, lease, count, record, finish.value if finish else None)
