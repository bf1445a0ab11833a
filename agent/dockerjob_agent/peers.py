# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node knows of the others during discovery, and how it verifies them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from . import network, ssh
from .log import StoryLog
from .spec import Node

FULL_MESH = 32
"""Up to so many nodes, everyone logs in to everyone; N² logins would be discovery's whole cost."""

FIRST_DELAY, LONGEST_DELAY = 0.02, 0.5


@dataclass
class Peer:
    """The state of one node, own or other, as far as this node knows it."""

    node: Node
    address: str | None = None
    public_key: str | None = None
    verified: bool = False
    ready: bool = False
    problem: str = ""

    @property
    def known(self) -> bool:
        """Whether both the address and the key were received."""
        return self.address is not None and self.public_key is not None

    def lacks(self) -> str:
        """Say in words what this node still needs of the peer."""
        if not self.known:
            missing = [
                name for name, value in (("IP", self.address), ("SSHPUBKEY", self.public_key)) if not value
            ]
            return f"has not published {' and '.join(missing)}"
        if not self.verified:
            return self.problem or "is not verified yet"
        return "is not READY"


def login_targets(index: int, count: int) -> frozenset[int]:
    """Choose the nodes that node *index* of *count* logs in to.

    Everyone for small jobs.  In large ones the master verifies all, since MPI starts from
    it, and each other node the master and its neighbours at distance 1, 2, 4, …
    """
    if index == 0 or count <= FULL_MESH:
        return frozenset(range(count)) - {index}
    steps = [1 << power for power in range(count.bit_length())]
    near = {(index + sign * step) % count for step in steps for sign in (1, -1)}
    return frozenset(near | {0}) - {index}


def verify(peer: Peer, login: bool, log: StoryLog, stop: threading.Event) -> bool:
    """Ping *peer*, and log in to it if *login*; try again until it works or *stop* is set."""
    address, name = str(peer.address), peer.node.name
    if not _until(lambda: _ping(peer, address), stop):
        return False
    log(f'PING TO "{address}" AS "{name}" SUCCESSFUL')
    if not login:
        return True
    log(f'CHECK SSH CONNECTION TO "{name}"')
    if not _until(lambda: _login(peer), stop):
        return False
    log(f'SSH CONNECTION TEST TO "{address}" AS "{name}" SUCCESSFUL')
    return True


def _until(test: Callable[[], bool], stop: threading.Event) -> bool:
    """Repeat *test* with growing pauses until it succeeds; False when stopped before."""
    delay = FIRST_DELAY
    while not stop.is_set():
        if test():
            return True
        stop.wait(delay)
        delay = min(LONGEST_DELAY, delay * 1.5)
    return False


def _ping(peer: Peer, address: str) -> bool:
    peer.problem = f"does not answer ping at {address}"
    answer = network.ping(address, timeout=1.0)
    # Where ICMP is not allowed, the login that follows has to do.
    return answer is None or answer


def _login(peer: Peer) -> bool:
    # The peer published its key after its sshd was up, and has ours by the time ssh offers it.
    problem = ssh.try_login(peer.node.name, timeout=10.0)
    peer.problem = f"refuses ssh: {problem}" if problem else ""
    return problem is None
