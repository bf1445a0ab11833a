# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the broker keeps alive in etcd while it leads a job: the job's lease and its own, with the word on the phase."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from dockerjob_core import jobtree
from dockerjob_core.errors import KvsError
from dockerjob_core.jobtree import JobTree
from dockerjob_core.kvs import Kvs


class Presence:
    """The broker's sign of life for one run; an etcd that is away is no reason to stop."""

    def __init__(self, kvs: Kvs, tree: JobTree, ttl: int) -> None:
        """Keep *tree*'s lease, of *ttl* seconds; the first phase is published by :meth:`enter`."""
        self._kvs = kvs
        self._tree = tree
        self._ttl = ttl
        self._phases: list[dict[str, Any]] = []
        self.next_renewal = time.monotonic()
        """When :meth:`renew` has something to do again, in seconds of time.monotonic()."""

    def enter(self, phase: str) -> None:
        """Publish that the job is in *phase* from now on."""
        self._phases.append({"phase": phase, "since": round(time.time(), 3)})
        with contextlib.suppress(KvsError):
            jobtree.note_phases(self._kvs, self._tree, self._phases)

    def renew(self) -> None:
        """Renew both leases if it is time; while etcd is away they don't end, for want of a leader."""
        if time.monotonic() < self.next_renewal:
            return
        with contextlib.suppress(KvsError):
            self._kvs.lease_keepalive(self._tree.leader)
            self._kvs.lease_keepalive(self._tree.lease_id)
        self.next_renewal = time.monotonic() + self._ttl / 3
