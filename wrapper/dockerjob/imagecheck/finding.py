# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One thing that is to be said of an image.

error: a job in this image fails. warning: some jobs fail, or not where it is tried out. note: good to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]

SHOWN = 5
"""How many paths of a list are named."""


@dataclass(frozen=True)
class Finding:
    """One thing about an image: its ``name`` is stable, ``remedy`` says what to do."""

    name: str
    level: Level
    text: str
    remedy: str = ""


def some(paths: Sequence[str]) -> str:
    """Name the first of *paths*, and how many more there are."""
    more = len(paths) - SHOWN
    return " ".join(paths[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def megabytes(count: int) -> str:
    """Format bytes as MB, as Docker does."""
    return f"{count / 1e6:.1f} MB"
