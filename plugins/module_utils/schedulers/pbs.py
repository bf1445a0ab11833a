# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenPBS (PBS Pro) and Torque.

They share variables and commands; what ``qstat`` prints differs, so a site says which one it has
(``dialect``).  Neither was run here: the forms are those of their sources and of published answers.

The proof is ``Job_Owner``, ``job_state`` and ``exec_host``, which the server fills in.  The same answer
has the job's variables, text of the user's that some versions don't escape: a key that comes twice is
no answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..allocation import Allocation
from ..errors import BatchError, RequestError
from .base import (
    Answer,
    BatchRecord,
    BatchSystem,
    Environment,
    Phase,
    ReadFile,
    bracketed_label,
    bytes_of,
    hosts_per_line,
    no_answer,
    parse_xml,
    read_named_file,
    seconds_of,
    whole_number,
)

PHASES: Mapping[str, Phase] = {
    "Q": "waiting",
    "W": "waiting",
    "R": "running",
    "S": "suspended",
    "U": "suspended",  # suspended because its workstation is in use
}

_JOB_ID = r"([1-9][0-9]{0,17})(?:\[([0-9]{1,9})\])?(?:\.[A-Za-z0-9._:-]{1,255})?"
_ON_HOST = r"([A-Za-z0-9][A-Za-z0-9._-]{0,252})/([0-9,-]{1,4000})(?:\*([0-9]{1,6}))?"
_INDICES = r"([0-9]{1,6})(?:-([0-9]{1,6}))?"


def read(environment: Environment, read_file: ReadFile) -> Allocation:
    """Read the allocation from the environment of a PBS job.

    Hosts and slots come from the file that ``PBS_NODEFILE`` names, a line per slot.

    Raises:
        RequestError: a variable is missing or malformed, or two of them contradict.
    """
    number, index = _identity(environment)
    path = environment.get("PBS_NODEFILE", "")
    if not path:
        raise RequestError("PBS_NODEFILE is not set; is this running inside a PBS job?")
    hosts = hosts_per_line("PBS_NODEFILE", read_named_file("PBS_NODEFILE", path, read_file))
    slots = sum(host.slots for host in hosts)
    told = environment.get("PBS_NP", "")
    if told and whole_number("PBS_NP", told) != slots:
        raise RequestError(f"PBS_NP is {told}, but PBS_NODEFILE gives {slots} slots")
    return Allocation("pbs", number, index, hosts, environment.get("PBS_JOBNAME", ""))


def _identity(environment: Environment) -> tuple[int, int | None]:
    """Return number and index of ``PBS_JOBID``: ``123.server``, ``123[4].server``.

    The index has a variable of its own, which must say the same: ``PBS_ARRAY_INDEX`` in OpenPBS,
    ``PBS_ARRAYID`` in Torque.  Outside an array it may be there all the same, from a job that
    submitted this one with all its variables.
    """
    text = environment.get("PBS_JOBID", "")
    match = re.fullmatch(_JOB_ID, text)
    if not match:
        raise RequestError(f"PBS_JOBID is {text[:80]!r}; expected NUMBER.SERVER or NUMBER[INDEX].SERVER")
    index = None if match[2] is None else int(match[2])
    for variable in ("PBS_ARRAY_INDEX", "PBS_ARRAYID"):
        told = environment.get(variable, "")
        if told and index is not None and whole_number(variable, told, least=0) != index:
            raise RequestError(f"{variable} is {told}, but PBS_JOBID is {text[:80]}")
    return int(match[1]), index


