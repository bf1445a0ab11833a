# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks of ordinary users on a set-up lab; tests/run.sh and ``make security`` bring it up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from dockerjob_lab.client import Cluster

from .attack import NUMBER, TWO_HOSTS, containers_since, state_of_etcd_and_files


@pytest.fixture
def nothing_happens(cluster: Cluster) -> Iterator[None]:
    """No container is made, not even for a moment, no key is written, no file is left."""
    begin, before = time.time(), state_of_etcd_and_files(cluster)
    yield
    assert containers_since(cluster, begin) == []
    assert state_of_etcd_and_files(cluster) == before


@pytest.fixture
def honest_job(cluster: Cluster) -> None:
    """A job of alice's that LSF says runs, on both hosts."""
    cluster.record_job(NUMBER, "alice", TWO_HOSTS)


@pytest.fixture
def private_directory(cluster: Cluster) -> Iterator[str]:
    """A directory of bob's that is closed to others, with a secret in it."""
    path = "/scratch/bob/private"
    make = f"mkdir -p {path}; echo hidden >{path}/secret; chown -R bob: {path}; chmod 700 {path}"
    cluster.run("node1", "sh", "-c", make)
    yield path
    cluster.run("node1", "rm", "-rf", path)
