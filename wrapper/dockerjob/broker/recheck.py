# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the batch system now and then whether the job still has its hosts.

A job that is over for the batch system has no claim on them any more, also where the
wrapper has outlived it: a user's process that left the job's session, for example.  And where a
job is suspended by SIGSTOP, which stops the wrapper without a word, only the batch system can tell.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dockerjob_core.errors import BatchError, PolicyError
from dockerjob_core.schedulers.base import Phase


class Recheck:
    """A thread that calls *confirm* every *interval* seconds until it is stopped."""

    def __init__(
        self,
        interval: float,
        confirm: Callable[[], Phase],
        on_loss: Callable[[str], None],
        on_suspension: Callable[[bool], None],
    ) -> None:
        """Start it.

        Args:
            interval: seconds between two questions.
            confirm: says what the job does; raises ``PolicyError`` when it has lost its hosts.
            on_loss: called once then, with the reason, from the thread.
            on_suspension: called whenever the batch system has begun to call the job suspended, with
                True, or running again, with False.
        """
        self._interval = interval
        self._confirm = confirm
        self._on_loss = on_loss
        self._on_suspension = on_suspension
        self._suspended = False
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="recheck", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                phase = self._confirm()
            except BatchError:
                continue  # a batch system that is away for a while takes nothing back
            except PolicyError as error:
                self._on_loss(str(error))
                return
            # Only changes count: a job that got SIGTSTP from somebody else is none of the batch system's.
            if phase in ("running", "suspended") and (phase == "suspended") != self._suspended:
                self._suspended = not self._suspended
                self._on_suspension(self._suspended)
