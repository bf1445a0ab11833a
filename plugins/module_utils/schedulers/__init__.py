# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Batch systems, one file each: from a job's environment to its allocation, and what to ask for the proof.

Every other file here is an adapter and defines ``SYSTEM``; a new one is found without being named
anywhere.  The submit wrapper and the inventory plugin load all of them, so they import little, and
run nothing: who asks the batch system is :mod:`dockerjob.schedulers`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from ..allocation import Allocation
from ..errors import RequestError
from .base import BatchSystem, Environment, ReadFile

OVERRIDE = "DOCKERJOB_BATCH"
"""Variable that names the batch system, where a job's environment looks like that of several."""

_NO_ADAPTERS = ("__init__", "base")


def _load() -> dict[str, BatchSystem]:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    modules = [importlib.import_module(f".{name}", __name__) for name in names if name not in _NO_ADAPTERS]
    return {module.SYSTEM.name: module.SYSTEM for module in modules}


SYSTEMS: Mapping[str, BatchSystem] = _load()
"""All batch systems by name."""


def read_allocation(environment: Environment, read_file: ReadFile, chosen: str = "") -> Allocation:
    """Find the batch system whose job this is and read its allocation.

    Args:
        environment: the job's variables.
        read_file: returns the text of a file that a variable names.
        chosen: the batch system's name, or nothing: then it shows in the environment.

    Raises:
        RequestError: no batch system is recognised, or several are; or its variables are
            missing, malformed or contradict.
    """
    return _find(environment, chosen.strip()).read(environment, read_file)


def _find(environment: Environment, chosen: str) -> BatchSystem:
    if chosen:
        return _chosen(environment, chosen)
    found = [system for system in SYSTEMS.values() if system.marker in environment]
    if not found:
        markers = ", ".join(system.marker for system in SYSTEMS.values())
        raise RequestError(
            f"no batch job found in the environment (none of {markers} is set);"
            " run this from a submit script, e.g. 'bsub < script'"
        )
    if len(found) > 1:
        markers = " and ".join(system.marker for system in found)
        raise RequestError(
            f"{markers} are set: this looks like a job of several batch systems;"
            f" set {OVERRIDE} to the one that it is, e.g. {OVERRIDE}={found[0].name}"
        )
    return found[0]


def _chosen(environment: Environment, name: str) -> BatchSystem:
    system = SYSTEMS.get(name)
    if system is None:
        raise RequestError(f"{OVERRIDE}={name[:80]!r} is no batch system; there is: {', '.join(SYSTEMS)}")
    if system.marker not in environment:
        raise RequestError(
            f"no batch job found in the environment: {OVERRIDE} says {system.title},"
            f" and {system.marker} is not set"
        )
    return system
