# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a program: an argument list, a timeout, and an error that says what failed."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Completed:
    """What a program that ended left behind."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class CommandError(HostError):
    """A program is missing, ran too long, or ended with a status other than 0.

    Attributes:
        argv: the program and its arguments.
        reason: what it said on stderr, in one line.
    """

    def __init__(self, argv: Sequence[str], reason: str) -> None:
        """Say that *argv* failed because of *reason*."""
        self.argv = tuple(argv)
        self.reason = reason
        super().__init__(f"{shlex.join(argv)}: {reason}")


def one_line(text: str) -> str:
    """Join the non-empty lines of *text*, so that it fits into a one-line message."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def run(
    argv: Sequence[str], *, timeout: float = 30.0, input: str | None = None, check: bool = True
) -> Completed:
    """Run *argv* without a shell, in the C locale and with a fixed PATH.

    Args:
        argv: program and arguments.
        timeout: seconds after which the program is killed.
        input: text for its stdin; without it stdin is empty.
        check: raise if the exit status is not 0.

    Raises:
        CommandError: the program cannot be run, took too long, or (with *check*) failed.
    """
    environment = {"PATH": PATH, "LC_ALL": "C"}
    if "OVS_RUNDIR" in os.environ:  # how Open vSwitch's tools find daemons elsewhere than /run
        environment["OVS_RUNDIR"] = os.environ["OVS_RUNDIR"]
    try:
        done = subprocess.run(
            argv,
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(argv, f"no answer within {timeout:g} s") from error
    except OSError as error:
        raise CommandError(argv, error.strerror or str(error)) from error
    if check and done.returncode != 0:
        raise CommandError(argv, one_line(done.stderr) or f"exit status {done.returncode}")
    return Completed(tuple(argv), done.returncode, done.stdout, done.stderr)
