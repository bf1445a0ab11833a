# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job as LSF sees it: its options, its hosts, its environment. Nothing here runs anything.

Facts about the variables were seen on OpenLava 4.0 and read in IBM's documentation of LSF
10.1 (bsub, "Environment variables set for job execution").
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from .model import LabError

MAX_LSB_HOSTS = 4096
"""LSF leaves LSB_HOSTS out when it would be this long or longer."""

DEFAULT_SLOTS = 4
"""Slots a host gives to one job that asks for no span."""

SPAN = re.compile(r"span\[\s*(ptile|hosts)\s*=\s*(\d+)\s*\]")


@dataclass(frozen=True)
class Options:
    """What a script asks for with ``#BSUB``."""

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


@dataclass(frozen=True)
class Account:
    """An ordinary user of the lab's hosts."""

    name: str
    uid: int
    gid: int
    group: str
    home: str
    shell: str


@dataclass(frozen=True)
class Job:
    """A job with its number and its hosts; the first one runs the script.

    ``job_starter`` and ``post_exec`` are those of its application profile, ``variables`` what esub has set.
    """

    number: int
    options: Options
    allocation: tuple[tuple[str, int], ...]
    account: Account
    directory: str
    submit_host: str
    stamp: int
    index: int = 0
    job_starter: str = ""
    post_exec: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def job_file(self) -> str:
        """Path of the job file, which is the user's; other files have it as their beginning."""
        return f"{self.account.home}/.lsbatch/{self.stamp}.{self.number}"

    @property
    def slot_hosts(self) -> tuple[str, ...]:
        """A host name per slot."""
        return tuple(host for host, slots in self.allocation for _ in range(slots))

    def expand(self, path: str) -> str:
        """*path* with ``%J`` and ``%I`` filled in, as LSF does in the names of output files."""
        return path.replace("%J", str(self.number)).replace("%I", str(self.index))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LabError(f"#BSUB: {message}")


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
    parser.add_argument("-W", dest="run_limit", help="taken and not enforced")
    parser.add_argument("-M", dest="memory_limit", help="taken and not enforced")
    return parser


def _words(script: str) -> list[str]:
    words: list[str] = []
    for number, line in enumerate(script.splitlines(), 1):
        if line.startswith("#BSUB"):
            try:
                words += shlex.split(line.removeprefix("#BSUB"), comments=True)
            except ValueError as error:
                raise LabError(f"line {number} of the script: {line!r}: {error}") from error
    return words


def parse(script: str) -> Options:
    """Read the ``#BSUB`` lines of *script*."""
    found = _parser().parse_args(_words(script))
    slots = str(found.n).partition(",")[0]
    if not slots.isdecimal() or int(slots) < 1:
        raise LabError(f"#BSUB: -n {found.n}: must be a number of slots, or min,max")
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
    )


def allocate(options: Options, hosts: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Give the job its slots on the first of *hosts*, as many on each as the span allows."""
    span = SPAN.search(options.resources)
    per_host = DEFAULT_SLOTS
    if span and span[1] == "hosts":
        if span[2] != "1":
            raise LabError(f"#BSUB: {span[0]}: LSF knows only span[hosts=1]")
        per_host = options.slots
    elif span:
        per_host = int(span[2])
    allocation: list[tuple[str, int]] = []
    left = options.slots
    for host in hosts:
        if left and per_host:
            allocation.append((host, min(left, per_host)))
            left -= min(left, per_host)
    if left:
        raise LabError(
            f"the job needs {options.slots} slots, {per_host} on each host; "
            f"{len(hosts)} hosts ({' '.join(hosts)}) don't have that many"
        )
    return tuple(allocation)


def _login_environment(job: Job) -> dict[str, str]:
    account = job.account
    return {
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PWD": job.directory,
    }


def environment(job: Job) -> dict[str, str]:
    """All variables of the job except LS_JOBPID, which only the started job knows."""
    slots = " ".join(job.slot_hosts)
    variables = {
        **_login_environment(job),
        "LSB_BATCH_JID": f"{job.number}[{job.index}]" if job.index else str(job.number),
        "LSB_CHKFILENAME": job.job_file,
        "LSB_DJOB_HOSTFILE": f"{job.job_file}.hostfile",
        "LSB_DJOB_NUMPROC": str(job.options.slots),
        "LSB_EFFECTIVE_RSRCREQ": job.options.resources,
        "LSB_EXIT_PRE_ABORT": "99",
        "LSB_JOBEXIT_STAT": "0",
        "LSB_JOBFILENAME": job.job_file,
        "LSB_JOBID": str(job.number),
        "LSB_JOBINDEX": str(job.index),
        "LSB_JOBNAME": job.options.job_name or f"{job.job_file}.shell",
        "LSB_JOB_EXECUSER": job.account.name,
        "LSB_MAX_NUM_PROCESSORS": str(job.options.slots),
        "LSB_MCPU_HOSTS": "".join(f"{host} {count} " for host, count in job.allocation),
        "LSB_PROJECT_NAME": job.options.project,
        "LSB_QUEUE": job.options.queue,
        "LSB_SUB_HOST": job.submit_host,
        "LSB_TRAPSIGS": "trap # 15 10 12 2 1",
        "LSB_UNIXGROUP": job.account.group,
        "LSFUSER": job.account.name,
        "LS_EXEC_T": "START",
        "LS_SUBCWD": job.directory,
    }
    if len(slots) < MAX_LSB_HOSTS:
        variables["LSB_HOSTS"] = slots
    if job.job_starter:
        variables["LSB_JOB_STARTER"] = job.job_starter
    if job.options.output:
        variables["LSB_OUTPUTFILE"] = job.expand(job.options.output)
    if job.options.error:
        variables["LSB_ERRORFILE"] = job.expand(job.options.error)
    return variables


def job_file(job: Job) -> str:
    """Text of the job file, as OpenLava writes it; the script itself is the file beside it."""
    line = shlex.quote(job.job_file + ".shell")
    if job.job_starter:
        line = f"{job.job_starter} {line}"
    return (
        "#! /bin/sh\n\n$LSB_TRAPSIGS\n$LSB_RCP1\n$LSB_RCP2\n$LSB_RCP3\n"
        "# LSBATCH: User input\n"
        f"{line}\n"
        "ExitStat=$?\nwait\n# LSBATCH: End user input\ntrue\n"
        'exit `expr $? "|" $ExitStat`\n'
    )


def script_file(script: str) -> str:
    """The user's script, with LSF's default shell if it names none."""
    return script if script.startswith("#!") else f"#!/bin/sh\n{script}"
