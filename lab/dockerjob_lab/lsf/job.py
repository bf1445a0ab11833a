# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job as LSF makes it of what is asked for: its hosts, its environment, its files. Nothing here runs anything.

Facts about the variables were seen on OpenLava 4.0 and read in IBM's documentation of LSF
10.1 (bsub, "Environment variables set for job execution").
"""

from __future__ import annotations

import dataclasses
import grp
import pwd
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .options import Options, array_of

MAX_LSB_HOSTS = 4096
"""LSF leaves LSB_HOSTS out when it would be this long or longer."""

CLUSTER = "lab"

NOT_TRANSFERRED = (
    "LSB_JOBID", "LSB_HOSTS", "LSB_QUEUE", "LSB_JOBNAME", "LSB_TRAPSIGS",
    "LSB_JOBFILENAME", "LSB_RESTART", "LSB_EXIT_PRE_ABORT", "LSB_EXIT_REQUEUE", "LS_JOBPID",
    "LSB_INTERACTIVE", "LSB_SUB_HOST", "LSB_OUTPUTFILE", "LSB_ERRORFILE", "LSB_JOB_STARTER",
    "LSB_JOBINDEX_STEP", "LSB_JOBINDEX_END", "HOME", "PWD", "OLDPWD",
    "USER", "SHLVL", "_",
)  # fmt: skip
"""Variables of who submits that a job does not get from there (lsb.sub.c, createJobInfoFile)."""


@dataclass(frozen=True)
class Account:
    """An ordinary user of the lab's hosts."""

    name: str
    uid: int
    gid: int
    group: str
    home: str
    shell: str

    @classmethod
    def of(cls, uid: int) -> Account:
        """The account of *uid* on this host."""
        found = pwd.getpwuid(uid)
        group = grp.getgrgid(found.pw_gid).gr_name
        return cls(found.pw_name, uid, found.pw_gid, group, found.pw_dir, found.pw_shell)


@dataclass(frozen=True)
class Job:
    """A job with its number and its hosts; the first one runs the script.

    Attributes:
        directory: where it was submitted, and runs.
        stamp: when it was submitted, in seconds.
        index: its index in an array, 0 if it is no element of one.
        job_starter: what its application profile puts before the command.
        post_exec: what that has run after the job.
        variables: what esub has set.
        submitted_with: environment of who submitted it; None: that of a fresh login.
        command: what stands on bsub's command line, empty if a script was submitted.
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
    submitted_with: Mapping[str, str] | None = None
    command: str = ""

    @property
    def job_file(self) -> str:
        """Path of the job file, which is the user's; other files have it as their beginning."""
        element = f".{self.index}" if self.index else ""
        return f"{self.account.home}/.lsbatch/{self.stamp}.{self.number}{element}"

    @property
    def slot_hosts(self) -> tuple[str, ...]:
        """A host name per slot."""
        return tuple(host for host, slots in self.allocation for _ in range(slots))

    @property
    def label(self) -> str:
        """The job for people: ``748``, ``19[3]``."""
        return f"{self.number}[{self.index}]" if self.index else str(self.number)

    @property
    def name(self) -> str:
        """Its name; without -J that is the command, or the script."""
        return self.options.job_name or self.command or f"{self.job_file}.shell"

    def expand(self, path: str) -> str:
        """*path* with ``%J`` and ``%I`` filled in, as LSF does in the names of output files."""
        return path.replace("%J", str(self.number)).replace("%I", str(self.index))


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


def _transferred(job: Job) -> dict[str, str]:
    """What bsub hands on of its own environment; HOME and USER are those of the host."""
    left_out = {*NOT_TRANSFERRED, *(() if job.options.interactive else ("TERM", "TERMCAP"))}
    kept = {name: value for name, value in (job.submitted_with or {}).items() if name not in left_out}
    return {**kept, "HOME": job.account.home, "USER": job.account.name, "PWD": job.directory}


