# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands keep of jobs beside Slurm: a directory for each, its owner's, under ``/share/lsf/spool``.

Nothing of what matters to others is read from there: owner, state and hosts of a job that is there are Slurm's word.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .job import options_of
from .options import Options
from .report import End

ROOT = Path(__file__).resolve().parents[3]
"""Where the lab's LSF is installed, ``/share/lsf``."""


class Record:
    """What is kept of one job, or of an array."""

    def __init__(self, number: int, root: Path = ROOT) -> None:
        """Of job *number*, whether or not it is there."""
        self.number = number
        self.directory = root / "spool" / str(number)

    def create(self, told: dict[str, Any]) -> None:
        """Begin the record of a job that has been submitted."""
        self.directory.mkdir()
        self._write("job", told)

    def owned_by(self, uid: int) -> bool:
        """Whether it is there, and is *uid*'s."""
        try:
            return self.directory.lstat().st_uid == uid
        except FileNotFoundError:
            return False

    def told(self) -> dict[str, Any]:
        """What bsub has written: options, command, from where and when; empty if it can't be read yet."""
        return self._read("job")

    def options(self) -> Options | None:
        """The options of the job, None if they can't be read."""
        told = self.told()
        return options_of(told["options"]) if told else None

    def begin(self, index: int, told: dict[str, Any]) -> None:
        """Note that an element runs."""
        self._write(f"run.{index}", told)

    def begun(self, index: int) -> dict[str, Any]:
        """What was noted then, empty if it hasn't begun."""
        return self._read(f"run.{index}")

    def finish(self, index: int, end: End) -> None:
        """Note how an element ended."""
        self._write(f"end.{index}", asdict(end))

    def end(self, index: int) -> End | None:
        """How an element ended, None if it hasn't."""
        found = self._read(f"end.{index}")
        return End(**found) if found else None

    def ends(self) -> Iterator[tuple[int, End]]:
        """Elements that have ended, by index."""
        for path in self.directory.glob("end.*.json"):
            index = int(path.name.split(".")[1])
            if (end := self.end(index)) is not None:
                yield index, end

    def mark(self, what: str, index: int, text: str = "") -> None:
        """Set a mark, such as ``stop`` or ``kill``, on an element."""
        _replace(self.directory / f"{what}.{index}", text)

    def unmark(self, what: str, index: int) -> None:
        """Take it away."""
        (self.directory / f"{what}.{index}").unlink(missing_ok=True)

    def marked(self, what: str, index: int) -> str | None:
        """The text of a mark, None if it isn't set."""
        try:
            return (self.directory / f"{what}.{index}").read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write(self, name: str, document: dict[str, Any]) -> None:
        _replace(self.directory / f"{name}.json", json.dumps(document))

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.directory / f"{name}.json").read_text()))
        except (OSError, ValueError):
            return {}


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def all_records(root: Path = ROOT) -> list[Record]:
    """Every record, by number."""
    spool = root / "spool"
    names = [path.name for path in spool.iterdir()] if spool.is_dir() else []
    return [Record(number, root) for number in sorted(int(name) for name in names if name.isdecimal())]


def note_step(slurm_id: int, number: int, index: int, description: str, root: Path = ROOT) -> None:
    """Let the epilog of the Slurm job *slurm_id* know which job of LSF's that was, and where its description is."""
    _replace(root / "spool" / f"slurm.{slurm_id}.json", json.dumps([number, index, description]))


def step(slurm_id: int, root: Path = ROOT) -> tuple[int, int, str] | None:
    """What was noted, None if that was no job of LSF's."""
    try:
        number, index, description = json.loads((root / "spool" / f"slurm.{slurm_id}.json").read_text())
    except FileNotFoundError:
        return None
    return int(number), int(index), str(description)
