# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The jobs that the lab's LSF knows, from both ways in: ``bsub``, which is Slurm's, and ``lab.py submit``."""

from __future__ import annotations

import os
import pwd
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import LsfError, scheduler, spool, table
from .options import Options, array_of
from .report import End

WHICH = re.compile(r"(\d{1,18})(?:\[(\d{1,9}(?:-\d{1,9})?(?:,\d{1,9}(?:-\d{1,9})?)*)\])?")
UNFINISHED = ("PEND", "RUN", "PSUSP", "USUSP", "SSUSP")
CLEAN_PERIOD = 3600.0
"""Seconds for which a job is remembered after its end (LSF: CLEAN_PERIOD)."""


@dataclass(frozen=True)
class Seen:
    """A job, or an element of an array, as the commands show it.

    Attributes:
        number: its number.
        index: its index, 0 if it is no element.
        user: name of the owner.
        state: LSF's word.
        hosts: hosts and slots.
        queue: its queue.
        name: its name, with the index if it is an element.
        from_host: where it was submitted.
        submitted: when, in seconds since the epoch.
        began: when it began.
        end: how it ended.
        options: what was asked for, None for a job of ``lab.py submit``.
        told: what else bsub has noted.
        row: what Slurm says of it.
    """

    number: int
    index: int
    user: str
    state: str
    hosts: tuple[tuple[str, int], ...]
    queue: str
    name: str
    from_host: str
    submitted: float
    began: float | None
    end: End | None
    options: Options | None
    told: Mapping[str, Any]
    row: scheduler.Row | None

    @property
    def label(self) -> str:
        """The job for people: ``748``, ``19[3]``."""
        return f"{self.number}[{self.index}]" if self.index else str(self.number)

    @property
    def finished(self) -> bool:
        """Whether it is over."""
        return self.state not in UNFINISHED

    @property
    def parallel(self) -> bool:
        """Whether LSF stops it by a signal that can be caught: it has more than one slot, or is interactive."""
        return self.options is not None and (self.options.slots > 1 or bool(self.options.interactive))

    @property
    def record(self) -> spool.Record:
        """What is kept of it."""
        return spool.Record(self.number)

    def fields(self) -> dict[str, str]:
        """What ``bjobs -o`` can tell, by LSF's names of the fields."""
        seconds = 0.0 if self.began is None else (self.end.ended if self.end else time.time()) - self.began
        options = self.options
        return {
            "JOBID": str(self.number),
            "JOBINDEX": str(self.index),
            "STAT": self.state,
            "USER": self.user,
            "QUEUE": self.queue,
            "JOB_NAME": self.name,
            "FROM_HOST": self.from_host,
            "EXEC_HOST": table.exec_host(self.hosts),
            "FIRST_HOST": self.hosts[0][0] if self.hosts else "",
            "SLOTS": str(options.slots if options else sum(slots for _, slots in self.hosts)),
            "SUBMIT_TIME": moment(self.submitted),
            "START_TIME": moment(self.began),
            "FINISH_TIME": moment(self.end.ended if self.end else None),
            "RUN_TIME": f"{seconds:.0f} second(s)",
            "RUNTIMELIMIT": options.run_limit if options else "",
            "MEMLIMIT": options.memory_limit if options else "",
            "EXIT_CODE": str(self.end.status) if self.end and self.end.status else "",
            "EXIT_REASON": self.end.reason if self.end else "",
            "PROJ_NAME": options.project if options else "default",
            "SUB_CWD": self.told.get("directory", ""),
            "COMMAND": self.told.get("command", "") or self.name,
            "OUTPUT_FILE": (options.output or "") if options else "",
        }


def moment(seconds: float | None) -> str:
    """A time as the lists show it, empty for None."""
    return "" if seconds is None else time.strftime("%b %e %H:%M", time.localtime(seconds))


def _of_slurm(row: scheduler.Row) -> Seen | None:
    record = spool.Record(row.number)
    if not record.owned_by(row.uid) or not (told := record.told()):
        return None
    options, end, state = record.options(), record.end(row.index), str(row.state)
    if end is not None and (state not in UNFINISHED or row.state == "RUN"):
        state = "EXIT" if end.status else "DONE"
    elif state == "RUN" and record.marked("stop", row.index) is not None:
        state = "USUSP"
    return _seen(record, row.index, row.user, state, told, options, end, row)


