# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every batch system's adapter is made of; the package's other files are one adapter each.

The wrapper loads them all, so patterns are compiled where they are used, which is in one of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from ..allocation import Allocation, HostSlots, merge_hosts
from ..errors import BatchError, RequestError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Environment = Mapping[str, str]
ReadFile = Callable[[str], str]

Phase = Literal["waiting", "running", "suspended", "held", "none"]
"""What a state means: not started yet; runs; suspended; has its hosts, and nobody knows more; has no claim on any."""

MemoryPer = Literal["job", "host", "slot", "cpu"]

MOST_HOSTS = 65536
"""Hosts that one expression may stand for; Slurm's own limit for a range."""


MOST_INDEX = 10**9 - 1


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a program of the batch system printed, and how it ended."""

    stdout: str
    stderr: str = ""
    status: int = 0


@dataclasses.dataclass(frozen=True)
class BatchRecord:
    """What the batch system itself says of a job.

    Attributes:
        state: its own word for the state.
        phase: what that means.
        hosts: the job's hosts, with what it has on each, None where the batch system doesn't say.
        user: the owner's name, empty where the batch system doesn't say.
        uid: the owner's number, None where it doesn't.
        total: what the job has on all hosts together, None where it is the sum of *hosts*.
        counted: ``slots`` are what a job claims; of ``cpus`` a job may claim fewer.
        run_limit: seconds the job may run, None for no limit, or none that can be read.
        run_time: seconds that it has run of them, 0 where that can't be read.
        memory_limit: bytes of memory, likewise.
        memory_per: what these are for: the whole job, the job on each host, or each of its slots or CPUs.
    """

    state: str
    phase: Phase
    hosts: Mapping[str, int | None]
    user: str = ""
    uid: int | None = None
    total: int | None = None
    counted: Literal["slots", "cpus"] = "slots"
    run_limit: int | None = None
    run_time: int = 0
    memory_limit: int | None = None
    memory_per: MemoryPer = "job"

    def cpus_on(self, host: HostSlots, slots: int) -> float:
        """Return the CPUs that the job has on *host*; *slots* are those of all hosts.

        A slot is a CPU, unless the batch system counts CPUs.  Where only those of all hosts are known,
        each slot has the same share of them: the job never has more in all than it was given.
        """
        if self.counted == "slots":
            return float(host.slots)
        known = self.hosts.get(host.name)
        if known is not None:
            return float(known)
        return float(host.slots) if self.total is None else self.total * host.slots / slots

    def memory_on(self, host: HostSlots, slots: int) -> int | None:
        """Return the bytes of memory that the job may use on *host*, None where no limit is known.

        Of a limit for the whole job, a host has the share that it has of the CPUs.
        """
        if self.memory_limit is None:
            return None
        match self.memory_per:
            case "host":
                return self.memory_limit
            case "slot":
                return self.memory_limit * host.slots
            case "cpu":
                return int(self.memory_limit * self.cpus_on(host, slots))
            case "job":
                return int(self.memory_limit * self._share(host, slots))

    def _share(self, host: HostSlots, slots: int) -> float:
        known = [count for count in self.hosts.values() if count is not None]
        if self.counted == "cpus" and len(known) == len(self.hosts) and host.name in self.hosts:
            return self.cpus_on(host, slots) / sum(known)
        return host.slots / slots


class _Questions(Protocol):
    def __call__(
        self, allocation: Allocation, user: str, settings: Mapping[str, str]
    ) -> tuple[tuple[str, ...], ...]: ...


@dataclasses.dataclass(frozen=True)
class BatchSystem:
    """One batch system.

    Attributes:
        name: key of its section under ``batch`` in ``config.yml``, and value of DOCKERJOB_BATCH.
        title: its name for people.
        marker: variable that is set in each of its jobs, and means that it is one.
        variables: all variables that are read.
        hosts_from: those that hosts and slots come from, for people.
        read: makes an allocation of a job's environment; raises ``RequestError``.
        label: names the job as this batch system does.
        programs: those that are asked for proof; their paths are settings.
        options: further settings, with their values, the default first.
        questions: the command lines that ask for a job; gets the allocation, the name of who claims
            it, and the settings.
        record: makes a record of the answers, None if there is no such job; raises ``BatchError``.
        signals: per event, the signals that the job's processes get, in this order.
        statuses: exit statuses of a job that mean something to the batch system, and what.
        command_environment: variables for COMMAND that say which job it is.
        array_variables: further ones of an array's element, which COMMAND gets as they are.
        cgroups: patterns (glob(7)) of the job's own cgroup on a host, below where a hierarchy is mounted;
            gets the allocation and the owner's number. It is root's, so what it says is true.
        overtime: seconds after the run limit in which the batch system itself ends a job: it warns first, or
            looks only now and then.
        messenger: program that attaches a text to a job; its path is a setting that may be left out.
        message: the command line that does so; gets the allocation, the text, and the settings.
    """

    name: str
    title: str
    marker: str
    variables: tuple[str, ...]
    hosts_from: str
    read: Callable[[Environment, ReadFile], Allocation]
    label: Callable[[Allocation], str]
    programs: tuple[str, ...]
    questions: _Questions
    record: Callable[[Sequence[Answer], Allocation], BatchRecord | None]
    signals: Mapping[str, tuple[str, ...]]
    options: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    statuses: Mapping[int, str] = dataclasses.field(default_factory=dict)
    command_environment: Callable[[Allocation], Mapping[str, str]] = lambda allocation: {}
    array_variables: tuple[str, ...] = ()
    cgroups: Callable[[Allocation, int], tuple[str, ...]] = lambda allocation, uid: ()
    overtime: int = 60
    messenger: str | None = None
    message: Callable[[Allocation, str, Mapping[str, str]], tuple[str, ...]] | None = None


def whole_number(variable: str, text: str, least: int = 1) -> int:
    """Read a variable that holds a whole number.

    Raises:
        RequestError: it holds something else, or a number below *least*.
    """
    if not is_number(text) or int(text) < least:
        raise RequestError(f"{variable} is {text[:80]!r}; expected a whole number from {least}")
    return int(text)


def array_index(variable: str, text: str, least: int) -> int:
    """Read a variable that holds the index of an array's element; a job id has room for nine digits.

    Raises:
        RequestError: it holds something else, or a number below *least*.
    """
    index = whole_number(variable, text, least)
    if index > MOST_INDEX:
        raise RequestError(f"{variable} is {text!r}; expected at most {MOST_INDEX}")
    return index


def is_number(text: str) -> bool:
    """Tell whether *text* is a decimal number of at most 18 digits, in ASCII."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def read_named_file(variable: str, path: str, read_file: ReadFile) -> list[str]:
    """Return the lines of the file that *variable* names.

    Raises:
        RequestError: it can't be read, or is no text.
    """
    try:
        return read_file(path).splitlines()
    except OSError as error:
        raise RequestError(f"{variable} {path}: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{variable} {path!r} is no text file: {error}") from error


