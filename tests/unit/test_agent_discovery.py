# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Discovery without containers: what a node does with what it learns, and what it says it lacks."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from dockerjob_agent import peers
from dockerjob_agent.discovery import Discovery, Verified
from dockerjob_agent.log import StoryLog
from dockerjob_agent.peers import Peer, login_targets
from dockerjob_agent.tree import Change, Leaf
from test_agent_files import KEY, parsed


class Harness:
    """A discovery whose peers are verified by the test."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[str] = []
        self.begun = threading.Semaphore(0)
        self.ready = 0
        self.directory = directory

        def verify(peer: Peer, login: bool, log: StoryLog, stop: threading.Event) -> bool:
            self.started.append(peer.node.name)
            self.begun.release()
            return False

        def set_ready() -> None:
            self.ready += 1

        monkeypatch.setattr(peers, "verify", verify)
        self.discovery = Discovery(parsed(), directory, StoryLog(directory), lambda event: None, set_ready)

    def learn(self, index: int, **values: str) -> None:
        leaves: dict[str, Leaf] = {"ip": "IP", "key": "SSHPUBKEY", "ready": "READY"}
        self.discovery.take([Change(leaves[name], index, value) for name, value in values.items()], [])


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    return Harness(tmp_path, monkeypatch)


def test_the_way_to_ready(harness: Harness) -> None:
    harness.learn(1, ip="10.128.0.2", key=KEY, ready="False")
    harness.learn(0, ip="10.128.0.1")
    assert harness.started == []
    harness.learn(0, key=KEY)
    assert harness.begun.acquire(timeout=5)
    assert harness.started == ["102_node_0"]
    assert "10.128.0.1\t102_node_0" in (harness.directory / "hosts").read_text()
    assert KEY in (harness.directory / "authorized_keys").read_text()
    assert harness.ready == 0
    harness.discovery.take([], [Verified(0)])
    assert harness.ready == 1
    harness.learn(0, ready="True")
    assert not harness.discovery.done
    harness.learn(1, ready="True")
    assert harness.discovery.done
    assert harness.ready == 1


def test_a_value_that_is_not_the_peers_is_refused(harness: Harness) -> None:
    harness.learn(0, ip="10.128.0.99", key='command="evil" ' + KEY)
    assert harness.started == []
    assert (harness.directory / "authorized_keys").read_text() == ""
    story = (harness.directory / "agent.log").read_text()
    assert story.count("INVALID VALUE") == 2


def test_failure_names_each_node_and_what_it_lacks(harness: Harness) -> None:
    harness.learn(1, ip="10.128.0.2", key=KEY, ready="True")
    harness.learn(0, ip="10.128.0.1")
    text = str(harness.discovery.failure())
    assert "102_node_0 on node1 has not published SSHPUBKEY" in text
    assert "102_node_1 on" not in text
    assert "after 60 s" in text


def test_what_a_peer_lacks() -> None:
    peer = Peer(parsed().nodes[0])
    assert peer.lacks() == "has not published IP and SSHPUBKEY"
    peer.address, peer.public_key = "10.128.0.1", KEY
    assert peer.lacks() == "is not verified yet"
    peer.problem = "refuses ssh: Connection refused"
    assert peer.lacks() == "refuses ssh: Connection refused"
    peer.verified = True
    assert peer.lacks() == "is not READY"


def test_small_jobs_log_in_everywhere() -> None:
    assert login_targets(1, 3) == {0, 2}
    assert login_targets(0, 1) == frozenset()


@pytest.mark.parametrize("count", [33, 128, 512])
def test_large_jobs_log_in_to_few(count: int) -> None:
    assert login_targets(0, count) == set(range(1, count))
    for index in range(1, count):
        targets = login_targets(index, count)
        assert 0 in targets
        assert index not in targets
        assert len(targets) <= 2 * count.bit_length() + 1
