# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An answer that many ask for and that is work: found once, and given to all for a while."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dockerjob_core.errors import HostError
from dockerjob_core.locks import lock_within

PATIENCE = 120.0
"""Seconds to wait for an answer that somebody else's question is being found for."""


def shared_answer(path: Path, age: float, find: Callable[[], Any]) -> Any:
    """Return the answer in *path* if it is at most *age* seconds old, else have it found and keep it there.

    Who asks meanwhile waits for it, so that however many ask, it is found once.  What *find* raises
    is raised, and nothing is kept.  A file that a killed broker has left half-written is no answer.

    Args:
        path: a file in a directory of the broker's own.
        age: seconds; 0 has it found in any case.
        find: returns plain data, for JSON.

    Raises:
        HostError: somebody else has been waiting for it too long.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        if not lock_within(descriptor, PATIENCE):
            raise HostError("the hosts are slow to answer another question; try again later")
        # A time in the future is a clock that was put back.
        if age and 0 <= time.time() - os.fstat(descriptor).st_mtime <= age:
            try:
                return json.load(file)
            except ValueError:
                file.seek(0)
        answer = find()
        file.truncate()
        json.dump(answer, file)
        return answer
