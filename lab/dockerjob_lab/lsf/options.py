# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job asks for: the options of bsub(1), on its command line and in the ``#BSUB`` lines of a script."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from . import LsfError

Interactive = Literal["", "I", "Is"]
"""``I``: the job's streams are those of bsub; ``Is``: through a terminal of the job's own; else it has spool files."""

DEFAULT_SLOTS = 4
"""Slots a host gives to one job that asks for no span."""

SPAN = re.compile(r"span\[\s*(ptile|hosts)\s*=\s*(\d+)\s*\]")
ARRAY = re.compile(
    r"(.*?)\[([0-9]+(?:-[0-9]+(?::[0-9]+)?)?(?:,[0-9]+(?:-[0-9]+(?::[0-9]+)?)?)*)\](?:%([1-9][0-9]*))?",
    re.DOTALL,
)
FLAGS = ("-K", "-I", "-Is", "-Ip")
VALUED = ("-n", "-J", "-o", "-oo", "-e", "-eo", "-q", "-P", "-R", "-m", "-app", "-a", "-W", "-M", "-w")


@dataclass(frozen=True)
class Options:
    """What is asked for; run and memory limit are in the words of ``bjobs``."""

    slots: int
    job_name: str | None
    output: str | None
    overwrite_output: bool
    error: str | None
    queue: str
    project: str
    resources: str
    hosts: tuple[str, ...]
    application: str = ""
    esub: str = ""
    run_limit: str = ""
    memory_limit: str = ""
    wait: bool = False
    interactive: Interactive = ""

    @property
    def limits(self) -> dict[str, str]:
        """The limits in the words of ``bjobs``."""
        return {"RUNTIMELIMIT": self.run_limit, "MEMLIMIT": self.memory_limit}

    @property
    def run_seconds(self) -> float | None:
        """Seconds that the job may run, None for no limit."""
        return float(self.run_limit) * 60 if self.run_limit else None

    @property
    def most_per_host(self) -> int:
        """Slots that the job takes on one host at most.

        Raises:
            LsfError: the span is one that LSF doesn't know.
        """
        span = SPAN.search(self.resources)
        if not span:
            return DEFAULT_SLOTS
        if span[1] == "ptile" and int(span[2]):
            return int(span[2])
        if span[2] != "1":
            raise LsfError(f"{span[0]}: LSF knows only span[ptile=N] and span[hosts=1]")
        return self.slots


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LsfError(f"{message}; known are {' '.join((*VALUED[:-1], *FLAGS))}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-n", default="1")
    parser.add_argument("-J", dest="job_name")
    parser.add_argument("-o", dest="output")
    parser.add_argument("-oo", dest="overwrite")
    parser.add_argument("-e", "-eo", dest="error")
    parser.add_argument("-q", dest="queue", default="normal")
    parser.add_argument("-P", dest="project", default="default")
    parser.add_argument("-R", dest="resources", action="append", default=[])
    parser.add_argument("-m", dest="hosts", default="")
    parser.add_argument("-app", dest="application", default="")
    parser.add_argument("-a", dest="esub", default="")
    parser.add_argument("-W", dest="run_limit")
    parser.add_argument("-M", dest="memory_limit", help="bjobs tells it, nobody here enforces it")
    parser.add_argument("-w", dest="dependency")
    parser.add_argument("-K", dest="wait", action="store_true")
    parser.add_argument("-I", dest="interactive", action="store_const", const="I", default="")
    parser.add_argument("-Is", "-Ip", dest="interactive", action="store_const", const="Is")
    return parser


def script_words(script: str) -> list[str]:
    """The words of the ``#BSUB`` lines.

    Raises:
        LsfError: a quote is left open.
    """
    words: list[str] = []
    for number, line in enumerate(script.splitlines(), 1):
        if line.startswith("#BSUB"):
            try:
                words += shlex.split(line.removeprefix("#BSUB"), comments=True)
            except ValueError as error:
                raise LsfError(f"line {number} of the script: {line!r}: {error}") from error
    return words


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments of bsub into its options and the command, whose own options are none of bsub's."""
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        at += 2 if argv[at] in VALUED else 1
    return list(argv[:at]), list(argv[at:])


