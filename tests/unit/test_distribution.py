# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which images hosts may lose."""

from __future__ import annotations

from typing import Any

import pytest
from dockerjob.broker.distribution import Current, old_images
from dockerjob.broker.doctor import Finding

NOW = 1_000_000
SOLVER, TOOL, GONE = (f"head:5000/{name}" for name in ("solver", "team/tool", "gone"))
CURRENT = Current({}, frozenset({f"{SOLVER}@new", f"{TOOL}@new"}), frozenset({SOLVER, TOOL}))


def image(*names: str, created: int = NOW - 10) -> dict[str, Any]:
    return {"id": "sha256:1", "digests": list(names), "size": 1, "created": created}


@pytest.mark.parametrize(
    ("stored", "goes"),
    [
        (image(f"{SOLVER}@old"), True),
        (image(f"{SOLVER}@old", f"{TOOL}@old"), True),
        (image(f"{SOLVER}@new"), False),
        # Two names of one image, and one of them is needed.
        (image(f"{SOLVER}@old", f"{TOOL}@new"), False),
        (image(f"{SOLVER}@old", created=NOW + 1), False),
        # The registry has nothing of this name: the host may have the only copy.
        (image(f"{GONE}@old"), False),
        (image(f"{SOLVER}@old", f"{GONE}@old"), False),
        # Of another registry, from before this one, or loaded from an archive.
        (image("elsewhere:5000/solver@old"), False),
        (image("head:5000/solver/part@old"), False),
        (image(), False),
    ],
    ids=str,
)
def test_what_goes(stored: dict[str, Any], goes: bool) -> None:
    assert old_images({"stored": [stored]}, CURRENT, NOW) == (stored["digests"] if goes else [])


def test_a_registry_that_lost_everything_takes_nothing_from_hosts() -> None:
    lost = Current({}, frozenset(), frozenset())
    assert old_images({"stored": [image(f"{SOLVER}@old"), image(f"{TOOL}@new")]}, lost, NOW) == []


def test_a_host_that_did_not_answer_loses_nothing() -> None:
    assert old_images(Finding("wrong", "node1", "ssh", "no answer"), CURRENT, NOW) == []
