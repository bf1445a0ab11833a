# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``hpc_submit_dockerjob``: the last line of a submit script.

It imports nothing but the standard library and the allocation parser: its start-up time
is part of every job.  Standard output and error go straight from COMMAND to the batch
system's files; nothing is copied on the way here, except at a terminal, see :mod:`.terminal`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

from dockerjob_core.errors import ConfigError, DockerjobError, RequestError
from dockerjob_core.schedulers import SYSTEMS

from ..request import SERVICE_ACCOUNT, SUDO, JobRequest, Terminal
from ..schedulers import SITE_FILE, array_variables, read_allocation, site_setting

LOCAL = "DOCKERJOB_LOCAL"
"""The site's setting with paths that are another disk on each host, between spaces."""

SUDO_REFUSES = 1
"""Exit status of sudo(8) when it refuses; COMMAND's may be the same."""

SUDO_PATIENCE = 30
"""Seconds that sudo may take to say whether it refuses."""

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGCONT,
)
"""Signals that the broker knows what to do with.

The wrapper itself does not stop on SIGTSTP: it could not pass on what comes next.
"""

HELP = """\
Run COMMAND in Docker containers, one on each host of this batch job.

Call it as the last line of a submit script, with these variables exported:

  APPLICATION   image to run in, e.g. openfoam:1912
  COMMAND       what node 0 runs, e.g. "mpirun simpleFoam -parallel"
  JOBDIR        directory it runs in, on a file system that all hosts share

and, if you like:

  STAGE_IN      files and directories to copy into JOBDIR first, or patterns of them
  STAGE_OUT     what to copy out of JOBDIR at the end, relative to it, or patterns
  STAGE_OUT_TO  the directory that gets it, this one if not set
                With STAGE_IN or STAGE_OUT, a job without JOBDIR gets the site's scratch space
  HOSTFILE      also write a hostfile here, relative to JOBDIR (e.g. system/machines)
  WALLCLOCK     [hours:]minutes after which the job ends, at most the site's limit
  DOCKERJOB_ENVIRONMENT  names of further variables to pass to COMMAND
  DOCKERJOB_VERBOSE=1    show how the containers find each other, too
  DOCKERJOB_TERMINAL=0   COMMAND gets no terminal, also where this has one
  DOCKERJOB_BATCH        the batch system, where the job looks like one of several: {names}

The hosts and slots come from the batch system:

{sources}

MPI finds them without any flag; 'ssh <node>' works between the containers.

In an interactive job (bsub -Is, salloc, srun --pty, qlogin) COMMAND has the terminal:
with COMMAND=bash it is a shell in node 0.

Exit status: that of COMMAND, 128+n if signal n ended it.  200..205: the request, the
site's policy or configuration, discovery, or the wall-clock; 206: results could not be
copied and stay where they are, 207: inputs could not be copied; 210..212: a host, etcd or
the network pool, 213: the batch system, and 214: the image registry, where another try
may succeed.  See docs/exit-status.md.
""".format(
    names=", ".join(SYSTEMS),
    sources="\n".join(f"  {system.title + ':':13}{system.hosts_from}" for system in SYSTEMS.values()),
)


def main() -> None:
    """Entry point of ``hpc_submit_dockerjob``."""
    parser = argparse.ArgumentParser(
        prog="hpc_submit_dockerjob", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="read and check the request, start nothing")
    parser.add_argument(
        "--stage-out",
        action="store_true",
        help="copy STAGE_OUT out of JOBDIR, where it has stayed; start nothing",
    )
    arguments = parser.parse_args()
    try:
        if arguments.stage_out or is_staged(os.environ):
            # Other jobs do without the time that this takes.
            from .staging import main as staged

            sys.exit(staged(os.environ, check=arguments.check, stage_out=arguments.stage_out))
        request = request_from_environment(os.environ, terminal_of(os.environ))
        if arguments.check:
            print(f"job {request.allocation.job_id}: {request.application} on {describe_hosts(request)}")
            sys.exit(0)
        status = check_refusal(call_broker(request))
    except DockerjobError as error:
        say(str(error))
        status = error.exit_status
    sys.exit(status)


