# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's policy: what it lets through, what it refuses, and by which name."""

from __future__ import annotations

from typing import Any

import pytest
from dockerjob.broker.policy import check_request
from dockerjob.config import Config
from dockerjob.request import JobRequest, Terminal
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import PolicyError, RequestError


def config(**policy: Any) -> Config:
    return Config.model_validate(
        {
            "hosts": {"node1": {"address": "a"}, "node2": {"address": "b"}},
            "ansible": {"private_key": "/k", "known_hosts": "/h"},
            "etcd": {"ca": "/c", "cert": "/c", "key": "/k", "auth_cert": "/a", "auth_key": "/a"},
            "job_ca": {"cert": "/c", "key": "/k"},
            "applications": {"app:1": {"image": "sha256:" + "0" * 64}},
            "mounts": [{"path": "/scratch"}],
            "batch": {},
            "policy": policy,
        }
    )


def request(**changes: Any) -> JobRequest:
    values: dict[str, Any] = {
        "allocation": Allocation("lsf", 7, None, (HostSlots("node1", 2), HostSlots("node2", 2))),
        "application": "app:1",
        "command": b"mpirun -hostfile system/machines simpleFoam -parallel",
        "jobdir": "/scratch/case",
        "environment": {"OMP_NUM_THREADS": "2"},
    }
    return JobRequest(**{**values, **changes})


def test_an_ordinary_request_passes() -> None:
    assert check_request(config(), request()).image.startswith("sha256:")


def test_what_is_at_the_limits_passes() -> None:
    strict = config(
        hosts=2,
        slots=4,
        environment=["OMP_*"],
        command_length=53,
        command_characters="printable",
        commands=["mpirun * simpleFoam -parallel"],
        interactive=False,
    )
    assert check_request(strict, request())


@pytest.mark.parametrize(
    ("policy", "changes", "message"),
    [
        ({"hosts": 1}, {}, r"2 hosts.*policy\.hosts"),
        ({"slots": 3}, {}, r"4 slots.*policy\.slots"),
        ({"environment": ["omp_*"]}, {}, r"OMP_NUM_THREADS.*policy\.environment"),
        ({"environment": []}, {"environment": {"LD_PRELOAD": "/x"}}, "LD_PRELOAD"),
        ({"command_length": 52}, {}, r"53 bytes.*policy\.command_length"),
        ({"command_characters": "printable"}, {"command": b"a\nb"}, "can't be printed"),
        ({"command_characters": "printable"}, {"command": b"\xff"}, "can't be printed"),
        ({"commands": ["simpleFoam*"]}, {}, r"it allows: simpleFoam\*"),
        ({"interactive": False}, {"terminal": Terminal(24, 80, "vt100")}, r"policy\.interactive.*TERMINAL=0"),
        ({}, {"jobdir": "/scratchy"}, "JOBDIR=/scratchy is on no file system"),
        (
            {},
            {"allocation": Allocation("lsf", 7, None, (HostSlots("node9", 1),))},
            "host node9 is not in this cluster",
        ),
    ],
)
def test_what_is_beyond_is_refused_by_name(
    policy: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        check_request(config(**policy), request(**changes))


@pytest.mark.parametrize(
    "command",
    [
        "ls; id",
        "ls\nid",
        "ls $(id)",
        "ls `id`",
        "ls | id",
        "ls & id",
        "ls > x",
        "ls *",
        "ls 'x'",
        "ls \\id",
        "ls ~bob",
    ],
)
def test_with_allowed_commands_nothing_reaches_a_shell_that_is_more_than_a_word(command: str) -> None:
    with pytest.raises(PolicyError, match="treats specially"):
        check_request(config(commands=["ls*"]), request(command=command.encode()))


def test_an_unknown_application_is_told_the_nearest_ones() -> None:
    with pytest.raises(RequestError, match=r"the nearest of 1: app:1; 'dockerjob images list' shows all"):
        check_request(config(), request(application="nosuch:1"))
