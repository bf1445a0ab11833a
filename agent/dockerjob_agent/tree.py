# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job's tree in etcd as a node sees it: what it publishes, and what it learns of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dockerjob_core import names
from dockerjob_core.errors import KvsError
from dockerjob_core.kvs import Endpoint, Kvs, RefusedError, Snapshot

from .log import StoryLog
from .spec import JobSpec

Leaf = Literal["IP", "SSHPUBKEY", "READY", "FINISH"]
LEAVES: tuple[Leaf, ...] = ("IP", "SSHPUBKEY", "READY")

REREAD_INTERVAL = 10.0
"""Seconds after which the tree is read again; etcd 3.4 can in rare cases lose a watch event."""

RUNNING = "FALSE"
"""What FINISH holds until COMMAND has ended."""


@dataclass(frozen=True)
class Change:
    """A key of the tree has a new value; ``value`` None: the key is gone."""

    leaf: Leaf
    node_index: int | None
    value: str | None


class Tree:
    """The node's connection to etcd, and the keys it may write."""

    def __init__(self, spec: JobSpec, certificates: Path, log: StoryLog) -> None:
        """Prepare the connection; the first call opens it."""
        self._spec = spec
        self._log = log
        self._kvs = Kvs.connect(
            Endpoint(
                target=spec.etcd_target,
                ca=str(certificates / "ca.pem"),
                cert=str(certificates / "cert.pem"),
                key=str(certificates / "key.pem"),
                server_name=spec.etcd_server_name,
            )
        )
        self._keys: dict[str, tuple[int | None, Leaf]] = {names.finish_key(spec.job_id): (None, "FINISH")}
        for node in spec.nodes:
            for leaf in LEAVES:
                self._keys[names.node_key(spec.job_id, node.index, leaf)] = (node.index, leaf)

    def publish(self, public_key: str) -> None:
        """Publish this node: IP, SSHPUBKEY and READY=False, seen by the others as one change."""
        me = self._spec.me
        values = {"IP": me.address, "SSHPUBKEY": public_key, "READY": "False"}
        items = {
            names.node_key(self._spec.job_id, me.index, leaf): value.encode()
            for leaf, value in values.items()
        }

        def write() -> None:
            if not self._kvs.create_if_absent(items, lease=self._spec.lease_id):
                # Left by an earlier start of this same node, or by a try that seemed to fail.
                for key, content in items.items():
                    self._kvs.put(key, content, lease=self._spec.lease_id)

        self._insist(write, self._spec.discovery_timeout)
        for leaf, value in values.items():
            self._log(f"ETCD_SET -> {self._spec.job_id}/{me.name}/{leaf} = {value}")

    def set_ready(self) -> None:
        """Say that this node has verified all it needs of the others."""
        me = self._spec.me
        key, lease = names.node_key(self._spec.job_id, me.index, "READY"), self._spec.lease_id
        self._insist(lambda: self._kvs.put(key, "True", lease=lease), self._spec.discovery_timeout)
        self._log(f"ETCD_SET -> {self._spec.job_id}/{me.name}/READY = True")

    def finish(self, status: int, patience: float = 30.0) -> bool:
        """Write COMMAND's exit status to FINISH; say whether etcd took it.

        An etcd that is away for a moment is waited for; a lease that is gone is not.
        """
        key, lease = names.finish_key(self._spec.job_id), self._spec.lease_id
        try:
            self._insist(lambda: self._kvs.put(key, str(status), lease=lease), patience)
        except KvsError as error:
            self._log(f"FINISH NOT WRITTEN: {error}")
            return False
        self._log(f"ETCD_SET -> {self._spec.job_id}/FINISH = {status}")
        return True

    def _insist(self, write: Callable[[], None], patience: float) -> None:
        """Have etcd take a write; one that is away for a moment is waited for.

        Raises:
            RefusedError: etcd said no, as when the lease is gone.
            KvsError: it was away for *patience* seconds.
        """
        import tenacity  # loaded by the first call to etcd

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(KvsError)
            & tenacity.retry_if_not_exception_type(RefusedError),
            wait=tenacity.wait_fixed(0.5),
            stop=tenacity.stop_after_delay(patience),
            reraise=True,
        )
        retrying(write)

    def follow(self, deliver: Callable[[Change], None]) -> Follower:
        """Deliver every change of the tree, from a thread, beginning with its present state."""
        return Follower(self._kvs, self._spec, self._keys, deliver, self._log)

    def close(self) -> None:
        """Close the connection."""
        self._kvs.close()


class Follower:
    """Reads the tree, watches it from there, and starts over when the watch is lost."""

    def __init__(
        self,
        kvs: Kvs,
        spec: JobSpec,
        keys: dict[str, tuple[int | None, Leaf]],
        deliver: Callable[[Change], None],
        log: StoryLog,
    ) -> None:
        """Start following in a thread of its own."""
        self._kvs = kvs
        self._spec = spec
        self._keys = keys
        self._deliver = deliver
        self._log = log
        self._known: dict[str, tuple[int, str | None]] = {}
        self._prefix = names.job_prefix(spec.job_id)
        threading.Thread(target=self._run, name="follow", daemon=True).start()

    def only_finish(self) -> None:
        """Follow nothing but FINISH from the next read on: discovery is over."""
        self._prefix = names.finish_key(self._spec.job_id)

    def _run(self) -> None:
        delay = 0.0
        while True:
            try:
                self._read_and_watch(self._prefix)
                delay = 0.0
            except KvsError as error:
                if not delay:
                    self._log(f"ETCD LOST, TRYING AGAIN: {error}")
                delay = min(5.0, delay * 2 or 0.1)
                time.sleep(delay)

    def _read_and_watch(self, prefix: str) -> None:
        """Take the present state, then its changes, until another prefix is wanted."""
        snapshot = self._kvs.get_prefix(prefix)
        self._take_snapshot(prefix, snapshot)
        watch = self._kvs.watch_prefix(prefix, snapshot.revision + 1)
        try:
            again = time.monotonic() + REREAD_INTERVAL
            while self._prefix == prefix:
                event = watch.next(max(0.0, again - time.monotonic()))
                if event is not None:
                    value = event.value if event.type == "put" else None
                    self._take(event.key, event.mod_revision, value, event.lease)
                if time.monotonic() >= again:
                    self._take_snapshot(prefix, self._kvs.get_prefix(prefix))
                    again = time.monotonic() + REREAD_INTERVAL
        finally:
            watch.cancel()

    def _take_snapshot(self, prefix: str, snapshot: Snapshot) -> None:
        """Deliver what the range read shows, deletions included."""
        present = {item.key for item in snapshot.items}
        expected = {*self._known, names.finish_key(self._spec.job_id)}
        for key in sorted(expected - present):
            if key.startswith(prefix):
                self._take(key, snapshot.revision, None, 0)
        for item in snapshot.items:
            self._take(item.key, item.mod_revision, item.value, item.lease)

    def _take(self, key: str, revision: int, value: bytes | None, lease: int) -> None:
        """Deliver one key's state if it is newer than what is known, and this job's."""
        known_revision, known_text = self._known.get(key, (0, None))
        if key not in self._keys or (key in self._known and revision <= known_revision):
            return
        # The batch system may use a job id again: a key under another lease is another job's.
        text = None if value is None or lease != self._spec.lease_id else value.decode(errors="replace")
        first = key not in self._known
        self._known[key] = (revision, text)
        if first or text != known_text:
            node_index, leaf = self._keys[key]
            self._deliver(Change(leaf, node_index, text))
