# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LSF.

The forms of the variables are those of IBM's "Environment variables set for job execution"
and of recorded jobs: ``LSB_HOSTS`` names a host once per slot and is left out when it would
reach 4096 characters; ``LSB_MCPU_HOSTS`` is always complete, ends in a blank, and may name a
host twice; their orders may differ, as multisets they agree.  ``LSB_AFFINITY_HOSTFILE`` and
``LSB_BIND_CPU_LIST`` are not read: they are about processes that LSF starts on the host.

The proof is what ``bjobs`` says.  Only fields that LSF itself fills in are asked for; a job's
name or command is the user's text and could imitate anything.  Facts are from IBM's
documentation of bjobs (LSF 10.1) and from recorded answers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..allocation import Allocation, HostSlots, merge_hosts
from ..errors import BatchError, RequestError
from .base import (
    Answer,
    BatchRecord,
    BatchSystem,
    Environment,
    Phase,
    ReadFile,
    array_index,
    bracketed_label,
    bytes_of,
    hosts_per_line,
    no_answer,
    read_named_file,
    seconds_of,
    whole_number,
)

FIELDS = "jobid jobindex stat user exec_host"
LIMITS = "runtimelimit run_time memlimit"
"""Not in the question unless the site says so: an LSF that doesn't know a field answers nothing at all."""

PHASES: Mapping[str, Phase] = {
    "PEND": "waiting",
    "RUN": "running",
    "USUSP": "suspended",
    "SSUSP": "suspended",
    "UNKWN": "held",  # LSF has lost touch with one of the job's hosts
}

MOST_MESSAGE = 511
"""bpost(1): the text may have 512 characters."""

_EXEC_HOST = r"(?:([1-9][0-9]{0,5})\*)?([A-Za-z0-9][A-Za-z0-9._-]{0,252})"
_FULL_ID = r"([1-9][0-9]{0,17})(?:\[([0-9]{1,9})\])?"


def read(environment: Environment, read_file: ReadFile) -> Allocation:
    """Read the allocation from the environment of an LSF job.

    Slots come from ``LSB_MCPU_HOSTS``, else the file ``LSB_DJOB_HOSTFILE`` names, else
    ``LSB_HOSTS``; all that are there must say the same.  The order is that of ``LSB_HOSTS``
    where it is set, since its first host is the one the job runs on.

    Raises:
        RequestError: a variable is missing or malformed, or two of them contradict.
    """
    (source, hosts), *others = _all_lists(environment, read_file)
    counted = _counted(hosts)
    for other, its in others:
        if _counted(its) != counted:
            raise RequestError(f"{other} and {source} name different hosts or slots")
        hosts = its if other == "LSB_HOSTS" else hosts
    given = sum(counted.values())
    told = environment.get("LSB_DJOB_NUMPROC", "")
    if told and whole_number("LSB_DJOB_NUMPROC", told) != given:
        raise RequestError(f"LSB_DJOB_NUMPROC is {told}, but {source} gives {given} slots")
    number, index = _identity(environment)
    return Allocation("lsf", number, index, hosts, environment.get("LSB_JOBNAME", ""))


def _counted(hosts: tuple[HostSlots, ...]) -> Mapping[str, int]:
    return {host.name: host.slots for host in hosts}


def _identity(environment: Environment) -> tuple[int, int | None]:
    """Return number and index; ``LSB_JOBINDEX`` is 0 outside arrays, ``LSB_BATCH_JID`` is ``19[3]`` (LSF 7+)."""
    number = whole_number("LSB_JOBID", environment.get("LSB_JOBID", ""))
    index = array_index("LSB_JOBINDEX", environment.get("LSB_JOBINDEX", "") or "0", least=0) or None
    full = environment.get("LSB_BATCH_JID", "")
    if full:
        match = re.fullmatch(_FULL_ID, full)
        if not match or (int(match[1]), int(match[2] or 0) or None) != (number, index):
            raise RequestError(
                f"LSB_BATCH_JID is {full[:80]!r}, but LSB_JOBID is {number} and LSB_JOBINDEX {index or 0}"
            )
    # A job that an element of an array submits inherits the array's variables.
    last = environment.get("LSB_JOBINDEX_END", "") if index else ""
    if index and last and whole_number("LSB_JOBINDEX_END", last) < index:
        raise RequestError(f"LSB_JOBINDEX is {index}, but LSB_JOBINDEX_END is {last}")
    return number, index


