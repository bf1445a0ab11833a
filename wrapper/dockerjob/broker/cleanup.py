# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end of a job and the reaper share: its hosts first, then etcd, each as far as it goes.

The order is what makes a crash harmless.  A job's record names its hosts and stays until all
of them are clean; its network is given back in the same transaction that removes the record.
So whoever comes next finds either everything it needs to go on, or nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dockerjob_core import ipam, jobtree, names
from dockerjob_core.jobtree import JobTree
from dockerjob_core.kvs import Kvs

from .playbooks import HostResults, PlaybookRun


def clean_hosts(
    run: PlaybookRun,
    inventory: Mapping[str, Any],
    hosts: Sequence[str],
    timeout: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> HostResults:
    """Let the waiting teardown go, and return when each host is done; Ansible still ends by itself.

    *meanwhile* is called now and then.
    """
    run.release(inventory, timeout)
    while not run.wait(hosts, 1.0):
        meanwhile()
    return run.results(hosts)


def clean_etcd(kvs: Kvs, tree: JobTree, *, hosts_are_clean: bool) -> None:
    """Remove the run's keys and identity; its record and its network only when its hosts are clean.

    A record that is not this run's any more belongs to a later one, and is left alone.

    Raises:
        KvsError: etcd failed; what is left is found by the record.
    """
    index = names.job_index_key(tree.job_id)
    item = kvs.get(index)
    if item is None or item.value != tree.encode():
        return
    jobtree.retire(kvs, tree.job_id)
    if hosts_are_clean:
        ipam.release(kvs, tree.job_id, {index: tree.encode()})
    # Last: as long as they are there, nobody else takes the job for dead.
    jobtree.end_leases(kvs, tree)