def say(text: str) -> None:
    """Write one line for the user on standard error."""
    write_error(f"hpc_submit_dockerjob: {text}\n")


def write_error(text: str) -> None:
    """Write on standard error as it is, if that can be.

    On a full disk or a terminal that is gone it can't, which must cost nobody results or the exit status.
    Not by ``print``: what Python can't write at the end makes the exit status 120.
    """
    if sys.stderr:  # else the descriptor is another file's
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))


def is_staged(environment: Mapping[str, str]) -> bool:
    """Tell whether data are to be copied for the job: by its variables, or because JOBDIR is on this host only."""
    staged = any(environment.get(name, "").strip() for name in ("STAGE_IN", "STAGE_OUT", "STAGE_OUT_TO"))
    return staged or is_local(environment.get("JOBDIR", ""))


def is_local(jobdir: str, site_file: Path = SITE_FILE) -> bool:
    """Tell whether *jobdir* lies where the site says that each host has a disk of its own."""
    if not os.path.isabs(jobdir.strip()):
        return False
    path = os.path.realpath(jobdir.strip()) + "/"
    return any(path.startswith(f"{local.rstrip('/')}/") for local in site_setting(LOCAL, site_file).split())


def describe_hosts(request: JobRequest) -> str:
    """Name the hosts of the request for people: ``node1 (2 slots), node2 (2 slots)``."""
    return ", ".join(f"{host.name} ({host.slots} slots)" for host in request.allocation.hosts)


def terminal_of(environment: Mapping[str, str]) -> Terminal | None:
    """Describe the terminal that COMMAND shall have: this process's, if it has one and nobody is against it."""
    if environment.get("DOCKERJOB_TERMINAL") == "0" or not (os.isatty(0) and os.isatty(1)):
        return None
    from .terminal import find_terminal

    return find_terminal(environment)


def request_from_environment(environment: Mapping[str, str], terminal: Terminal | None = None) -> JobRequest:
    """Build the request from the job's environment, and the terminal that COMMAND shall have.

    Raises:
        RequestError: a variable is missing, empty or wrong; the message names it.
    """
    for variable, purpose in (
        ("APPLICATION", "the image to run in, e.g. openfoam:1912"),
        ("COMMAND", "what node 0 shall run"),
        ("JOBDIR", "the directory COMMAND runs in"),
    ):
        if not environment.get(variable, "").strip():
            raise RequestError(f"{variable} is not set; export it in the submit script: {purpose}")
    passed = environment.get("DOCKERJOB_ENVIRONMENT", "").replace(",", " ").split()
    missing = [name for name in passed if name not in environment]
    if missing:
        raise RequestError(f"DOCKERJOB_ENVIRONMENT names {missing[0]}, which is not set")
    allocation = read_allocation(environment)
    names = ("OMP_NUM_THREADS", *array_variables(allocation), *passed)
    return JobRequest(
        allocation=allocation,
        application=environment["APPLICATION"].strip(),
        command=os.fsencode(environment["COMMAND"]),
        jobdir=resolve_jobdir(environment["JOBDIR"]),
        hostfile=environment.get("HOSTFILE") or None,
        environment={name: environment[name] for name in names if name in environment},
        wall_clock=parse_wall_clock(environment.get("WALLCLOCK", "")),
        verbose=environment.get("DOCKERJOB_VERBOSE", "") not in ("", "0"),
        terminal=terminal,
    )


def resolve_jobdir(text: str) -> str:
    """Return JOBDIR without symbolic links, after checking it with the user's own rights."""
    if not os.path.isabs(text):
        raise RequestError(f"JOBDIR={text!r} is not an absolute path")
    try:
        path = Path(text).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RequestError(f"JOBDIR={text}: {reason}; create it on the shared file system first") from error
    if not path.is_dir():
        raise RequestError(f"JOBDIR={text} is not a directory")
    if not os.access(path, os.R_OK | os.X_OK):
        raise RequestError(f"JOBDIR={text}: you may not read it")
    return str(path)