def _all_lists(environment: Environment, read_file: ReadFile) -> list[tuple[str, tuple[HostSlots, ...]]]:
    """Return what each variable says that is there, the one that slots come from first."""
    found = []
    counts = environment.get("LSB_MCPU_HOSTS", "").split()
    if counts:
        found.append(("LSB_MCPU_HOSTS", _pairs(counts)))
    lines = _hostfile(environment, read_file, needed=not counts)
    if lines is not None:
        found.append(("LSB_DJOB_HOSTFILE", hosts_per_line("LSB_DJOB_HOSTFILE", lines)))
    per_slot = environment.get("LSB_HOSTS", "").split()
    if per_slot:
        found.append(("LSB_HOSTS", hosts_per_line("LSB_HOSTS", per_slot)))
    if not found:
        raise RequestError(
            "none of LSB_MCPU_HOSTS, LSB_DJOB_HOSTFILE and LSB_HOSTS is set; is this running inside an LSF job?"
        )
    return found


def _hostfile(environment: Environment, read_file: ReadFile, *, needed: bool) -> list[str] | None:
    """Return the lines of the file, None if there is none; unless *needed*, it may be out of reach or empty."""
    path = environment.get("LSB_DJOB_HOSTFILE", "")
    if not path:
        return None
    try:
        lines = read_named_file("LSB_DJOB_HOSTFILE", path, read_file)
    except RequestError:
        if needed:
            raise
        return None
    return lines if needed or any(line.strip() for line in lines) else None


def _pairs(counts: list[str]) -> tuple[HostSlots, ...]:
    if len(counts) % 2:
        raise RequestError("LSB_MCPU_HOSTS is not a list of pairs 'host slots'")
    pairs = zip(counts[::2], counts[1::2], strict=True)
    return merge_hosts(((host, whole_number("LSB_MCPU_HOSTS", n)) for host, n in pairs), "LSB_MCPU_HOSTS")


