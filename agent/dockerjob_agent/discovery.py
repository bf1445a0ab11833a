# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Discovery: the nodes of a job learn of each other, verify each other, and meet at READY.

One object, one thread: events come from a queue that the follower of the job's tree and
the verifying threads fill, so no state here is shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dockerjob_core.errors import DiscoveryError

from . import peers, ssh
from .files import write_atomic, write_in_place
from .log import StoryLog
from .peers import Peer
from .spec import JobSpec
from .tree import Change

PARALLEL_CHECKS = 8


@dataclass(frozen=True)
class Verified:
    """A verifying thread is through with the peer."""

    node_index: int


class Discovery:
    """The state of discovery on this node; feed it events until :attr:`done`."""

    def __init__(
        self,
        spec: JobSpec,
        directory: Path,
        log: StoryLog,
        post: Callable[[Verified], None],
        set_ready: Callable[[], None],
    ) -> None:
        """Begin with nothing known.

        Args:
            spec: The job as the broker described it.
            directory: Where hosts, known_hosts and authorized_keys are written.
            log: The story.
            post: Puts an event in the queue that feeds this object.
            set_ready: Publishes READY=True.
        """
        self._spec = spec
        self._directory = directory
        self._log = log
        self._post = post
        self._set_ready = set_ready
        self._peers = [Peer(node) for node in spec.nodes]
        self._login = peers.login_targets(spec.node_index, len(spec.nodes))
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(PARALLEL_CHECKS, thread_name_prefix="verify")
        self._ready_set = False
        self._peers[spec.node_index].verified = True

    @property
    def done(self) -> bool:
        """Whether every node said READY."""
        return all(peer.ready for peer in self._peers)

    def close(self) -> None:
        """Let the verifying threads end."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self, changes: list[Change], verified: list[Verified]) -> None:
        """Take what happened since the last call, then do what has become possible."""
        for change in changes:
            self._learn(change)
        newly_known = sorted(
            {c.node_index for c in changes if c.node_index is not None and c.leaf != "READY"}
        )
        if newly_known:
            self._write_files()
            for index in newly_known:
                self._start_verifying(self._peers[index])
        for event in verified:
            self._peers[event.node_index].verified = True
        if not self._ready_set and all(peer.known and peer.verified for peer in self._peers):
            self._ready_set = True
            count = len(self._peers)
            self._log(f'VERIFIED "{2 * count}" VALUES FOR ALL "{count}" PARTICIPATING COMPUTE NODES')
            self._set_ready()

    def failure(self) -> DiscoveryError:
        """Say which nodes lack what, in one line."""
        missing = [
            f"{peer.node.name} on {peer.node.host} {peer.lacks()}" for peer in self._peers if not peer.ready
        ]
        shown = "; ".join(missing[:10]) + (f"; and {len(missing) - 10} more" if len(missing) > 10 else "")
        return DiscoveryError(
            f"discovery on {self._spec.me.name} not complete after {self._spec.discovery_timeout:.0f} s: {shown}"
        )

    def _learn(self, change: Change) -> None:
        """Keep one value of another node, if it is one."""
        if change.node_index is None or change.value is None:
            return
        peer = self._peers[change.node_index]
        name, value = peer.node.name, change.value
        if change.leaf == "READY":
            if value == "True" and not peer.ready:
                self._log(f'NODE "{name}" IS READY ! --> "True"')
            peer.ready = value == "True"
        elif change.leaf == "IP" and value == peer.node.address:
            peer.address = value
        elif change.leaf == "SSHPUBKEY" and ssh.PUBLIC_KEY.fullmatch(value):
            peer.public_key = value
        else:
            self._log(f'INVALID VALUE FOR "{self._spec.job_id}/{name}/{change.leaf}": {value[:200]!r}')
            return
        self._log(f'"{self._spec.job_id}/{name}/{change.leaf}" VALID VALUE RECEIVED')

    def _write_files(self) -> None:
        """Bring hosts, known_hosts and authorized_keys up to what is known."""
        me = self._spec.me
        known = [peer for peer in self._peers if peer.known]
        others = [(str(peer.address), peer.node.name) for peer in known if peer.node != me]
        write_in_place(self._directory / "hosts", ssh.hosts([(me.address, me.name), *others]))
        keys = [(peer.node.name, str(peer.address), str(peer.public_key)) for peer in known]
        write_atomic(self._directory / "known_hosts", ssh.known_hosts(keys, self._spec.ssh_port))
        write_atomic(self._directory / "authorized_keys", ssh.authorized_keys(key for _, _, key in keys))

    def _start_verifying(self, peer: Peer) -> None:
        """Check the peer in a thread of the pool, unless that is done or not yet possible."""
        if not peer.known or peer.verified or peer.problem:
            return
        peer.problem = "is not verified yet"
        login = peer.node.index in self._login

        def check() -> None:
            if peers.verify(peer, login, self._log, self._stop):
                self._post(Verified(peer.node.index))

        self._pool.submit(check)
