# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the facts of an image mean for jobs: each check is a function of the facts, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import check_config, check_files, check_mpi
from .facts import Facts
from .finding import Finding

CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    check_config.architecture,
    check_config.infrastructure,
    check_files.shell,
    check_mpi.mpi,
    check_mpi.remote_shell,
    check_mpi.mpi_settings,
    check_files.closed,
    check_files.overlays,
    check_files.temporary,
    check_config.entrypoint,
    check_files.homes,
    check_files.setuid,
    check_files.capabilities,
    check_files.writable,
    check_config.volumes,
    check_files.secrets,
    check_config.user,
    check_config.workdir,
    check_config.services,
    check_files.startup_files,
    check_files.owners,
    check_files.libc,
    check_files.hardware,
    check_config.size,
)


def findings(facts: Facts) -> list[Finding]:
    """Return all that is to be said of an image, the worst first, else in the order of :data:`CHECKS`."""
    found = [finding for check in CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.level))
