# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What etcd knows of the jobs there are, for people who ask."""

from __future__ import annotations

import dataclasses
from typing import Any

from dockerjob_core import ipam, jobtree, names
from dockerjob_core.jobtree import JobTree
from dockerjob_core.kvs import Kvs


@dataclasses.dataclass(frozen=True)
class NodeStatus:
    """One container of a job, as its agent has told etcd."""

    name: str
    host: str
    address: str
    ready: bool


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """A job as it is now; times are seconds since the epoch.

    ``phase`` is the last of ``events``, or ``dead``: nobody leads the job, and the reaper will remove it.
    """

    job_id: str
    user: str
    application: str
    image: str
    hosts: tuple[str, ...]
    phase: str
    since: float
    begin: float
    deadline: float
    broker_host: str
    ready: int
    network: str
    nodes: tuple[NodeStatus, ...] = ()
    events: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return dataclasses.asdict(self)


def all_jobs(kvs: Kvs, user: str | None = None) -> list[JobStatus]:
    """Return the jobs of *user*, or of everybody, oldest first."""
    trees = jobtree.list_job_trees(kvs).values()
    mine = [tree for tree in trees if user is None or tree.record.get("user") == user]
    return sorted((status_of(kvs, tree) for tree in mine), key=lambda status: status.begin)


def status_of(kvs: Kvs, tree: JobTree) -> JobStatus:
    """Look at one job."""
    job_id, record = tree.job_id, tree.record
    events = jobtree.read_phases(kvs, job_id)
    dead = jobtree.is_dead(kvs, tree)
    nodes = _nodes(kvs, tree)
    network = ipam.find(kvs, job_id)
    last = events[-1] if events and not dead else {"phase": "dead" if dead else "prepare", "since": 0.0}
    return JobStatus(
        job_id=job_id,
        user=str(record.get("user", "")),
        application=str(record.get("application", "")),
        image=str(record.get("image", "")),
        hosts=tree.hosts,
        phase=str(last["phase"]),
        since=float(last["since"]),
        begin=float(record.get("begin", 0)),
        deadline=float(record.get("deadline", 0)),
        broker_host=str(record.get("broker_host", "")),
        ready=sum(node.ready for node in nodes),
        network=f"{network.subnet}, VLAN {network.vlan}" if network else "",
        nodes=nodes,
        events=tuple(events),
    )


def _nodes(kvs: Kvs, tree: JobTree) -> tuple[NodeStatus, ...]:
    found = {item.key: item.value for item in kvs.get_prefix(names.job_prefix(tree.job_id)).items}

    def value(index: int, leaf: str) -> str:
        # The job's own processes can write anything here.
        text = found.get(names.node_key(tree.job_id, index, leaf), b"")[:64].decode(errors="replace")
        return text if text.isprintable() else ""

    return tuple(
        NodeStatus(
            names.node_name(tree.job_id, index), host, value(index, "IP"), value(index, "READY") == "True"
        )
        for index, host in enumerate(tree.hosts)
    )
