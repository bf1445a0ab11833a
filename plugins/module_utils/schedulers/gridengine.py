# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Grid Engine.

Variables, ``pe_hostfile`` and the answers of ``qstat`` were recorded with version 8.1.9.

The proof takes three answers of ``qstat -xml``, since none has all: of ``-j`` the owner, of ``-g t``
the hosts, one row per slot, and of the plain list the number of slots.  That number tells whether the
master's own row stands for a slot: it does not in a parallel environment with ``job_is_first_task
FALSE``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..allocation import HOST_NAME, Allocation, HostSlots, merge_hosts
from ..errors import RequestError
from .base import (
    Answer,
    BatchRecord,
    BatchSystem,
    Environment,
    Phase,
    ReadFile,
    array_index,
    bytes_of,
    is_number,
    no_answer,
    parse_xml,
    read_named_file,
    seconds_of,
    whole_number,
)

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NO_ARRAY = ("", "undefined")
_COLUMNS = 4


def read(environment: Environment, read_file: ReadFile) -> Allocation:
    """Read the allocation from the environment of a Grid Engine job.

    A job in a parallel environment has ``PE_HOSTFILE``, with a line per queue instance: host, slots,
    queue, processors.  Any other job has one slot, on ``HOSTNAME``.

    Raises:
        RequestError: a variable is missing or malformed, or two of them contradict.
    """
    hosts, source = _hosts(environment, read_file)
    for variable, given in (("NSLOTS", sum(host.slots for host in hosts)), ("NHOSTS", len(hosts))):
        told = environment.get(variable, "")
        if told and whole_number(variable, told) != given:
            raise RequestError(f"{variable} is {told}, but {source} gives {given}")
    task = environment.get("SGE_TASK_ID", "")
    return Allocation(
        scheduler="gridengine",
        number=whole_number("JOB_ID", environment.get("JOB_ID", "")),
        array_index=None if task in NO_ARRAY else array_index("SGE_TASK_ID", task, least=1),
        hosts=hosts,
        name=environment.get("JOB_NAME", ""),
    )


def _hosts(environment: Environment, read_file: ReadFile) -> tuple[tuple[HostSlots, ...], str]:
    path = environment.get("PE_HOSTFILE", "")
    if path:
        lines = read_named_file("PE_HOSTFILE", path, read_file)
        rows = [line.split() for line in lines if line.strip()]
        if any(len(row) != _COLUMNS for row in rows):
            raise RequestError(f"PE_HOSTFILE {path} has lines that are not 'host slots queue processors'")
        pairs = ((row[0], whole_number("PE_HOSTFILE", row[1])) for row in rows)
        return merge_hosts(pairs, "PE_HOSTFILE"), "PE_HOSTFILE"
    if environment.get("PE"):
        raise RequestError("PE is set, but PE_HOSTFILE is not; is this running inside a Grid Engine job?")
    if not environment.get("HOSTNAME"):
        raise RequestError(
            "neither PE_HOSTFILE nor HOSTNAME is set; is this running inside a Grid Engine job?"
        )
    return merge_hosts([(environment["HOSTNAME"], 1)], "HOSTNAME"), "a job without PE_HOSTFILE"


def label(allocation: Allocation) -> str:
    """Name the job as Grid Engine does: ``8``, ``9.2``."""
    index = allocation.array_index
    return str(allocation.number) if index is None else f"{allocation.number}.{index}"


