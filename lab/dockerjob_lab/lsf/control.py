# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``bkill``, ``bstop`` and ``bresume``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from . import LsfError, scheduler, view
from .report import End


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LsfError(message)


def signal_name(text: str) -> str:
    """Name, without SIG, of a signal given as ``TERM``, ``SIGTERM`` or ``15``.

    Raises:
        LsfError: there is no such signal.
    """
    name = text.upper().removeprefix("SIG")
    by_number = {str(int(each)): each.name.removeprefix("SIG") for each in signal.Signals}
    if f"SIG{name}" in signal.Signals.__members__:
        return name
    if text in by_number:
        return by_number[text]
    raise LsfError(f"{text}: Illegal signal value")


def _administrator() -> bool:
    return os.getuid() == 0


def kill(seen: view.Seen, *, force: bool) -> str:
    """Have a job ended as its queue says, or at once; return what is told."""
    who = "ADMIN" if _administrator() else "OWNER"
    reason = f"TERM_FORCE_{who}" if force else f"TERM_{who}"
    if seen.row is None:
        raise LsfError(f"Job <{seen.label}>: it is lab.py's; use lab.py kill")
    if seen.state in ("PEND", "PSUSP"):
        scheduler.run("scancel", seen.row.name)
        now = time.time()
        seen.record.finish(seen.index, End(130, now, now, reason))
        return "is being terminated"
    seen.record.mark("kill", seen.index, reason)
    # Its keeper reads the mark; with a job of one slot that keeper may stand still, too.
    if seen.state != "RUN" and not seen.parallel:
        scheduler.send(seen.row, "CONT")
    return "is being terminated"


def send(seen: view.Seen, name: str) -> str:
    """Send a signal, once, to all processes of a job; return what is told."""
    if seen.row is None:
        raise LsfError(f"Job <{seen.label}>: it is lab.py's; use lab.py kill")
    if seen.state in ("PEND", "PSUSP"):
        if name in ("KILL", "TERM", "INT"):
            return kill(seen, force=False)
        raise LsfError(f"Job <{seen.label}>: Job has not started yet")
    if name == "KILL":
        kill(seen, force=True)
    else:
        scheduler.send(seen.row, name)
    return "is being signaled"


def stop(seen: view.Seen) -> str:
    """Suspend a job; a parallel one can catch the signal, and LSF takes it for stopped."""
    if seen.row is None:
        raise LsfError(f"Job <{seen.label}>: it is lab.py's; use lab.py kill -s TSTP")
    if seen.state == "PEND":
        scheduler.run("scontrol", "hold", seen.row.name)
    else:
        seen.record.mark("stop", seen.index)
        scheduler.send(seen.row, "TSTP" if seen.parallel else "STOP")
    return "is being stopped"


def resume(seen: view.Seen) -> str:
    """Let a job go on."""
    if seen.row is None:
        raise LsfError(f"Job <{seen.label}>: it is lab.py's; use lab.py kill -s CONT")
    if seen.state in ("PEND", "PSUSP"):
        scheduler.run("scontrol", "release", seen.row.name)
    else:
        seen.record.unmark("stop", seen.index)
        scheduler.send(seen.row, "CONT")
    return "is being resumed"


def _each(labels: Sequence[str], act: Callable[[view.Seen], str]) -> int:
    """Do it to each job that is named, ``0`` for all of one's own; exit status 255 if it can't be done to one."""
    status = 0
    for label in labels:
        found = (
            [each for each in view.front() if each.user == view.me() and not each.finished]
            if label == "0"
            else view.named(label)
        )
        if not found:
            print(
                "No unfinished job found" if label == "0" else f"Job <{label}>: No matching job found",
                file=sys.stderr,
            )
            status = 255
        for seen in found:
            try:
                print(f"Job <{seen.label}> {_allowed(seen, act)}", flush=True)
            except LsfError as error:
                print(error, file=sys.stderr)
                status = 255
    return status


def _allowed(seen: view.Seen, act: Callable[[view.Seen], str]) -> str:
    if seen.user != view.me() and not _administrator():
        raise LsfError(f"Job <{seen.label}>: User permission denied")
    if seen.finished:
        raise LsfError(f"Job <{seen.label}>: Job has already finished")
    return act(seen)


def _bkill(argv: Sequence[str]) -> int:
    parser = _Parser(prog="bkill", allow_abbrev=False)
    parser.add_argument("-s", dest="signal", help="send only this signal")
    parser.add_argument("-r", dest="force", action="store_true", help="SIGKILL at once")
    parser.add_argument("jobs", nargs="+", metavar="JOB", help="0: all of one's own")
    arguments = parser.parse_args(argv)
    if arguments.signal:
        name = signal_name(arguments.signal)
        return _each(arguments.jobs, lambda seen: send(seen, name))
    return _each(arguments.jobs, lambda seen: kill(seen, force=arguments.force))


def _simple(name: str, act: Callable[[view.Seen], str]) -> Callable[[Sequence[str]], int]:
    def run(argv: Sequence[str]) -> int:
        parser = _Parser(prog=name, allow_abbrev=False)
        parser.add_argument("jobs", nargs="+", metavar="JOB", help="0: all of one's own")
        return _each(parser.parse_args(argv).jobs, act)

    return run


def bkill() -> int:
    """End jobs, or send them a signal."""
    return view.command(_bkill, "bkill")


def bstop() -> int:
    """Suspend jobs."""
    return view.command(_simple("bstop", stop), "bstop")


def bresume() -> int:
    """Let suspended jobs go on."""
    return view.command(_simple("bresume", resume), "bresume")
