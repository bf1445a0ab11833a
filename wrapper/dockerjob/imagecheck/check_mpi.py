# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings about MPI: which there is, and whether its mpirun reaches the other hosts."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from dockerjob_agent.check import INFRA, MPICH_REPAIRED
from dockerjob_agent.mpi import job_environment

from .facts import Facts
from .finding import Finding
from .mpi import Mpi, find_mpi

LAUNCHER_SETTINGS = ("OMPI_MCA_plm", "PRTE_MCA_plm", "HYDRA_BOOTSTRAP", "HYDRA_LAUNCHER_EXEC")
"""Choose how ranks are started, beside what jobs set themselves (``dockerjob_agent.mpi``)."""

_PLM = re.compile(r"^\s*plm\s*=\s*(\S+)", re.MULTILINE)


def mpi(facts: Facts) -> Iterator[Finding]:
    """Say which MPI there is, and what is known of it."""
    found = find_mpi(facts.files, facts.config)
    if not found:
        yield Finding("mpi", "note", "no MPI found", "only jobs of one process will run, or install one")
    for one in found:
        yield Finding("mpi", "note", str(one))
        yield from _launcher(one)
        yield from _known_fault(one)
    called = facts.files.which("mpirun", facts.config.path)
    if len(found) > 1:
        yield Finding(
            "mpi several",
            "note",
            f"mpirun is {called or 'none of them'}",
            "COMMAND names the one it was built with",
        )


def _launcher(one: Mpi) -> Iterator[Finding]:
    if one.launcher is None:
        yield Finding(
            "mpi launcher",
            "warning",
            f"{one.library} has no mpirun beside it",
            "install the MPI's programs too",
        )
    elif not one.in_path:
        directory = posixpath.dirname(one.launcher)
        yield Finding(
            "mpi launcher", "warning", f"{one.launcher} is not in PATH", f"ENV PATH={directory}:$PATH"
        )


def _known_fault(one: Mpi) -> Iterator[Finding]:
    if one.family == "MPICH" and one.version and _numbers(one.version) < MPICH_REPAIRED:
        wanted = ".".join(map(str, MPICH_REPAIRED))
        yield Finding(
            "mpi version",
            "warning",
            f"MPICH {one.version} may hang in MPI_Finalize across hosts",
            f"use {wanted} or newer",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version)[:3])


def remote_shell(facts: Facts) -> Iterator[Finding]:
    """MPI starts its ranks on the other hosts by ssh."""
    ssh = facts.files.which("ssh", facts.config.path)
    if ssh:
        yield Finding("remote shell", "note", f"mpirun reaches other hosts with {ssh}")
    elif find_mpi(facts.files, facts.config):
        if facts.has_layer:
            yield Finding("remote shell", "error", "mpirun needs ssh, and PATH has none", INFRA)
        else:
            yield Finding("remote shell", "note", "PATH has no ssh: mpirun is told of the infrastructure's")


def mpi_settings(facts: Facts) -> Iterator[Finding]:
    """A value of the image wins over the job's, and may lead mpirun elsewhere."""
    of_jobs = job_environment({}, {}, "eth1", Path("/"))
    for name, value in sorted(facts.config.env.items()):
        chosen = name in of_jobs and value not in ("ssh", of_jobs[name]) and not name.startswith("UCX_")
        if chosen or (name in LAUNCHER_SETTINGS and value not in ("ssh", "rsh")):
            yield Finding(
                "mpi settings",
                "warning",
                f"ENV {name}={value} wins over what jobs set",
                f"remove {name} from the image",
            )
    for path, text in sorted(facts.files.texts.items()):
        if (
            path.endswith("-mca-params.conf")
            and (match := _PLM.search(text))
            and match[1] not in ("rsh", "ssh")
        ):
            yield Finding(
                "mpi settings",
                "warning",
                f"{path} starts ranks by {match[1]}, not by ssh",
                "remove 'plm' there",
            )
