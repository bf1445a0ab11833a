# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors of the project and the exit status each one becomes.

Low layers raise these; only the edges (a module's ``main``, the command line) turn
them into a message and an exit status.  The statuses stay clear of 0..125 as far as a
COMMAND commonly uses them, of the shell's 126..165, and of LSF's own 99 and 127.
The codes from 200 on mean: this job would fail anywhere; from 210 on: another host or
a later try may succeed, so a site can list them in ``REQUEUE_EXIT_VALUES``.
"""

from __future__ import annotations

import signal


class DockerjobError(Exception):
    """Base of all errors with a message for people: what, where, and what to do."""

    exit_status = 200


class RequestError(DockerjobError):
    """The user's request is incomplete or wrong; nothing was created."""

    exit_status = 201


class PolicyError(DockerjobError):
    """The request is well formed, but this site does not allow it."""

    exit_status = 202


class ConfigError(DockerjobError):
    """The site's configuration is missing or wrong; the message names the key."""

    exit_status = 203


class DiscoveryError(DockerjobError):
    """The containers started but did not find each other in time."""

    exit_status = 204


class WallClockError(DockerjobError):
    """The lease ran out: the job reached its wall-clock limit."""

    exit_status = 205


class StageOutError(DockerjobError):
    """COMMAND succeeded, but its results could not all be copied out of JOBDIR, where they stay."""

    exit_status = 206


class StageInError(DockerjobError):
    """The inputs could not all be copied into JOBDIR; COMMAND was not started."""

    exit_status = 207


class HostError(DockerjobError):
    """A host of the allocation is unreachable or could not start its container."""

    exit_status = 210


class KvsError(DockerjobError):
    """etcd is unreachable, has no quorum, or refused the request."""

    exit_status = 211


class NoFreeNetworkError(DockerjobError):
    """Every subnet or VLAN of the pool is reserved."""

    exit_status = 212


class BatchError(DockerjobError):
    """The batch system could not be asked about the job, or gave no answer."""

    exit_status = 213


class RegistryError(DockerjobError):
    """The site's registry is out of reach, or a host could not get the job's image from it."""

    exit_status = 214


class StoppedError(DockerjobError):
    """A signal ended the job before COMMAND did."""

    def __init__(self, number: int) -> None:
        """Keep the shell's exit status for death by signal *number*."""
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_status = 128 + number
