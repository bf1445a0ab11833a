# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slurm.

The forms of the variables were recorded with Slurm 22.05; the grammar of host lists is that of its
``scontrol show hostnames``, which however ends with 0 on what it can't read, so they are read here.

The proof is what ``squeue`` says in fields that hold no text of a user's.  ``scontrol show job`` is no
proof: a job's name may hold lines, and is printed before the owner.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from ..allocation import Allocation, HostSlots, merge_hosts
from ..errors import BatchError, RequestError
from .base import (
    MOST_HOSTS,
    Answer,
    BatchRecord,
    BatchSystem,
    Environment,
    MemoryPer,
    Phase,
    ReadFile,
    bytes_of,
    is_number,
    no_answer,
    seconds_of,
    whole_number,
)

FORMAT = "%A|%U|%T|%D|%C|%l|%N"
"""Job id, numeric uid, state, nodes, CPUs, time limit, node list: all of them Slurm's own."""

LIMITED_FORMAT = f"{FORMAT}|%M|%m"
"""Besides, where the site says so: the time used, and the memory asked for, of a node or of a CPU."""

ALLOCATED = "tres-alloc:1024"
"""What is allocated in all, ``cpu=6,mem=6000M,node=2,billing=6``: this tells what the memory is for."""

PHASES: Mapping[str, Phase] = {
    "PENDING": "waiting",
    "CONFIGURING": "waiting",
    "RUNNING": "running",
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "SIGNALING": "held",
    "RESIZING": "held",
}

_PART = r"([A-Za-z0-9._-]*)(?:\[([0-9,-]+)\])?"
_RANGE = r"([0-9]{1,9})(?:-([0-9]{1,9}))?"
_COUNT = r"([0-9]{1,9})(?:\(x([0-9]{1,5})\))?"
_MOST_BRACKETS = 2


def read(environment: Environment, read_file: ReadFile) -> Allocation:
    """Read the allocation from the environment of a Slurm job.

    Hosts come from ``SLURM_JOB_NODELIST``, else ``SLURM_NODELIST``; slots from
    ``SLURM_TASKS_PER_NODE``, else (``-m arbitrary`` leaves it out) from ``SLURM_JOB_CPUS_PER_NODE``.
    Each task of an array has a number of its own, ``SLURM_JOB_ID``, which is the one used:
    ``SLURM_ARRAY_*`` also get into jobs that a task of an array submits.

    Raises:
        RequestError: a variable is missing or malformed, or two of them contradict.
    """
    number = whole_number("SLURM_JOB_ID", environment.get("SLURM_JOB_ID", ""))
    source = next((name for name in ("SLURM_JOB_NODELIST", "SLURM_NODELIST") if environment.get(name)), None)
    if source is None:
        raise RequestError("SLURM_JOB_NODELIST is not set; is this running inside a Slurm job?")
    try:
        names = expand(environment[source].strip())
    except ValueError as error:
        raise RequestError(f"{source} is {environment[source][:80]!r}: {error}") from error
    told = environment.get("SLURM_JOB_NUM_NODES", "")
    if told and whole_number("SLURM_JOB_NUM_NODES", told) != len(names):
        raise RequestError(f"SLURM_JOB_NUM_NODES is {told}, but {source} names {len(names)} hosts")
    hosts = _slots(environment, names, source)
    return Allocation("slurm", number, None, hosts, environment.get("SLURM_JOB_NAME", ""))


def _slots(environment: Environment, names: Sequence[str], source: str) -> tuple[HostSlots, ...]:
    tasks = _counts(environment, "SLURM_TASKS_PER_NODE", len(names), source)
    cpus = _counts(environment, "SLURM_JOB_CPUS_PER_NODE", len(names), source)
    if tasks and cpus:
        if environment.get("SLURM_OVERCOMMIT"):
            tasks = [min(pair) for pair in zip(tasks, cpus, strict=True)]
        for name, task_count, cpu_count in zip(names, tasks, cpus, strict=True):
            if task_count > cpu_count:
                raise RequestError(
                    f"SLURM_TASKS_PER_NODE gives {name} {task_count} tasks,"
                    f" SLURM_JOB_CPUS_PER_NODE {cpu_count} CPUs"
                )
    if not (tasks or cpus):
        raise RequestError("neither SLURM_TASKS_PER_NODE nor SLURM_JOB_CPUS_PER_NODE is set")
    return merge_hosts(zip(names, tasks or cpus, strict=True), source)


