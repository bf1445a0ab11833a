# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job took and how it ended: lines for the user, a record for the site's log."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .usage import total, used

Phase = Literal["prepare", "pull", "start", "discovery", "compute", "teardown"]


@dataclasses.dataclass
class Report:
    """Collected while the job runs; times are seconds."""

    job_id: str
    user: str
    application: str
    hosts: list[str]
    image: str = ""
    network: str = ""
    phases: dict[str, float] = dataclasses.field(default_factory=dict)
    status: int | None = None
    error: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    suspended: float = 0.0
    run_limit: int | None = None
    memory_limit: int | None = None
    leftovers: list[str] = dataclasses.field(default_factory=list)
    limits: dict[str, Any] = dataclasses.field(default_factory=dict)
    usage: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    hosts_detail: dict[str, Any] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Measure a phase; one that is entered again goes on."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - begin

    def lines(self) -> list[str]:
        """Return the report for the user."""
        total = sum(self.phases.values())
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.phases.items())
        lines = [
            f"job {self.job_id}: exit status {self.status}",
            f"  application  {self.application}  {self.image}",
            f"  hosts        {', '.join(self.hosts)}",
            f"  network      {self.network or 'none'}",
            f"  time         {total:.2f} s: {phases}",
        ]
        if self.suspended:
            lines.append(f"  suspended    {self.suspended:.2f} s, in compute")
        if self.usage:
            lines.append(f"  used         {used(self.total)}")
        lines += [f"  note         {note}" for note in self.notes]
        lines += [f"  left behind  {leftover}" for leftover in self.leftovers]
        return lines

    @property
    def total(self) -> dict[str, Any]:
        """What the job has used on all hosts, of memory the most on one of them; None where a host doesn't know."""
        return total(list(self.usage.values()))

    def summary(self) -> str:
        """Return the report in one line, for the batch system; nothing of it is a user's."""
        compute = self.phases.get("compute", 0.0) - self.suspended
        times = f"compute {compute:.0f} s, suspended {self.suspended:.0f} s"
        return f"dockerjob: exit status {self.status}, {times}, {used(self.total)}"

    def append_to(self, path: Path) -> None:
        """Add the report as one JSON line to the site's log."""
        record = {"time": datetime.now(UTC).isoformat(), **dataclasses.asdict(self), "total": self.total}
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