def environment(job: Job) -> dict[str, str]:
    """All variables of the job except LS_JOBPID, which only the started job knows."""
    slots = " ".join(job.slot_hosts)
    variables = {
        **(_login_environment(job) if job.submitted_with is None else _transferred(job)),
        "LSB_BATCH_JID": job.label,
        "LSB_CHKFILENAME": job.job_file,
        "LSB_DJOB_HOSTFILE": f"{job.job_file}.hostfile",
        "LSB_DJOB_NUMPROC": str(job.options.slots),
        "LSB_EFFECTIVE_RSRCREQ": job.options.resources,
        "LSB_EXIT_PRE_ABORT": "99",
        "LSB_JOBEXIT_STAT": "0",
        "LSB_JOBFILENAME": job.job_file,
        "LSB_JOBID": str(job.number),
        "LSB_JOBINDEX": str(job.index),
        "LSB_JOBNAME": job.name,
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
    else:
        variables.pop("LSB_HOSTS", None)
    if job.job_starter:
        variables["LSB_JOB_STARTER"] = job.job_starter
    if job.options.output:
        variables["LSB_OUTPUTFILE"] = job.expand(job.options.output)
    if job.options.error:
        variables["LSB_ERRORFILE"] = job.expand(job.options.error)
    if job.options.interactive:
        variables["LSB_INTERACTIVE"] = "Y"
    return variables | _array_variables(job)


def _array_variables(job: Job) -> dict[str, str]:
    """Step and end, which LSF sets if it finds the index in the name's list."""
    array = array_of(job.options.job_name) if job.index else None
    found = array.elements().get(job.index) if array else None
    return {"LSB_JOBINDEX_STEP": str(found[0]), "LSB_JOBINDEX_END": str(found[1])} if found else {}


def command_line(words: Sequence[str]) -> str:
    """What bsub makes of its arguments: one is a line for the shell, of several each is a word."""
    return words[0] if len(words) == 1 else shlex.join(words)


def job_file(job: Job) -> str:
    """Text of the job file, as OpenLava writes it; a script itself is the file beside it."""
    line = job.command or shlex.quote(job.job_file + ".shell")
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


def description(job: Job, script: str, extra: Mapping[str, str], *, spool: bool) -> dict[str, Any]:
    """What :mod:`.res` is told of a job.

    Args:
        job: the job.
        script: the user's script.
        extra: further variables.
        spool: whether its output goes to spool files and at the end to the user's, with a report.
    """
    files = {
        job.job_file: (job_file(job), 0o700),
        f"{job.job_file}.hostfile": ("".join(f"{name}\n" for name in job.slot_hosts), 0o600),
    }
    if not job.command:
        files[f"{job.job_file}.shell"] = (script_file(script), 0o700)
    return {
        "label": job.label,
        "user": job.account.name,
        "uid": job.account.uid,
        "gid": job.account.gid,
        "directory": job.directory,
        "environment": {**environment(job), **extra, **job.variables},
        "job_file": job.job_file,
        "files": files,
        "post_exec": job.post_exec,
        **(_output(job, script) if spool else {}),
    }


def _output(job: Job, script: str) -> dict[str, Any]:
    """Where output goes, and what the report says; without -o LSF sends mail, which here is a file."""
    output, error = f"{job.job_file}.out", f"{job.job_file}.err"
    target = job.expand(job.options.output) if job.options.output else f"{job.account.home}/mbox"
    return {
        "spool": {1: output, 2: error if job.options.error else output},
        "output": (output, target, job.options.overwrite_output),
        "error": (error, job.expand(job.options.error)) if job.options.error else None,
        "report": {
            "label": job.label,
            "name": job.name,
            "submit_host": job.submit_host,
            "submitted": job.stamp,
            "user": job.account.name,
            "queue": job.options.queue,
            "home": job.account.home,
            "directory": job.directory,
            "input": job.command or script,
            "hosts": [f"{slots}*{host}" if slots > 1 else host for host, slots in job.allocation],
            "error": job.expand(job.options.error) if job.options.error else "",
        },
    }


def options_of(document: Mapping[str, Any]) -> Options:
    """Options again, of what ``dataclasses.asdict`` made of them and JSON has carried."""
    known = {each.name for each in dataclasses.fields(Options)}
    kept = {name: value for name, value in document.items() if name in known}
    return Options(**{**kept, "hosts": tuple(kept["hosts"])})