def _counts(environment: Environment, variable: str, hosts: int, source: str) -> list[int]:
    text = environment.get(variable, "").strip()
    if not text:
        return []
    try:
        counts = expand_counts(text)
    except ValueError as error:
        raise RequestError(f"{variable} is {text[:80]!r}: {error}") from error
    if len(counts) != hosts:
        raise RequestError(
            f"{variable} is for {len(counts)} hosts, but {source} names {hosts};"
            " call hpc_submit_dockerjob from the batch script itself, not by srun"
        )
    return counts


def expand_counts(text: str) -> list[int]:
    """Read Slurm's run-length form, ``4,3`` or ``2,1(x2)``: one number per host, in the list's order.

    Raises:
        ValueError: it has another form, or too many numbers.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(_COUNT, part)
        if not match or int(match[1]) < 1 or int(match[2] or 1) < 1:
            raise ValueError(f"{part[:40]!r} is no count such as 2 or 2(x3)")
        repeat = int(match[2] or 1)
        if len(counts) + repeat > MOST_HOSTS:
            raise ValueError(f"it has more than {MOST_HOSTS} numbers")
        counts += [int(match[1])] * repeat
    return counts


def expand(text: str) -> list[str]:
    """Read a host list, ``n[1-3,7],login1``, as Slurm does, and refuse what Slurm calls invalid or guesses at.

    The width of a range's numbers is that of its low end: ``n[08-11]`` begins with n08, ``n[8-011]``
    with n8.  An expression may have two brackets, and no text after the last.

    Raises:
        ValueError: it has another form, names a host twice, or stands for too many hosts.
    """
    names: list[str] = []
    for expression in _expressions(text):
        names += _expand_one(expression, MOST_HOSTS - len(names))
    if len(set(names)) != len(names):
        raise ValueError("it names a host twice")
    return names


def _expressions(text: str) -> Iterator[str]:
    """Split at the commas that are in no bracket."""
    begin = depth = 0
    for place, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            raise ValueError("its brackets don't match")
        if character == "," and not depth:
            yield text[begin:place]
            begin = place + 1
    if depth:
        raise ValueError("its brackets don't match")
    yield text[begin:]


def _expand_one(expression: str, most: int) -> list[str]:
    pattern = re.compile(_PART)
    parts: list[list[str]] = []
    count, brackets, place = 1, 0, 0
    while place < len(expression):
        match = pattern.match(expression, place)
        if not match or match.end() == place:
            raise ValueError(f"{expression[:40]!r} is no host, nor hosts such as n[1-3]")
        if match[2] is None and parts:
            raise ValueError(f"{expression[:40]!r} has text after its last bracket")
        parts.append([match[1]])
        if match[2] is not None:
            brackets += 1
            parts.append(_numbers(match[2], most // count))
            count *= len(parts[-1])
        place = match.end()
    if not parts or brackets > _MOST_BRACKETS or count > most:
        raise ValueError(f"{expression[:40]!r} is empty, has more than two brackets, or too many hosts")
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def _numbers(text: str, most: int) -> list[str]:
    numbers: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(_RANGE, part)
        if not match:
            raise ValueError(f"{part[:40]!r} is no number and no range")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise ValueError(f"the range {part} runs backwards")
        if len(numbers) + high - low + 1 > most:
            raise ValueError(f"it stands for more than {MOST_HOSTS} hosts")
        width = len(match[1])
        numbers += [f"{number:0{width}d}" for number in range(low, high + 1)]
    return numbers


def label(allocation: Allocation) -> str:
    """Name the job as Slurm does."""
    return str(allocation.number)


def questions(allocation: Allocation, user: str, settings: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Ask for the job in whatever state, without a header and with plain numbers."""

    def squeue(option: str, fields: str) -> tuple[str, ...]:
        which = ("-j", str(allocation.number))
        return (settings["squeue"], "-h", "--noconvert", "-t", "all", option, fields, *which)

    if settings.get("limits") == "ask":
        return squeue("-o", LIMITED_FORMAT), squeue("-O", ALLOCATED)
    return (squeue("-o", FORMAT),)