def questions(allocation: Allocation, user: str, settings: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Ask for the job itself, and for the slots of all jobs of who claims it, row by row and in sum."""
    qstat = settings["qstat"]
    return (
        (qstat, "-xml", "-j", str(allocation.number)),
        (qstat, "-xml", "-u", user, "-g", "t"),
        (qstat, "-xml", "-u", user),
    )


def record(answers: Sequence[Answer], allocation: Allocation) -> BatchRecord | None:
    """Read owner, state and hosts out of the three answers.

    Of a job that is none, ``-j`` says ``unknown_jobs`` and ends with 0; older versions write that in a
    form that is no XML.

    Raises:
        BatchError: one of them holds no answer, or they don't fit together.
    """
    job, per_slot, in_sum = answers
    if "<unknown_jobs" in job.stdout and "<djob_info" not in job.stdout:
        return None
    try:
        details = _only(_only(parse_xml(job.stdout), "djob_info"), "element")
        if _field(details, "JB_job_number") != str(allocation.number):
            raise ValueError("another job")
        rows = _rows(parse_xml(per_slot.stdout), allocation)
        sums = _rows(parse_xml(in_sum.stdout), allocation)
        uid = _field(details, "JB_uid")
        if not is_number(uid):
            raise ValueError("no uid")
        state = _field(sums[0], "state") if sums else ""
        phase = phase_of(state)
        return BatchRecord(
            state=state,
            phase=phase,
            hosts=_slots(rows, sums) if phase in ("running", "suspended", "held") else {},
            user=_field(details, "JB_owner"),
            uid=int(uid),
            run_limit=seconds_of(_request(details, "h_rt")),
            # sge_queue_attributes(5): of each process, and h_vmem besides of the job's sum, which is per slot.
            memory_limit=bytes_of(_request(details, "h_vmem")),
            memory_per="slot",
        )
    except ValueError as error:
        said = f"{error}: {job.stdout}{job.stderr}"
        raise no_answer("Grid Engine", label(allocation), "qstat", said) from error


def _only(parent: Element, tag: str) -> Element:
    found = parent.findall(tag)
    if len(found) != 1:
        raise ValueError(f"{len(found)} elements {tag}")
    return found[0]


def _field(parent: Element, tag: str) -> str:
    return (_only(parent, tag).text or "").strip()


def _rows(root: Element, allocation: Allocation) -> list[Element]:
    """Return the rows of the job, of its one element if it is in an array."""
    index = "" if allocation.array_index is None else str(allocation.array_index)
    return [
        row
        for row in root.iter("job_list")
        if _field(row, "JB_job_number") == str(allocation.number)
        and (row.findtext("tasks") or "").strip() == index
    ]


def phase_of(state: str) -> Phase:
    """Tell what a state means; its letters are in qstat(1): ``r``, ``t``, ``Rr``, ``s``, ``dr``, ``qw``."""
    letters = set(state)
    if not letters or letters - set("rRthdsSTNqw") or {"q", "w"} & letters:
        return "waiting" if state == "qw" else "none"
    if "d" in letters:
        return "held"
    if letters & set("sSTN"):
        return "suspended"
    return "running" if "r" in letters else "waiting"


def _slots(rows: Sequence[Element], sums: Sequence[Element]) -> Mapping[str, int]:
    if len(sums) != 1 or not is_number(_field(sums[0], "slots")):
        raise ValueError("no sum of the slots")
    total = int(_field(sums[0], "slots"))
    by_role: dict[str, Counter[str]] = {"MASTER": Counter(), "SLAVE": Counter()}
    for row in rows:
        role, host = _field(row, "master"), _field(row, "queue_name").rpartition("@")[2]
        if role not in by_role or not HOST_NAME.fullmatch(host):
            raise ValueError(f"{role[:20]} on {host[:80]!r}")
        by_role[role][host] += 1
    if by_role["MASTER"].total() != 1:
        raise ValueError(f"{by_role['MASTER'].total()} masters")
    slaves = by_role["SLAVE"]
    if slaves.total() == total:
        return slaves
    if slaves.total() + 1 == total:
        return slaves + by_role["MASTER"]
    raise ValueError(f"{slaves.total()} rows for {total} slots")


def _request(details: Element, name: str) -> str:
    """Return the hard limit *name* that the job asked for, or nothing; the queue's own is not in the answer."""
    for request in details.iter("qstat_l_requests"):
        if request.findtext("CE_name") == name:
            return request.findtext("CE_stringval") or ""
    return ""


def command_environment(allocation: Allocation) -> Mapping[str, str]:
    """Return the variables that say which job this is; they name no host, so MPI does not go by them."""
    index = allocation.array_index
    return {
        "JOB_ID": str(allocation.number),
        "SGE_TASK_ID": "undefined" if index is None else str(index),
        "NSLOTS": str(allocation.slots),
    }


SYSTEM = BatchSystem(
    name="gridengine",
    title="Grid Engine",
    marker="SGE_TASK_ID",
    variables=(
        "JOB_ID",
        "JOB_NAME",
        "SGE_TASK_ID",
        "PE",
        "PE_HOSTFILE",
        "HOSTNAME",
        "NSLOTS",
        "NHOSTS",
    ),
    hosts_from="PE_HOSTFILE, HOSTNAME",
    read=read,
    label=label,
    programs=("qstat",),
    questions=questions,
    record=record,
    signals={
        "qdel": ("SIGKILL",),
        "qdel, job with -notify": ("SIGUSR2", "SIGKILL"),
        "qmod -sj": ("SIGSTOP",),
        "qmod -sj, job with -notify": ("SIGUSR1", "SIGSTOP"),
        "qmod -usj": ("SIGCONT",),
        "s_rt": ("SIGUSR1",),
        "h_rt": ("SIGKILL",),
    },
    statuses={
        99: "Grid Engine takes this status for the wish to run the job again",
        100: "Grid Engine takes this status for an error, and keeps the job in the state Eqw",
    },
    command_environment=command_environment,
    array_variables=("SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
)
