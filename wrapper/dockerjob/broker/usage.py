# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job's nodes have used, as the hosts say it (module ``job_node``): added up, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SUMS = (
    "cpu",
    "cpu_user",
    "cpu_system",
    "block_read",
    "block_written",
    "network_received",
    "network_sent",
)
UNKNOWN = "not known"


def total(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what the nodes have used; of memory take the most of one. What one of them doesn't know is None."""

    def values(name: str) -> list[float] | None:
        found = [node.get(name) for node in nodes]
        known = [value for value in found if value is not None]
        return known if known and len(known) == len(found) else None

    sums = {name: None if (found := values(name)) is None else round(sum(found), 3) for name in SUMS}
    memory = values("memory")
    return {**sums, "memory": None if memory is None else max(memory)}


def used(found: Mapping[str, Any]) -> str:
    """Say it in one line."""
    cpu = UNKNOWN
    if found["cpu"] is not None:
        cpu = f"{found['cpu']:.2f} s"
        if found["cpu_user"] is not None and found["cpu_system"] is not None:
            cpu += f" (user {found['cpu_user']:.2f} s, system {found['cpu_system']:.2f} s)"
    memory = UNKNOWN if found["memory"] is None else f"{size(found['memory'])} at most on a host"
    return (
        f"CPU {cpu}, memory {memory}, "
        f"block devices {_pair(found, 'block_read', 'read', 'block_written', 'written')}, "
        f"network {_pair(found, 'network_sent', 'sent', 'network_received', 'received')}"
    )


def _pair(found: Mapping[str, Any], first: str, done: str, second: str, also: str) -> str:
    if found[first] is None or found[second] is None:
        return UNKNOWN
    return f"{size(found[first])} {done} and {size(found[second])} {also}"


def size(number: float) -> str:
    """Write a number of bytes for people: ``812.0 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
