# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images from the site's registry: every host runs what the tag meant at submit, and gets it if need be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from dockerjob_core import jobtree
from dockerjob_lab.client import Cluster
from job_fixtures import DOCKERJOB, job, listed_images, refused, running_job, stored_image

CRON = "/etc/cron.d/dockerjob-images"

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]


@contextlib.contextmanager
def without_image(cluster: Cluster, host: str) -> Iterator[None]:
    """Take mpihello's image from a host."""
    reference, image = stored_image(cluster, host, "mpihello:1")
    cluster.run(host, "docker", "rmi", "--force", image)
    try:
        yield
    finally:
        cluster.run(host, "docker", "pull", "--quiet", reference)


def test_every_host_runs_the_digest_that_the_registry_has(cluster: Cluster) -> None:
    wanted = listed_images(cluster)["mpihello:1"]
    assert wanted["hosts"] == cluster.compute
    assert wanted["size"] > 10_000_000
    assert listed_images(cluster, "alice")["mpihello:1"] == wanted
    with running_job(cluster, "alice", "node1,node2", 988601):
        for index, host in enumerate(("node1", "node2")):
            shown = cluster.run(
                host, "docker", "inspect", "--format={{.Config.Image}}", f"988601_node_{index}"
            )
            assert shown.strip() == wanted["image"]


def test_a_host_that_lacks_the_image_pulls_it_before_anything_starts(cluster: Cluster) -> None:
    with without_image(cluster, "node2"):
        done = cluster.submit(job("echo done"))
        assert (done.status, done.out) == (0, "done\n"), done.err
        assert "mpihello:1: 1 of 2 hosts have the image; pulling on " in done.err
        assert "mpihello:1: 2 of 2 hosts have the image" in done.err
        assert cluster.compute == listed_images(cluster)["mpihello:1"]["hosts"]


def test_a_registry_that_is_down_is_said_before_anything_is_created(cluster: Cluster) -> None:
    cluster.run("head", "docker", "stop", "dockerjob-registry-reader")
    try:
        refused(cluster.submit(job()), 214, "registry .* is out of reach.*try again later")
    finally:
        cluster.run("head", "docker", "start", "dockerjob-registry-reader")


def test_an_administrator_keeps_hosts_current(cluster: Cluster) -> None:
    with without_image(cluster, "node2"):
        told = cluster.run("node1", DOCKERJOB, "images", "sync", "--prune", "--older-than", "0")
        count = len(cluster.compute)
        assert f"mpihello:1: {count} of {count} hosts have the image" in told
        assert f"openfoam:1912: all of {count} hosts have it" in told
        current = {image["image"] for image in listed_images(cluster).values()}
        assert not [word for word in told.split() if word in current]  # in a line "HOST: removed IMAGE"


def test_cron_s_line_does_what_it_says(cluster: Cluster) -> None:
    """What the role has written for cron, run as cron would: as its account, by a shell, without a terminal."""
    host, *_ = [host for host in cluster.pids if cluster.path(host, CRON).exists()]
    [line] = [line for line in cluster.path(host, CRON).read_text().splitlines() if line[0] != "#"]
    *_, account, command = line.split(maxsplit=6)[4:]
    log = cluster.path(host, command.rpartition(">>")[2].split()[0])
    before = len(log.read_text()) if log.exists() else 0
    with without_image(cluster, "node2"):
        argv = (
            "setpriv",
            f"--reuid={account}",
            f"--regid={account}",
            "--init-groups",
            "env",
            "-i",
            "PATH=/usr/bin:/bin",
        )
        cluster.run(host, *argv, "/bin/sh", "-c", command)
        assert "node2" in listed_images(cluster)["mpihello:1"]["hosts"]
    assert "mpihello:1: " in log.read_text()[before:]


def test_garbage_is_collected_in_the_registry_s_container(cluster: Cluster) -> None:
    """The writer is back afterwards, also if somebody ends the collection, and two don't collect at once."""
    before = listed_images(cluster)
    cluster.run("head", "dockerjob-registry-gc")
    with pytest.raises(RuntimeError, match="it runs already"):
        cluster.run("head", "flock", "/run/dockerjob-registry-gc.lock", "dockerjob-registry-gc")
    cluster.run("head", "timeout", "--signal=TERM", "1", "dockerjob-registry-gc", check=False)
    writer = ("docker", "inspect", "--format={{.State.Running}}", "dockerjob-registry-writer")
    assert cluster.run("head", *writer) == "true\n"
    assert listed_images(cluster) == before


def test_an_image_of_a_job_is_not_pruned(cluster: Cluster, site_config: Any) -> None:
    """Between its pull and its containers only etcd knows that a job needs it."""
    wanted = listed_images(cluster)
    reference = wanted["mpihello:1"]["image"]
    applications = {name: {"image": name} for name in wanted if name != "mpihello:1"}
    prune = (DOCKERJOB, "images", "sync", "--prune", "--older-than", "0", "--host", "node2")
    site_config("applications")
    site_config("applications", **applications)
    with cluster.kvs() as kvs:
        record = {"user": "alice", "image": reference, "hosts": ["node2"]}
        lease, _ = jobtree.create_job_tree(kvs, "987601", 1, 60, record)
        try:
            assert f"removed {reference}" not in cluster.run("node1", *prune)
        finally:
            jobtree.remove_job_tree(kvs, "987601", lease)
    assert f"node2: removed {reference}" in cluster.run("node1", *prune)
    cluster.run("node2", "docker", "pull", "--quiet", reference)


def test_users_who_ask_again_and_again_are_told_what_was_found_before(cluster: Cluster) -> None:
    """However often they ask: registry and hosts have work with it once in five minutes."""
    before = listed_images(cluster)
    with without_image(cluster, "node2"):
        assert [listed_images(cluster, user) for user in ("alice", "bob", "alice")] == [before] * 3
        asked = listed_images(cluster)["mpihello:1"]["hosts"]
    assert asked == [host for host in cluster.compute if host != "node2"]