def parse_wall_clock(text: str) -> int | None:
    """Seconds of LSF's ``[hours:]minutes``; None for an empty text."""
    if not text.strip():
        return None
    match = re.fullmatch(r"(?:([0-9]{1,4}):)?([0-9]{1,6})", text.strip())
    if not match:
        raise RequestError(f"WALLCLOCK={text!r} is not [hours:]minutes")
    return (int(match[1] or 0) * 60 + int(match[2])) * 60


def call_broker(request: JobRequest) -> int:
    """Run the broker through sudo, pass signals on to it, and return the exit status.

    It may be sudo's: see :func:`check_refusal`.
    """
    stdout, stderr = None, None
    if request.terminal:
        from . import terminal

        stdout, stderr = terminal.streams()
    forward = _Forward()
    forward.install()
    process = start_broker(stdout, stderr)
    pipe = process.stdin
    assert pipe is not None  # noqa: S101  # stdin=PIPE
    _send(pipe, request.to_json())
    forward.to(pipe)
    code = terminal.Session(process, partial(_send, pipe)).run() if request.terminal else process.wait()
    return _exit_status(code)


def start_broker(stdout: int | None = None, stderr: int | None = None) -> subprocess.Popen[bytes]:
    """Start the broker through sudo, with a pipe to its standard input; the others are this process's by default.

    The broker gets a session of its own: a signal to this process group reaches it once,
    through us, and if we are killed it sees the end of its input and takes the job down.

    Raises:
        ConfigError: there is no sudo.
    """
    try:
        return subprocess.Popen(
            broker_argv(), stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, start_new_session=True
        )
    except OSError as error:
        raise ConfigError(f"can't start {SUDO}: {error.strerror}") from error


def broker_argv(*options: str) -> list[str]:
    """Return the command line that calls the broker, with *options* of sudo's."""
    broker = str(Path(sys.executable).parent / "dockerjob-broker")
    return [SUDO, "-n", "-u", SERVICE_ACCOUNT, *options, "--", broker]


def check_refusal(status: int) -> int:
    """Return the exit status of the call, if it is the broker's.

    Raises:
        ConfigError: it is sudo's, which does not let this user call the broker.
    """
    if status == SUDO_REFUSES and not _may_call():
        raise ConfigError(
            f"sudo does not let you call the broker on {os.uname().nodename}; "
            "is this a submit host? cluster_setup.yml installs the rule"
        )
    return status


def _may_call() -> bool:
    """Ask sudo, which may have to ask a directory service; one that doesn't answer has not refused."""
    try:
        return not subprocess.run(broker_argv("-l"), capture_output=True, timeout=SUDO_PATIENCE).returncode
    except subprocess.TimeoutExpired:
        return True


class _Forward:
    """Passes signals on to the broker; those that come before it is there wait for it."""

    def __init__(self) -> None:
        self._early: list[int] = []
        self._pipe: IO[bytes] | None = None

    def install(self) -> None:
        for number in FORWARDED:
            signal.signal(number, self._take)

    def to(self, pipe: IO[bytes]) -> None:
        """Pass on what has come and what comes; the request has been sent."""
        self._pipe = pipe
        while self._early:
            self._take(self._early.pop(0), None)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self._pipe is None:
            self._early.append(number)
        else:
            # One short write to a pipe: atomic, so the handler may run in the midst of anything.
            _send(self._pipe, json.dumps({"signal": number}).encode() + b"\n")


def _send(pipe: IO[bytes], line: bytes) -> None:
    view = memoryview(line)
    try:
        while view:
            view = view[os.write(pipe.fileno(), view) :]
    except BrokenPipeError:
        # The broker has ended; its exit status, which we are about to read, says why.
        return


def _exit_status(code: int) -> int:
    return 128 - code if code < 0 else code