def parse(script: str, words: Sequence[str] = ()) -> Options:
    """Read the ``#BSUB`` lines of *script*; *words*, from the command line, go before them.

    Raises:
        LsfError: an option is unknown, has no value, or one that can't be.
    """
    found = _parser().parse_args([*script_words(script), *words])
    if found.dependency is not None:
        raise LsfError(
            f"-w {found.dependency}: this LSF knows no dependencies; submit the job when the other is done"
        )
    slots = str(found.n).partition(",")[0]
    if not slots.isdecimal() or not 1 <= int(slots) <= 100_000:
        raise LsfError(f"-n {found.n}: must be a number of slots, or min,max")
    return Options(
        slots=int(slots),
        job_name=found.job_name,
        output=found.overwrite or found.output,
        overwrite_output=found.overwrite is not None,
        error=found.error,
        queue=found.queue,
        project=found.project,
        resources=" ".join(found.resources),
        hosts=tuple(found.hosts.split()),
        application=found.application,
        esub=found.esub,
        run_limit=_run_limit(found.run_limit) if found.run_limit else "",
        memory_limit=_memory_limit(found.memory_limit) if found.memory_limit else "",
        wait=found.wait,
        interactive=found.interactive,
    )


def _run_limit(text: str) -> str:
    """Turn ``[hours:]minutes`` into minutes, as ``bjobs`` shows them."""
    match = re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,8})", text, re.ASCII)
    if not match:
        raise LsfError(f"-W {text}: must be [hours:]minutes")
    return f"{int(match[1] or 0) * 60 + int(match[2])}.0"


def _memory_limit(text: str) -> str:
    """Turn a number with a unit, kilobytes without one, into what ``bjobs`` shows."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper(), re.ASCII)
    if not match:
        raise LsfError(f"-M {text}: must be a number, with KB, MB, GB or TB")
    return f"{match[1]} {match[2] or 'K'}bytes"


def allocate(options: Options, hosts: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Give the job its slots on the first of *hosts*, as many on each as the span allows.

    Raises:
        LsfError: the hosts don't have that many.
    """
    per_host = options.most_per_host
    allocation: list[tuple[str, int]] = []
    left = options.slots
    for host in hosts:
        if left:
            allocation.append((host, min(left, per_host)))
            left -= min(left, per_host)
    if left:
        raise LsfError(
            f"the job needs {options.slots} slots, {per_host} on each host; "
            f"{len(hosts)} hosts ({' '.join(hosts)}) don't have that many"
        )
    return tuple(allocation)


@dataclass(frozen=True)
class Array:
    """A job array, ``name[1-4]%2``.

    Attributes:
        name: what stands before the bracket.
        indices: what stands in it.
        at_once: how many elements run at the same time, None for all.
    """

    name: str
    indices: str
    at_once: int | None

    def elements(self) -> dict[int, tuple[int, int]]:
        """Each index, with step and end of the range that it is from (LSB_JOBINDEX_STEP, LSB_JOBINDEX_END)."""
        found: dict[int, tuple[int, int]] = {}
        for part in self.indices.split(","):
            bounds, _, step = part.partition(":")
            first, _, last = bounds.partition("-")
            for index in range(int(first), int(last or first) + 1, int(step or 1)):
                found.setdefault(index, (int(step or 1), int(last or first)))
        return found


def array_of(job_name: str | None) -> Array | None:
    """The array that ``-J`` asks for, None if it asks for none.

    Raises:
        LsfError: the indices can't be.
    """
    match = ARRAY.fullmatch(job_name or "")
    if not match:
        return None
    numbers = [int(number) for number in re.findall("[0-9]+", match[2])]
    array = Array(match[1], match[2], int(match[3]) if match[3] else None)
    if max(numbers) > 1000 or 0 in numbers or not array.elements():
        raise LsfError(f"-J {job_name}: Bad job array index list; indices are from 1 to 1000")
    return array
