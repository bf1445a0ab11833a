# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``bsub``: hands a script, or a command, to Slurm as a job of LSF's."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from . import LsfError, control, job, queues, scheduler, site, spool, view
from .options import Options, array_of, parse, split_command

START = spool.ROOT / "libexec/start"
FEW = 0.3
"""Seconds between two looks at a job that is waited for."""


@dataclass(frozen=True)
class Submission:
    """What is submitted.

    Attributes:
        options: what is asked for, after esub.
        script: the script, empty if there is a command.
        command: the command line, empty if there is a script.
        variables: what esub has set.
        named_queue: whether the queue was named.
    """

    options: Options
    script: str
    command: str
    variables: dict[str, str]
    named_queue: bool

    def told(self) -> dict[str, Any]:
        """All that :mod:`.start` has to know; the environment in it is the user's own business."""
        mask = os.umask(0)
        os.umask(mask)
        return {
            "options": dataclasses.asdict(self.options),
            "script": self.script,
            "command": self.command,
            "variables": self.variables,
            "environment": dict(os.environ),
            "directory": os.getcwd(),
            "submit_host": socket.gethostname(),
            "stamp": int(time.time()),
            "umask": mask,
        }


def main() -> int:
    """Submit a job."""
    return view.command(_main, "bsub")


def _main(argv: Sequence[str]) -> int:
    submission = _read(argv)
    options = submission.options
    if not os.getuid():
        raise LsfError("Root user is not allowed to submit jobs")
    wanted = scheduler.request(
        options, array_of(options.job_name), scheduler.hosts() if options.hosts else []
    )
    told = submission.told()
    if options.interactive:
        return _interactive(submission, wanted, told)
    log = f"{job.Account.of(os.getuid()).home}/.lsbatch/res.log"
    os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
    quiet = ["--parsable", "--export=PATH", "--no-requeue", f"--output={log}", "--open-mode=append"]
    number = int(_submitted("sbatch", *quiet, *wanted, text=_script(told)))
    _note(number, told, submission)
    return _follow(number, options) if options.wait else 0


def _read(argv: Sequence[str]) -> Submission:
    words, command = split_command(argv)
    script = "" if command else sys.stdin.read()
    options = parse(script, words)
    queues.checked(options.queue)
    if options.interactive and array_of(options.job_name):
        raise LsfError("-I and a job array don't go together")
    options, variables = site.run_esubs(options, dict(os.environ))
    site.find_profile(options.application)
    if not command and not script.strip():
        raise LsfError("Empty job. Job not submitted.")
    queue_named = "-q" in words or bool(re.search(r"^#BSUB.*\s-q\s", script, re.MULTILINE))
    return Submission(options, script, job.command_line(command) if command else "", variables, queue_named)


def _submitted(*argv: str, text: str) -> str:
    try:
        return scheduler.run(*argv, text=text)
    except LsfError as error:
        raise LsfError(f"{error}. Job not submitted.") from error


def _script(told: dict[str, Any]) -> str:
    """The script of the Slurm job; what users wrote is in it as base64 only."""
    lines = base64.encodebytes(json.dumps(told).encode()).decode()
    return f"#!/bin/sh\nexec {START} <<'END'\n{lines}END\n"


def _note(number: int, told: dict[str, Any], submission: Submission) -> None:
    """Begin the record, without the environment, and tell the user."""
    spool.Record(number).create(
        {name: value for name, value in told.items() if name not in ("environment", "script")}
    )
    queue = submission.options.queue
    which = f"queue <{queue}>" if submission.named_queue else f"default queue <{queue}>"
    print(f"Job <{number}> is submitted to {which}.", flush=True)


def _say(text: str) -> None:
    print(f"<<{text}>>", file=sys.stderr, flush=True)


