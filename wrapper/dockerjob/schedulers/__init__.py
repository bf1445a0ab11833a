# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Batch systems: one adapter each, from the environment of a job to its allocation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dockerjob_core import lsf
from dockerjob_core.allocation import Allocation
from dockerjob_core.errors import RequestError

_Reader = Callable[[Mapping[str, str], Callable[[str], str]], Allocation]

_ADAPTERS: dict[str, tuple[Callable[[Mapping[str, str]], bool], _Reader]] = {
    "lsf": (lsf.is_present, lsf.read_allocation),
}


def read_allocation(environment: Mapping[str, str]) -> Allocation:
    """Find the batch system whose job this is and read its allocation.

    Raises:
        RequestError: no batch system is recognised, or its variables contradict.
    """
    for is_present, read in _ADAPTERS.values():
        if is_present(environment):
            return read(environment, lambda path: Path(path).read_text(encoding="utf-8"))
    raise RequestError(
        "no batch job found in the environment (LSB_JOBID is not set);"
        " run this from a submit script, e.g. 'bsub < script'"
    )
