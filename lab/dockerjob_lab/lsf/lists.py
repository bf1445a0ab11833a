# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``bhosts``, ``bqueues`` and ``lshosts``: the cluster as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from . import LsfError, queues, scheduler, view

SUSPENDED = ("USUSP", "SSUSP", "PSUSP")
UP = ("idle", "mixed", "allocated", "completing", "planned")


def _nodes() -> list[tuple[str, str, int, int]]:
    """Name, state, CPUs and MB of memory of each host."""
    lines = scheduler.run("sinfo", "--noheader", "--Node", "--format=%N|%T|%c|%m").splitlines()
    found = (line.split("|") for line in sorted(set(lines)))
    return [
        (name, state.rstrip("*~#!%$@^-"), int(cpus), int(memory.rstrip("+")))
        for name, state, cpus, memory in found
    ]


def host_rows(nodes: Sequence[tuple[str, str, int, int]], jobs: Sequence[view.Seen]) -> list[str]:
    """The table of bhosts."""
    used: Counter[tuple[str, str]] = Counter()
    for seen in jobs:
        for host, slots in seen.hosts if not seen.finished else ():
            used[host, seen.state] += slots
    lines = [
        f"{'HOST_NAME':<18} {'STATUS':<12}{'JL/U':>5}{'MAX':>7}{'NJOBS':>7}{'RUN':>7}{'SSUSP':>7}{'USUSP':>7}{'RSV':>7}"
    ]
    for name, state, cpus, _ in nodes:
        run, system, user = (used[name, word] for word in ("RUN", "SSUSP", "USUSP"))
        status = "unavail" if state not in UP else "closed" if run + system + user >= cpus else "ok"
        lines.append(
            f"{name:<18} {status:<12}{'-':>5}{cpus:>7}{run + system + user:>7}{run:>7}{system:>7}{user:>7}{0:>7}"
        )
    return lines


def queue_rows(jobs: Sequence[view.Seen]) -> list[str]:
    """The table of bqueues; LSF counts slots."""
    header = "QUEUE_NAME      PRIO STATUS          MAX JL/U JL/P JL/H NJOBS  PEND   RUN  SUSP"
    lines = [header]
    for name, priority in queues.PRIORITIES.items():
        slots: Counter[str] = Counter()
        for seen in jobs:
            if seen.queue == name and not seen.finished:
                slots["SUSP" if seen.state in SUSPENDED else seen.state] += int(seen.fields()["SLOTS"])
        counts = "".join(
            f"{count:>6}" for count in (sum(slots.values()), slots["PEND"], slots["RUN"], slots["SUSP"])
        )
        lines.append(f"{name:<15} {priority:>4} {'Open:Active':<15}{'-':>4}{'-':>5}{'-':>5}{'-':>5}{counts}")
    return lines


def load_rows(nodes: Sequence[tuple[str, str, int, int]]) -> list[str]:
    """The table of lshosts."""
    lines = [
        f"{'HOST_NAME':<15}{'type':>8}{'model':>9}{'cpuf':>6}{'ncpus':>6}{'maxmem':>8}{'maxswp':>8}"
        f" {'server':<6} RESOURCES"
    ]
    for name, _, cpus, memory in nodes:
        lines.append(
            f"{name:<15}{'LINUX':>8}{'lab':>9}{1.0:>6}{cpus:>6}{f'{memory}M':>8}{'-':>8} {'Yes':<6} ()"
        )
    return lines


def _show(name: str, rows: Sequence[str], wanted: Sequence[str]) -> int:
    if unknown := [each for each in wanted if each not in {row.split()[0] for row in rows[1:]}]:
        raise LsfError(f"{unknown[0]}: No such {'queue' if name == 'bqueues' else 'host'}")
    print("\n".join([rows[0], *(row for row in rows[1:] if not wanted or row.split()[0] in wanted)]))
    return 0


def _names(argv: Sequence[str]) -> Sequence[str]:
    if options := [each for each in argv if each.startswith("-") and each != "-w"]:
        raise LsfError(f"{options[0]}: unknown option; only -w and names are known here")
    return [each for each in argv if each != "-w"]


def bhosts() -> int:
    """Show hosts and their slots."""
    return view.command(
        lambda argv: _show("bhosts", host_rows(_nodes(), view.everything()), _names(argv)), "bhosts"
    )


def bqueues() -> int:
    """Show queues."""
    return view.command(lambda argv: _show("bqueues", queue_rows(view.everything()), _names(argv)), "bqueues")


def lshosts() -> int:
    """Show what hosts are."""
    return view.command(lambda argv: _show("lshosts", load_rows(_nodes()), _names(argv)), "lshosts")