def _follow(number: int, options: Options) -> int:
    """Wait for the end of a job, as -K has it; being interrupted ends the job."""
    _say("Waiting for dispatch ...")
    record, array = spool.Record(number), array_of(options.job_name)
    indices = sorted(array.elements()) if array else [0]
    try:
        return _wait(record, indices)
    except KeyboardInterrupt:
        for seen in view.front(number):
            if not seen.finished:
                control.kill(seen, force=False)
        return _wait(record, indices)


def _wait(record: spool.Record, indices: Sequence[int]) -> int:
    said = False
    while True:
        ends = [record.end(index) for index in indices]
        begun = record.begun(indices[0])
        if begun and not said:
            _say(f"Starting on {begun['hosts'][0][0]}")
            said = True
        if None not in ends:
            break
        time.sleep(FEW)
    _say("Job is finished")
    return max(end.status for end in ends if end)


def _interactive(submission: Submission, wanted: Sequence[str], told: dict[str, Any]) -> int:
    """Run a job whose streams are those of this process.

    Slurm gives the hosts without a script; one step on the first of them is the job.
    """
    argv = ["salloc", "--no-shell", *wanted]
    waiting = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=scheduler.ENVIRONMENT)
    if waiting.stderr is None:
        raise LsfError("no pipe to salloc")
    number = _number(waiting.stderr)
    # From here on the hosts are given back, whatever happens.
    for name in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(name, _interrupted)
    try:
        _note(number, told, submission)
        _say("Waiting for dispatch ...")
        if waiting.wait():
            raise LsfError(f"Job <{number}> was not started")
        first = scheduler.rows(number)[0].hosts[0][0]
        _say(f"Starting on {first}")
        return _step(number, told, submission.options)
    finally:
        scheduler.run("scancel", str(number))


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _number(lines: IO[str]) -> int:
    """Slurm's number, from the first that salloc says; the rest is of no interest."""
    said = ""
    for said in lines:
        if match := re.search(r"(?:Pending|Granted) job allocation (\d+)", said):
            threading.Thread(target=lines.read, daemon=True).start()
            return int(match[1])
    raise LsfError(f"{said.strip().removeprefix('salloc: error: ')}. Job not submitted.")


def _step(number: int, told: dict[str, Any], options: Options) -> int:
    """Run the job on its first host and return its exit status."""
    path = spool.Record(number).directory / "start"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(told, file)
    one = ["--overlap", "--nodes=1", "--ntasks=1", "--relative=0", "--export=PATH", "--chdir=/"]
    argv = ["srun", f"--jobid={number}", "--quiet", *one]
    environment = {**scheduler.ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}
    if options.interactive == "Is" and sys.stdin.isatty():
        # srun has the terminal: it sends keys and sizes, and what it says itself would be in the way.
        return subprocess.run(
            [*argv, "--pty", str(START), str(path)], env=environment, stderr=subprocess.DEVNULL, check=False
        ).returncode
    return _streams(number, [*argv, str(START), str(path)], environment)


def _streams(number: int, argv: Sequence[str], environment: dict[str, str]) -> int:
    """Run srun where the keys of a terminal don't reach it; an interrupt is for the job."""
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stderr=pipe, env=environment, process_group=0) as process:
        if process.stdin is None or process.stderr is None:
            raise LsfError("no pipes to srun")
        threading.Thread(target=_copy_in, args=(process.stdin,), daemon=True).start()
        reader = threading.Thread(target=_copy_errors, args=(process.stderr,))
        reader.start()
        while True:
            try:
                status = process.wait()
                reader.join()
                return status
            except KeyboardInterrupt:
                for row in scheduler.rows(number):
                    scheduler.send(row, "INT")


def _copy_in(to: IO[bytes]) -> None:
    try:
        while block := os.read(0, 1 << 16):
            to.write(block)
            to.flush()
        to.close()
    except OSError:  # the job has ended, or doesn't read
        return


def _copy_errors(lines: IO[bytes]) -> None:
    """Hand on what the job writes to standard error, without what srun says of its end."""
    for line in lines:
        if not line.startswith((b"srun: ", b"slurmstepd: ")):
            os.write(2, line)
