# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's queues: how jobs in them are killed.

IBM's pages contradict each other about parallel jobs (bkill: INT, TERM and KILL in sequence; LSB_USE_SEQUENTIAL_SIGNAL
in lsf.conf: by default KILL only), so there is a queue for each.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import LsfError

TERMINATE_INTERVAL = 10.0
"""Seconds between the signals that end a job (LSF: JOB_TERMINATE_INTERVAL)."""

RUN_LIMIT_GRACE = 600.0
"""Seconds between SIGUSR2, at the run limit, and the end."""

Profile = tuple[tuple[float, str], ...]
"""Signals, each with the seconds after which it comes."""

SEQUENCE: Profile = (
    (0.0, "CONT"), (0.0, "INT"), (TERMINATE_INTERVAL, "TERM"), (2 * TERMINATE_INTERVAL, "KILL"),
)  # fmt: skip
KILL_ONLY: Profile = ((0.0, "KILL"),)

PROFILES: Mapping[str, Profile] = {"normal": SEQUENCE, "killonly": KILL_ONLY}
PRIORITIES: Mapping[str, int] = {"normal": 30, "killonly": 20}


def checked(queue: str) -> str:
    """Return *queue*.

    Raises:
        LsfError: there is no such queue.
    """
    if queue not in PROFILES:
        raise LsfError(f"{queue}: No such queue. Job not submitted.")
    return queue
