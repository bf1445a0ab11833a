# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace *path* by a new file; symbolic links are replaced, not followed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        partial.replace(path)
    except OSError:
        # The disk is full, or the quota used up.
        partial.unlink(missing_ok=True)
        raise


def write_in_place(path: Path, text: str) -> None:
    """Rewrite *path* without changing its inode: a bind mount of it keeps showing it.

    The text only ever grows by lines at its end, so a reader sees the old or the new
    state, never a truncated one.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        data = text.encode()
        file.write(data)
        file.truncate(len(data))
