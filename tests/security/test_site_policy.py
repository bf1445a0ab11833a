# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the site's policy excludes is refused by the name of its key, and a wrong policy by its own."""

from __future__ import annotations

from typing import Any

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import job

from .attack import broker, check_refused, encoded, last_audit, request, script

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("honest_job", "nothing_happens")]


@pytest.mark.parametrize(
    ("policy", "changes", "message"),
    [
        ({"hosts": 1}, {}, "the job has 2 hosts; this site allows container jobs 1 (policy.hosts)"),
        ({"slots": 3}, {}, "the job has 4 slots; this site allows container jobs 3 (policy.slots)"),
        (
            {"environment": ["OMP_*"]},
            {"environment": {"LD_PRELOAD": "/x"}},
            "doesn't pass LD_PRELOAD to COMMAND (policy.environment)",
        ),
        ({"command_length": 3}, {}, "COMMAND has 4 bytes; this site allows 3 (policy.command_length)"),
        (
            {"command_characters": "printable"},
            {"command": encoded("true\nid")},
            "(policy.command_characters)",
        ),
        ({"commands": ["true"]}, {"command": encoded("id")}, "it allows: true (policy.commands)"),
        ({"commands": ["true*"]}, {"command": encoded("true; id")}, "treats specially"),
        ({"commands": ["true*"]}, {"command": encoded("true $(id)")}, "treats specially"),
    ],
)
def test_what_is_beyond_the_policy_is_refused(
    cluster: Cluster, site_config: Any, policy: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    site_config("policy", **policy)
    check_refused(cluster, broker(cluster, request(**changes)), 202, message)
    assert last_audit(cluster)["job"] == "987000"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"images": ["site/*"]}, "applications.foreign:minimal.image"),
        ({"hosts": 0}, "policy.hosts"),
        ({"slots": "many"}, "policy.slots"),
        ({"environment": "A"}, "policy.environment"),
        ({"command_length": -1}, "policy.command_length"),
        ({"command_characters": "nice"}, "policy.command_characters"),
        ({"commands": 1}, "policy.commands"),
        ({"pinned": "perhaps"}, "policy.pinned"),
        ({"privileged": True}, "policy.privileged"),
    ],
)
def test_a_wrong_policy_lets_nobody_in(
    cluster: Cluster, site_config: Any, policy: dict[str, Any], message: str
) -> None:
    site_config("policy", **policy)
    check_refused(cluster, broker(cluster, request()), 203, message)


def test_without_a_registry_an_image_that_is_not_pinned_lets_nobody_in(
    cluster: Cluster, site_config: Any
) -> None:
    site_config("registry")
    site_config("applications", **{"tagged:1": {"image": "mpihello:1"}})
    check_refused(cluster, broker(cluster, request()), 203, ".image: foreign:minimal is no image id")


@pytest.mark.parametrize(
    ("jobdir", "status", "message"),
    [
        ("/etc", 202, "is on no file system that the containers see"),
        ("/", 202, "is on no file system that the containers see"),
        ("/scratchy", 202, "is on no file system that the containers see"),
        ("//scratch/alice", 202, "is on no file system that the containers see"),
        ("/scratch/../etc", 201, "is not an absolute path without '..'"),
        ("scratch", 201, "is not an absolute path without '..'"),
        ("", 201, "is not an absolute path without '..'"),
        ("/scratch/a\0b", 201, "is not an absolute path without '..'"),
        ("/scratch/" + "a" * 5000, 201, "is not an absolute path without '..'"),
        ("/scratch/\udcff", 201, "is not valid UTF-8"),
    ],
)
def test_a_jobdir_outside_of_the_mounts_is_refused(
    cluster: Cluster, jobdir: str, status: int, message: str
) -> None:
    check_refused(cluster, broker(cluster, request(jobdir=jobdir)), status, message)


def test_the_wrapper_hides_nothing_from_the_policy(cluster: Cluster, site_config: Any) -> None:
    site_config("policy", environment=["OMP_*"])
    extra = "export LD_PRELOAD_=/x DOCKERJOB_ENVIRONMENT=LD_PRELOAD_"
    done = cluster.submit(script(b"true", extra=extra), hosts="node1")
    assert (done.status, "(policy.environment)" in done.err) == (202, True), done


def test_a_wall_clock_of_more_than_a_year_is_refused(cluster: Cluster) -> None:
    done = cluster.submit(job(extra="export WALLCLOCK=9999:00"))
    assert (done.status, "is not between 1 s and a year" in done.err) == (201, True), done
