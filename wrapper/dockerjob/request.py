# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What passes between the wrapper (the user) and the broker (the service account).

The wrapper writes one JSON line, the request, to the broker's standard input, and then
one line per signal it gets.  The end of that stream means that the wrapper is gone.
With :data:`CHECK` before the request, the broker only says whether it would take it.
Everything in a request is a claim.  This module is imported by the wrapper, which has to
start fast, so it has no dependency but the standard library; the broker validates.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from dockerjob_core.allocation import Allocation, merge_hosts
from dockerjob_core.errors import RequestError

SUDO = "/usr/bin/sudo"
SERVICE_ACCOUNT = "dockerjob"
"""The account that brokers and reapers run as; sudo's one rule leads to it."""

MAX_COMMAND = 128 * 1024 - 1
"""What execve(2) takes as one argument, with the NUL at its end (MAX_ARG_STRLEN); of a variable, too."""

CHECK = b"check "

MAX_REQUEST = 1024 * 1024
MAX_WALL_CLOCK = 366 * 24 * 3600
SHOWN = 200
"""Characters of a wrong value that a message shows."""

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")
_APPLICATION = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?")


@dataclasses.dataclass(frozen=True)
class Terminal:
    """The user's terminal, for COMMAND.

    Attributes:
        rows: lines of its window; 0 if it doesn't know.
        columns: characters of a line; 0 if it doesn't know.
        kind: TERM, its name in terminfo(5).
    """

    rows: int
    columns: int
    kind: str

    def __post_init__(self) -> None:
        """Refuse what no terminal is."""
        if not all(0 <= number <= 0xFFFF for number in (self.rows, self.columns)):
            raise RequestError(f"a terminal can't have {self.rows} rows and {self.columns} columns")
        if not _TERM.fullmatch(self.kind):
            raise RequestError(f"TERM={self.kind[:SHOWN]!r} is no kind of terminal")


@dataclasses.dataclass(frozen=True)
class JobRequest:
    """One job, as its user asked for it.

    Attributes:
        allocation: the hosts that the batch system is said to have given.
        application: name of the application image, ``openfoam:1912``.
        command: COMMAND, byte for byte.
        jobdir: absolute path of the directory COMMAND runs in.
        hostfile: where to write a hostfile as well, relative to *jobdir*, or None.
        environment: variables for COMMAND.
        wall_clock: seconds the job may run, or None for the site's default.
        verbose: show the agents' log lines too.
        terminal: the terminal that COMMAND shall have, or None.
    """

    allocation: Allocation
    application: str
    command: bytes
    jobdir: str
    hostfile: str | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    wall_clock: int | None = None
    verbose: bool = False
    terminal: Terminal | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be a job, one clear line each."""
        if not _APPLICATION.fullmatch(self.application):
            raise RequestError(
                f"APPLICATION={self.application[:SHOWN]!r} is no image name; expected NAME or NAME:TAG"
            )
        if not self.command.strip():
            raise RequestError("COMMAND is empty; set it to what node 0 shall run")
        if len(self.command) > MAX_COMMAND or b"\0" in self.command:
            raise RequestError(f"COMMAND is longer than {MAX_COMMAND} bytes or holds a NUL")
        _check_path("JOBDIR", self.jobdir, absolute=True)
        if self.hostfile is not None:
            _check_path("HOSTFILE", self.hostfile, absolute=False)
        for name, value in self.environment.items():
            if not _VARIABLE_NAME.fullmatch(name) or not _can_be_value(name, value):
                raise RequestError(f"{name!r} can't be an environment variable, or its value can't be one's")
        if self.wall_clock is not None and not 0 < self.wall_clock <= MAX_WALL_CLOCK:
            raise RequestError(f"WALLCLOCK of {self.wall_clock} s is not between 1 s and a year")

    @property
    def job_id(self) -> str:
        """The job id of the allocation."""
        return self.allocation.job_id

    def to_json(self) -> bytes:
        """Return the request as one line of JSON."""
        allocation = dataclasses.asdict(self.allocation)
        allocation["hosts"] = [[host.name, host.slots] for host in self.allocation.hosts]
        document = {
            "allocation": allocation,
            "application": self.application,
            "command": base64.b64encode(self.command).decode(),
            "jobdir": self.jobdir,
            "hostfile": self.hostfile,
            "environment": dict(self.environment),
            "wall_clock": self.wall_clock,
            "verbose": self.verbose,
            "terminal": self.terminal and [self.terminal.rows, self.terminal.columns, self.terminal.kind],
        }
        return json.dumps(document).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> JobRequest:
        """Parse what :meth:`to_json` made; nothing in it is trusted to have the right form.

        Raises:
            RequestError: it is not such a document.
        """
        try:
            document = json.loads(line)
            claim = document.pop("allocation")
            pairs = [(_typed(name, str), _typed(slots, int)) for name, slots in claim.pop("hosts")]
            allocation = Allocation(
                scheduler=_typed(claim.pop("scheduler"), str),
                number=_typed(claim.pop("number"), int),
                array_index=_typed(claim.pop("array_index"), int, type(None)),
                hosts=merge_hosts(pairs, "the request"),
                name=_typed(claim.pop("name"), str),
            )
            # Raises ValueError for numbers that can't be a job's.
            _ = allocation.job_id
            request = cls(
                allocation=allocation,
                application=_typed(document.pop("application"), str),
                command=base64.b64decode(_typed(document.pop("command"), str), validate=True),
                jobdir=_typed(document.pop("jobdir"), str),
                hostfile=_typed(document.pop("hostfile"), str, type(None)),
                environment={
                    _typed(name, str): _typed(value, str)
                    for name, value in document.pop("environment").items()
                },
                wall_clock=_typed(document.pop("wall_clock"), int, type(None)),
                verbose=_typed(document.pop("verbose"), bool),
                terminal=_terminal(_typed(document.pop("terminal"), list, type(None))),
            )
            if unknown := [*document, *claim]:
                raise ValueError(f"{unknown[0][:40]!r} is not part of a request")
            return request
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RequestError(f"the request to the broker is malformed: {error}") from error


def _terminal(claim: list[Any] | None) -> Terminal | None:
    if claim is None:
        return None
    rows, columns, kind = claim
    return Terminal(_typed(rows, int), _typed(columns, int), _typed(kind, str))


def _typed(value: Any, *types: type) -> Any:
    # bool is a kind of int in Python, but not in a request.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise TypeError(f"{value!r} is no {types[0].__name__}")
    return value


def _can_be_value(name: str, value: str) -> bool:
    """Tell whether the value can be put in an environment; bytes that are no UTF-8 come as lone surrogates."""
    try:
        size = len(f"{name}={value}".encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False
    return size <= MAX_COMMAND and "\0" not in value


def _check_path(variable: str, path: str, *, absolute: bool) -> None:
    pure = PurePosixPath(path)
    if not path or "\0" in path or len(path) > 4096 or pure.is_absolute() != absolute or ".." in pure.parts:
        kind = "an absolute path" if absolute else "a path relative to JOBDIR"
        raise RequestError(f"{variable}={path[:SHOWN]!r} is not {kind} without '..'")
    if path.encode("utf-8", "replace").decode() != path:
        raise RequestError(f"{variable}={path[:SHOWN]!r} is not valid UTF-8")