def questions(allocation: Allocation, user: str, settings: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Ask for the job: ``-x`` is OpenPBS's word for finished ones too, and Torque's for XML."""
    if settings.get("dialect") == "torque":
        return ((settings["qstat"], "-x", bracketed_label(allocation)),)
    return ((settings["qstat"], "-x", "-f", "-F", "json", bracketed_label(allocation)),)


def record(answers: Sequence[Answer], allocation: Allocation) -> BatchRecord | None:
    """Find the job in an answer of either form.

    Raises:
        BatchError: it holds no answer.
    """
    [answer] = answers
    if not answer.stdout.strip() and "Unknown Job" in answer.stderr:
        return None
    try:
        torque = answer.stdout.lstrip().startswith("<")
        jobs = _jobs_of_xml(answer.stdout) if torque else _jobs_of_json(answer.stdout)
        mine = [job for name, job in jobs if _is(name, allocation)]
        if not mine:
            return None
        [found] = mine
        return _record(found, torque)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"{answer.stdout} {answer.stderr}"
        raise no_answer("PBS", bracketed_label(allocation), "qstat", said) from error


def _is(name: str, allocation: Allocation) -> bool:
    match = re.fullmatch(_JOB_ID, name)
    index = None if match is None or match[2] is None else int(match[2])
    return match is not None and (int(match[1]), index) == (allocation.number, allocation.array_index)


def _record(found: Mapping[str, Any], torque: bool) -> BatchRecord:
    state, limits = found["job_state"], found.get("Resource_List", {})
    if not isinstance(state, str):
        raise TypeError("no state")
    exec_host, used = found.get("exec_host", ""), found.get("resources_used")
    return BatchRecord(
        state=state,
        phase=PHASES.get(state, "none"),
        hosts=(torque_hosts if torque else openpbs_hosts)(exec_host),
        user=found["Job_Owner"].rpartition("@")[0],
        counted="slots" if torque else "cpus",
        run_limit=seconds_of(str(limits.get("walltime", ""))),
        run_time=seconds_of(str(used.get("walltime", ""))) or 0 if isinstance(used, Mapping) else 0,
        memory_limit=bytes_of(str(limits.get("mem", ""))),
    )


def _jobs_of_json(text: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the jobs of ``qstat -F json``; without any it has no ``Jobs``."""
    document = json.loads(text, object_pairs_hook=_without_duplicates)
    return list(document.get("Jobs", {}).items())


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key comes twice")
    return made


def _jobs_of_xml(text: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the jobs of Torque's ``qstat -x``."""
    jobs: list[tuple[str, Mapping[str, Any]]] = []
    for job in parse_xml(text).findall("Job"):
        fields = _without_duplicates([(element.tag, element) for element in job])
        limits = _without_duplicates([(one.tag, one.text or "") for one in fields.get("Resource_List", ())])
        plain = {tag: element.text or "" for tag, element in fields.items() if not len(element)}
        jobs.append((plain["Job_Id"], {**plain, "Resource_List": limits}))
    return jobs


def openpbs_hosts(exec_host: str) -> Mapping[str, int]:
    """Return the CPUs per host of OpenPBS's ``exec_host``: ``n1/0*2+n2/0``, ``n1/0+n1/1``.

    Raises:
        BatchError: it has another form.
    """
    given: Counter[str] = Counter()
    for match in _on_hosts(exec_host):
        if not match[2].isdigit():
            raise _unknown_form(exec_host)
        given[match[1]] += int(match[3] or 1)
    return given


def torque_hosts(exec_host: str) -> Mapping[str, int]:
    """Return the slots per host of Torque's ``exec_host``: ``n1/3+n1/2``, ``n1/0-23+n2/0,4-5``.

    Raises:
        BatchError: it has another form.
    """
    given: Counter[str] = Counter()
    for match in _on_hosts(exec_host):
        for part in match[2].split(","):
            indices = re.fullmatch(_INDICES, part)
            if match[3] or not indices or int(indices[2] or indices[1]) < int(indices[1]):
                raise _unknown_form(exec_host)
            given[match[1]] += int(indices[2] or indices[1]) - int(indices[1]) + 1
    return given


def _on_hosts(exec_host: str) -> list[re.Match[str]]:
    matches = []
    for part in exec_host.split("+") if exec_host else ():
        match = re.fullmatch(_ON_HOST, part)
        if not match:
            raise _unknown_form(exec_host)
        matches.append(match)
    return matches


def _unknown_form(exec_host: str) -> BatchError:
    return BatchError(f"qstat gave the hosts {exec_host[:200]!r}, which are in no known form")


SYSTEM = BatchSystem(
    name="pbs",
    title="PBS",
    marker="PBS_JOBID",
    variables=(
        "PBS_JOBID",
        "PBS_JOBNAME",
        "PBS_ARRAY_INDEX",
        "PBS_ARRAYID",
        "PBS_NODEFILE",
        "PBS_NP",
    ),
    hosts_from="PBS_NODEFILE",
    read=read,
    label=bracketed_label,
    programs=("qstat",),
    options={"dialect": ("openpbs", "torque")},
    questions=questions,
    record=record,
    signals={
        "qdel": ("SIGTERM", "SIGKILL"),
        "walltime": ("SIGTERM", "SIGKILL"),
        "suspend, OpenPBS": ("SIGSTOP",),
        "suspend, Torque": ("SIGTSTP", "SIGSTOP"),
        "resume": ("SIGCONT",),
    },
)
