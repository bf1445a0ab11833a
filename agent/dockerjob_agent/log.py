# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's log: one line per step, with the time it happened, in the job's own words.

The file lies in the node's writable directory; a failed set-up shows its end to the user.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from .spec import WRITABLE

LOG_NAME = "agent.log"
ERROR_NAME = "agent_error"


class StoryLog:
    """Appends timestamped lines; safe to use from several threads and processes."""

    def __init__(self, directory: Path = WRITABLE) -> None:
        """Write to ``agent.log`` in *directory*."""
        self._directory = directory
        # O_APPEND and one write per line keep the lines of init and run whole.
        self._descriptors = [os.open(directory / LOG_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)]

    def __call__(self, text: str) -> None:
        """Append *text* as one line."""
        data = line(text, datetime.datetime.now()).encode(errors="replace")
        for descriptor in self._descriptors:
            os.write(descriptor, data)

    def also_to(self, path: str) -> None:
        """Write every line from now on to *path* as well."""
        self._descriptors.append(os.open(path, os.O_WRONLY | os.O_APPEND))

    def error(self, text: str) -> None:
        """Log *text* and leave it as the one line that says why this node gave up."""
        self(f"ERROR: {text}")
        (self._directory / ERROR_NAME).write_text(" ".join(text.split()) + "\n")


def line(text: str, now: datetime.datetime) -> str:
    """Format one line of the log."""
    return f"{now:%Y-%m-%d %H:%M:%S.%f} {' '.join(text.splitlines())}\n"