def hosts_per_line(variable: str, lines: Sequence[str]) -> tuple[HostSlots, ...]:
    """Count a file that names one host a line, and a host once per slot.

    Raises:
        RequestError: a line holds more than a name, or there is none.
    """
    return merge_hosts(((line.strip(), 1) for line in lines if line.strip()), variable)


def no_answer(title: str, label: str, program: str, said: str) -> BatchError:
    """Make the error for output that holds no answer."""
    shown = " ".join(said.split())[:200] or "nothing"
    return BatchError(f"{title} gave no answer about job {label}; {program} said: {shown}")


def parse_xml(text: str) -> Element:
    """Parse a document without declarations: entities could make it grow, or read files.

    Raises:
        ValueError: it is none.
    """
    # The wrapper loads this file too, and never parses XML.
    from xml.etree import ElementTree

    if "<!" in text:
        raise ValueError("declarations in XML")
    try:
        return ElementTree.fromstring(text)  # noqa: S314  # no declaration, so no entity
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(str(error)) from error


def bracketed_label(allocation: Allocation) -> str:
    """Name a job as LSF and PBS do: ``748``, ``19[3]``."""
    index = allocation.array_index
    return str(allocation.number) if index is None else f"{allocation.number}[{index}]"


def seconds_of(text: str) -> int | None:
    """Read a time limit, ``[[days-]hours:]minutes:seconds`` or seconds; None for any other text."""
    match = re.fullmatch(
        r"(?:(?:(?:(\d{1,6})-)?(\d{1,7}):)?(\d{1,9}):)?(\d{1,12})(?:\.\d{1,9})?", text.strip(), re.ASCII
    )
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def bytes_of(text: str) -> int | None:
    """Read a size such as ``512mb``, ``4 Gbytes`` or ``1.5G``; None for any other text."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:b|bytes?)?", text.strip().lower(), re.ASCII)
    return int(float(match[1]) * _UNITS[match[2]]) if match else None