def _of_the_past(record: spool.Record, index: int, end: End) -> Seen | None:
    told, options = record.told(), record.options()
    if not told:
        return None
    user = pwd.getpwuid(record.directory.lstat().st_uid).pw_name
    return _seen(record, index, user, "EXIT" if end.status else "DONE", told, options, end, None)


def _seen(
    record: spool.Record,
    index: int,
    user: str,
    state: str,
    told: Mapping[str, Any],
    options: Options | None,
    end: End | None,
    row: scheduler.Row | None,
) -> Seen:
    hosts = row.allocation(options) if row else ()
    if not hosts and end:
        hosts = tuple((str(host), int(slots)) for host, slots in record.begun(index).get("hosts", ()))
    array = array_of(options.job_name) if options and index else None
    name = (options.job_name if options else None) or told["command"] or "script"
    return Seen(
        number=record.number,
        index=index,
        user=user,
        state=state,
        hosts=hosts,
        queue=options.queue if options else "",
        name=f"{array.name}[{index}]" if array else name,
        from_host=told["submit_host"],
        submitted=told["stamp"],
        began=end.began if end else row.began if row else None,
        end=end,
        options=options,
        told=told,
        row=row,
    )


def _of_table(document: Mapping[str, Any]) -> Seen:
    pairs = (part.rpartition("*")[::2] for part in document["EXEC_HOST"].split(":"))
    return Seen(
        number=int(document["JOBID"]),
        index=int(document["JOBINDEX"]),
        user=document["USER"],
        state=document["STAT"],
        hosts=tuple((host, int(slots or 1)) for slots, host in ((a, b) for a, b in pairs)),
        queue=document.get("QUEUE", ""),
        name=document.get("JOB_NAME", ""),
        from_host=document.get("FROM_HOST", ""),
        submitted=float(document.get("SUBMITTED", document["BEGIN"])),
        began=float(document["BEGIN"]),
        end=None,
        options=None,
        told={},
        row=None,
    )


def front(number: int | None = None) -> list[Seen]:
    """The jobs of bsub, or those under one number; none if there are no records."""
    records = [each for each in spool.all_records() if number in (None, each.number)]
    if not records:
        return []
    rows = scheduler.rows(number)
    found = [seen for row in rows if (seen := _of_slurm(row))]
    known = {(row.number, row.index) for row in rows}
    for record in records:
        for index, end in record.ends():
            if (record.number, index) not in known and (past := _of_the_past(record, index, end)):
                found.append(past)
    return found


def everything() -> list[Seen]:
    """Every job of both ways in, by number and index."""
    found = [*front(), *(_of_table(each) for each in table.listed())]
    return sorted(found, key=lambda seen: (seen.number, seen.index))


def parse_label(label: str) -> tuple[int, set[int]]:
    """Number and indices of ``19`` or ``19[1-3,7]``; no index stands for all.

    Raises:
        LsfError: it is none of these.
    """
    match = WHICH.fullmatch(label)
    if not match:
        raise LsfError(f"{label}: Illegal job ID.")
    indices: set[int] = set()
    for part in match[2].split(",") if match[2] else ():
        first, _, last = part.partition("-")
        indices |= set(range(int(first), min(int(last or first), int(first) + 1000) + 1))
    return int(match[1]), indices


def named(label: str) -> list[Seen]:
    """The jobs that a label names; none if there is no such job."""
    number, indices = parse_label(label)
    found = front(number) or [each for each in map(_of_table, table.listed()) if each.number == number]
    return sorted(
        (each for each in found if not indices or each.index in indices), key=lambda seen: seen.index
    )


def me() -> str:
    """Name of who runs this."""
    return pwd.getpwuid(os.getuid()).pw_name


def command(main: Callable[[Sequence[str]], int], name: str) -> int:
    """Run a command of LSF's; what is wrong is one line, and exit status 255."""
    try:
        return main(sys.argv[1:])
    except LsfError as error:
        print(f"{name}: {error}" if not str(error)[:1].isupper() else error, file=sys.stderr)
        return 255
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