def record(answers: Sequence[Answer], allocation: Allocation) -> BatchRecord | None:
    """Read the line of ``squeue``.

    Asked for the number of an array, it prints a line per task of it; the one with this number as its
    own is the job.

    Raises:
        BatchError: the output holds no answer.
    """
    answer, *more = answers
    columns = (LIMITED_FORMAT if more else FORMAT).count("|") + 1
    if answer.status and "Invalid job id specified" in answer.stderr:
        return None
    rows = [line.split("|") for line in answer.stdout.splitlines() if line.strip()]
    if answer.status or any(len(row) != columns for row in rows):
        raise _no_answer(answer, allocation)
    mine = [row for row in rows if row[0] == str(allocation.number)]
    if not mine:
        return None
    if len(mine) > 1 or not all(is_number(mine[0][column]) for column in (1, 3, 4)):
        raise _no_answer(answer, allocation)
    _, uid, state, nodes, cpus, limit, node_list, *used = mine[0]
    memory, per = _memory(used[1], more[0].stdout, int(nodes), int(cpus)) if used else (None, "job")
    return BatchRecord(
        state=state,
        phase=PHASES.get(state, "none"),
        hosts=dict.fromkeys(_hosts(node_list, int(nodes))),
        uid=int(uid),
        total=int(cpus),
        counted="cpus",
        run_limit=run_limit_of(limit),
        run_time=seconds_of(used[0]) or 0 if used else 0,
        memory_limit=memory,
        memory_per=per,
    )


def _memory(asked: str, allocated: str, nodes: int, cpus: int) -> tuple[int | None, MemoryPer]:
    """Return the memory limit, and what it is for: squeue's ``%m`` is that of ``--mem`` or of ``--mem-per-cpu``.

    Which of them tells the sum.  Who asked for none has all memory of his nodes (seen with 22.05, and
    ``CR_Core_Memory``), and nobody else has any there.  Where an array's other tasks are in the answer too,
    nothing is known.
    """
    rows = allocated.split()
    found = re.search(r"(?:^|,)mem=([0-9.]+[KMGTP]?)(?:,|$)", rows[0]) if len(rows) == 1 else None
    total, each = bytes_of(found[1]) if found else None, bytes_of(asked)
    if not total or not each:
        return None, "job"
    if each * nodes == total:
        return each, "host"
    if each * cpus == total:
        return each, "cpu"
    return total, "job"


def _no_answer(answer: Answer, allocation: Allocation) -> BatchError:
    return no_answer("Slurm", label(allocation), "squeue", answer.stdout + answer.stderr)


def _hosts(node_list: str, count: int) -> list[str]:
    if not node_list:
        return []
    try:
        names = expand(node_list)
    except ValueError as error:
        raise BatchError(f"squeue gave the nodes {node_list[:200]!r}: {error}") from error
    if len(names) != count:
        raise BatchError(f"squeue gave {count} nodes, and the names of {len(names)}: {node_list[:200]!r}")
    return names


def cgroups(allocation: Allocation, uid: int) -> tuple[str, ...]:
    """In cgroup v1, and in v2 (src/plugins/cgroup of Slurm 22.05); Debian's has the node's name in it."""
    return (
        f"slurm*/uid_{uid:d}/job_{allocation.number:d}",
        f"system.slice/*slurmstepd.scope/job_{allocation.number:d}",
    )


def message(allocation: Allocation, text: str, settings: Mapping[str, str]) -> tuple[str, ...]:
    """Make *text* the job's comment of the administrator's, which ``sacct`` keeps; ``Comment`` is the user's."""
    return (settings["scontrol"], "update", f"JobId={allocation.number}", f"AdminComment={text}")


def run_limit_of(text: str) -> int | None:
    """Seconds of ``%l``, which has at least minutes and seconds; None for ``UNLIMITED`` and the like."""
    return seconds_of(text) if ":" in text else None


SYSTEM = BatchSystem(
    name="slurm",
    title="Slurm",
    marker="SLURM_JOB_ID",
    variables=(
        "SLURM_JOB_ID",
        "SLURM_JOB_NAME",
        "SLURM_JOB_NODELIST",
        "SLURM_NODELIST",
        "SLURM_JOB_NUM_NODES",
        "SLURM_TASKS_PER_NODE",
        "SLURM_JOB_CPUS_PER_NODE",
        "SLURM_OVERCOMMIT",
    ),
    hosts_from="SLURM_JOB_NODELIST, SLURM_TASKS_PER_NODE, SLURM_JOB_CPUS_PER_NODE",
    read=read,
    label=label,
    programs=("squeue",),
    options={"limits": ("skip", "ask")},
    questions=questions,
    record=record,
    signals={
        "scancel": ("SIGCONT", "SIGTERM", "SIGKILL"),
        "time limit": ("SIGCONT", "SIGTERM", "SIGKILL"),
        "scontrol suspend": ("SIGTSTP", "SIGSTOP"),
        "scontrol resume": ("SIGCONT",),
    },
    cgroups=cgroups,
    # It looks once a minute, and KillWait comes after that.
    overtime=120,
    messenger="scontrol",
    message=message,
)
