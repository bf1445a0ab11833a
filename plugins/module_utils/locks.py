# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks of files that are waited for, but not for ever."""

from __future__ import annotations

import fcntl
import time

INTERVAL = 0.02


def lock_within(descriptor: int, seconds: float) -> bool:
    """Lock an open file or directory for this process alone, see flock(2); tell whether it could be in that time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(INTERVAL)
        else:
            return True
