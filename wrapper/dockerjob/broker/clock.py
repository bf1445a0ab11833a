# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job's wall-clock: it stands still while the job is suspended."""

from __future__ import annotations

import time
from collections.abc import Callable

from dockerjob_core.errors import WallClockError


class WallClock:
    """Counts the time that a job runs, and that it is suspended; all in seconds."""

    def __init__(self, limit: int, suspension: int, now: Callable[[], float] = time.monotonic) -> None:
        """Start to count.

        Args:
            limit: how long the job may run.
            suspension: how long it may be suspended in all.
            now: the time in seconds; not that of the day, which may be set while the job runs.
        """
        self._what = f"the wall-clock limit of {limit} s"
        self._suspension = suspension
        self._now = now
        self._deadline = now() + limit
        self._since: float | None = None
        self._suspended = 0.0

    def bound(self, remaining: float, what: str) -> None:
        """End in *remaining* seconds from now, if that is sooner; *what* is the limit for people."""
        if self._now() + remaining < self._deadline:
            self._deadline, self._what = self._now() + remaining, what

    @property
    def suspended(self) -> bool:
        """Whether the clock stands still."""
        return self._since is not None

    @property
    def suspended_seconds(self) -> float:
        """How long it has stood still until now."""
        return self._suspended + (self._now() - self._since if self._since is not None else 0.0)

    @property
    def deadline(self) -> float:
        """When the job has to end if nothing changes, in seconds of *now*."""
        if self._since is None:
            return self._deadline
        return self._since + self._suspension - self._suspended

    @property
    def remaining(self) -> float:
        """Seconds until :attr:`deadline`."""
        return self.deadline - self._now()

    @property
    def lifetime(self) -> float:
        """Seconds until it has to end, whatever comes; what is bound to the job lives no longer."""
        return self._deadline - self._suspended + self._suspension - self._now()

    def stop(self) -> None:
        """Stand still from now on."""
        if self._since is None:
            self._since = self._now()

    def go_on(self) -> None:
        """Count again from now on."""
        if self._since is not None:
            paused = self._now() - self._since
            self._suspended += paused
            self._deadline += paused
            self._since = None

    def check(self) -> None:
        """Do nothing before the deadline.

        Raises:
            WallClockError: it is reached; the message says which limit it was.
        """
        if self._now() < self.deadline:
            return
        if self.suspended:
            raise WallClockError(
                f"the job was suspended for more than {self._suspension} s (limits.suspension)"
            )
        raise WallClockError(f"{self._what} is reached")
