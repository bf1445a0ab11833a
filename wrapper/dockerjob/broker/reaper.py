# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reaper: removes what is left of jobs that nobody leads any more.

A job is dead when etcd says that its lease is gone, and for no other reason.  On the hosts
the reaper removes only what carries the mark of the dead run, so a run of the same job id
that has begun meanwhile is never touched, whatever happens between its look and its deed.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dockerjob_core import jobtree, names
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import HostError, KvsError
from dockerjob_core.jobtree import JobTree
from dockerjob_core.kvs import Kvs

from ..config import Config
from .account import service_directory
from .cleanup import clean_etcd, clean_hosts
from .connections import Connections
from .inventory import job_inventory
from .playbooks import PlaybookRun


@dataclasses.dataclass(frozen=True)
class Reaped:
    """What became of one dead job; ``unclean`` are the hosts that could not be confirmed clean, and why."""

    job_id: str
    user: str
    hosts: tuple[str, ...]
    unclean: dict[str, str]
    given_up: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether nothing of the job is left, as far as anybody can know."""
        return not self.unclean

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**dataclasses.asdict(self), "done": self.done}


def dead_jobs(kvs: Kvs) -> list[JobTree]:
    """Return the jobs whose lease is gone, while their record is still there."""
    return [tree for tree in jobtree.list_job_trees(kvs).values() if jobtree.is_dead(kvs, tree)]


def reap(
    kvs: Kvs, config: Config, tree: JobTree, directory: Path, declared_dead: Collection[str] = ()
) -> Reaped:
    """Remove all that is left of the dead run *tree*.

    Args:
        kvs: the broker's connection.
        config: the site's configuration.
        tree: the run; the caller knows that it is dead.
        directory: private directory for Ansible, which the caller removes.
        declared_dead: hosts that an administrator knows to hold nothing any more; they are not asked.

    Raises:
        KvsError: etcd failed; the next try goes on from there.
    """
    strangers = {
        host: "this host is not in config.yml any more; declare it dead if it is gone"
        for host in tree.hosts
        if host not in config.hosts and host not in declared_dead
    }
    hosts = [host for host in tree.hosts if host in config.hosts and host not in declared_dead]
    unclean = {**strangers, **_clean(config, tree, hosts, directory)}
    clean_etcd(kvs, tree, hosts_are_clean=not unclean)
    given_up = tuple(host for host in tree.hosts if host in declared_dead)
    return Reaped(tree.job_id, str(tree.record.get("user", "")), tree.hosts, unclean, given_up)


def _clean(config: Config, tree: JobTree, hosts: list[str], directory: Path) -> dict[str, str]:
    """Take the run down on *hosts*; return why some of them are not clean."""
    if not hosts:
        return {}
    number, index = names.parts_of_job_id(tree.job_id)
    allocation = Allocation("", number, index, tuple(HostSlots(host, 1) for host in hosts))
    connections = Connections(config, hosts, directory / "ssh")
    run = PlaybookRun(directory, "job_teardown.yml")
    try:
        # A host that can't be reached now is tried by Ansible once more, and reported by it.
        with _tolerated():
            connections.open()
        inventory = job_inventory(config, allocation, connections, tree.run)
        return clean_hosts(run, inventory, hosts, config.limits.setup_timeout).failed
    finally:
        run.cancel()
        run.join(10)
        connections.close()


@contextmanager
def _tolerated() -> Iterator[None]:
    try:
        yield
    except HostError:
        return


def collect(
    kvs: Kvs,
    config: Config,
    declared_dead: Collection[str] = (),
    only: Collection[str] = (),
    progress: Callable[[Reaped], None] = lambda _: None,
) -> list[Reaped]:
    """Reap every dead job there is, or those of *only*; one that fails does not stop the next."""
    results = []
    for tree in dead_jobs(kvs):
        if only and tree.job_id not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="gc-", dir=service_directory()) as directory:
            try:
                result = reap(kvs, config, tree, Path(directory), declared_dead)
            except KvsError as error:
                result = Reaped(
                    tree.job_id, str(tree.record.get("user", "")), tree.hosts, {"etcd": str(error)}
                )
        progress(result)
        results.append(result)
    return results


def wait_for_an_end(kvs: Kvs, patience: float, sign: SignOfLife) -> None:
    """Return when some job has ended or died, or after *patience* seconds; give *sign* meanwhile."""
    prefix = f"{names.LEADERS}/"
    end = time.monotonic() + patience
    watch = kvs.watch_prefix(prefix, kvs.get_prefix(prefix).revision + 1)
    try:
        while (left := end - time.monotonic()) > 0:
            sign.give()
            event = watch.next(min(left, sign.ttl / 3))
            if event is not None and event.type != "put":
                return
    finally:
        watch.cancel()


class SignOfLife:
    """Tells that a reaper runs on this host, by a key under a short lease."""

    ttl = 60

    def __init__(self, kvs: Kvs) -> None:
        """Give none yet."""
        self._kvs = kvs
        self._lease = 0

    def give(self) -> None:
        """Give one that holds for :attr:`ttl` seconds.

        Raises:
            KvsError: etcd did not take it.
        """
        if not self._lease or not self._kvs.lease_keepalive(self._lease):
            self._lease = self._kvs.lease_grant(self.ttl)
            self._kvs.put(names.reaper_key(os.uname().nodename), b"", self._lease)