def questions(allocation: Allocation, user: str, settings: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Ask for the job, finished ones too (``-a``), with the names of hosts, not of groups (``-X``)."""
    fields = f"{FIELDS} {LIMITS}" if settings.get("limits") == "ask" else FIELDS
    return ((settings["bjobs"], "-a", "-X", "-o", fields, "-json", bracketed_label(allocation)),)


def record(answers: Sequence[Answer], allocation: Allocation) -> BatchRecord | None:
    """Find the job's record in the output of ``bjobs -json``.

    LSF may print lines such as "LSF is processing your request" around the document.  Of a job
    that it doesn't have it gives a record with nothing but ``JOBID`` and ``ERROR``.

    Raises:
        BatchError: the output holds no answer.
    """
    [answer] = answers
    found = _record(answer.stdout, allocation)
    if found is None:
        return None
    state = _text(found, "STAT")
    return BatchRecord(
        state=state,
        phase=PHASES.get(state, "none"),
        hosts=hosts_of(_text(found, "EXEC_HOST")),
        user=_text(found, "USER"),
        run_limit=run_limit_of(_text(found, "RUNTIMELIMIT")),
        run_time=run_time_of(_text(found, "RUN_TIME")),
        memory_limit=bytes_of(_text(found, "MEMLIMIT")),
        # bsub(1): -M is for each process, unless the site has it otherwise; a slot is the room of one.
        memory_per="slot",
    )


def _record(output: str, allocation: Allocation) -> Mapping[str, Any] | None:
    wanted = (str(allocation.number), str(allocation.array_index or 0))
    begin, end = output.find("{"), output.rfind("}")
    try:
        for found in json.loads(output[begin : end + 1])["RECORDS"]:
            this = (found.get("JOBID"), found.get("JOBINDEX", "0") or "0")
            if "ERROR" not in found and this == wanted:
                return dict(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise no_answer("LSF", bracketed_label(allocation), "bjobs", output) from error
    return None


def _text(found: Mapping[str, Any], field: str) -> str:
    value = found.get(field, "")
    return value if isinstance(value, str) else ""


def hosts_of(exec_host: str) -> Mapping[str, int]:
    """Return the slots per host of ``EXEC_HOST``: ``h1:h1:h2``, ``2*h1:h2`` or a mixture.

    Raises:
        BatchError: it has another form.
    """
    given: Counter[str] = Counter()
    for part in filter(None, exec_host.split(":")):
        match = re.fullmatch(_EXEC_HOST, part)
        if not match:
            raise BatchError(f"bjobs gave the hosts {exec_host[:200]!r}, which are in no known form")
        given[match[2]] += int(match[1] or 1)
    return given


def run_limit_of(text: str) -> int | None:
    """Seconds of ``RUNTIMELIMIT``, which is in minutes: ``60.0``, ``60.0/hostA``; None if there is none."""
    match = re.match(r"(\d{1,9})(?:\.(\d))?(?=/|\s|$)", text, re.ASCII)
    return int(match[1]) * 60 + int(match[2] or 0) * 6 if match else None


def run_time_of(text: str) -> int:
    """Seconds of ``RUN_TIME``: ``16038 second(s)``, or ``00:00:01``; 0 for any other text."""
    return seconds_of(text.removesuffix(" second(s)")) or 0


def cgroups(allocation: Allocation, uid: int) -> tuple[str, ...]:
    """``lsf/CLUSTER/job.19[3].PID.TIME``, with ``LSF_PROCESS_TRACKING`` or ``LSF_LINUX_CGROUP_ACCT``."""
    return (f"lsf/*/job.{bracketed_label(allocation).replace('[', '[[]')}.*",)


def message(allocation: Allocation, text: str, settings: Mapping[str, str]) -> tuple[str, ...]:
    """Post *text* as a message of the job's, which ``bread`` and ``bjobs -l`` show."""
    return (settings["bpost"], "-d", text[:MOST_MESSAGE], bracketed_label(allocation))


def command_environment(allocation: Allocation) -> Mapping[str, str]:
    """Return LSF's variables that say which job this is; they name no host, so MPI does not go by them."""
    return {
        "LSB_JOBID": str(allocation.number),
        "LSB_JOBINDEX": str(allocation.array_index or 0),
        "LSB_DJOB_NUMPROC": str(allocation.slots),
    }


SYSTEM = BatchSystem(
    name="lsf",
    title="LSF",
    marker="LSB_JOBID",
    variables=(
        "LSB_JOBID",
        "LSB_JOBINDEX",
        "LSB_JOBINDEX_END",
        "LSB_BATCH_JID",
        "LSB_JOBNAME",
        "LSB_HOSTS",
        "LSB_MCPU_HOSTS",
        "LSB_DJOB_HOSTFILE",
        "LSB_DJOB_NUMPROC",
    ),
    hosts_from="LSB_MCPU_HOSTS, LSB_DJOB_HOSTFILE, LSB_HOSTS",
    read=read,
    label=bracketed_label,
    programs=("bjobs",),
    options={"limits": ("skip", "ask")},
    questions=questions,
    record=record,
    signals={
        "bkill": ("SIGCONT", "SIGINT", "SIGTERM", "SIGKILL"),
        "bkill, parallel job": ("SIGKILL",),
        "bstop": ("SIGSTOP",),
        "bstop, parallel job": ("SIGTSTP",),
        "bresume": ("SIGCONT",),
        "run limit": ("SIGUSR2", "SIGINT", "SIGTERM", "SIGKILL"),
    },
    command_environment=command_environment,
    array_variables=("LSB_JOBINDEX_STEP", "LSB_JOBINDEX_END"),
    cgroups=cgroups,
    # SIGUSR2 comes at the run limit, and the rest ten minutes later.
    overtime=660,
    messenger="bpost",
    message=message,
)
