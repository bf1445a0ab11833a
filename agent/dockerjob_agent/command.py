# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""COMMAND: started on the master, with the container's own output, in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from dockerjob_core.errors import RequestError

from .spec import JobSpec

EXIT_STATUS_NAME = "exit_status"
KILL_AFTER = 2.0
"""Seconds COMMAND gets between TERM and KILL when its job is over."""


def exit_status(returncode: int) -> int:
    """Turn ``Popen.returncode`` into the status a shell would report: 128+n for signal n."""
    return returncode if returncode >= 0 else 128 - returncode


class Command:
    """The user's COMMAND while it runs."""

    def __init__(self, spec: JobSpec, text: bytes, environment: Mapping[str, str]) -> None:
        """Start it.

        Raises:
            RequestError: It could not be started: no such shell, or JOBDIR is not there.
        """
        # PID 1's output is the container's, which docker reads. supervisord must not stand in
        # between: it would hold lines back and stop the program when it is busy.
        with open("/proc/1/fd/1", "wb", buffering=0) as out, open("/proc/1/fd/2", "wb", buffering=0) as err:
            try:
                self._process = subprocess.Popen(
                    [os.fsencode(spec.shell), b"-c", text],
                    cwd=spec.jobdir,
                    env={**environment, "PWD": spec.jobdir, "SHELL": spec.shell},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    # A group, not a session: a group without a parent in its session would ignore TSTP.
                    process_group=0,
                )
            except OSError as error:
                raise RequestError(f"COMMAND could not be started in {spec.jobdir}: {error}") from error

    @property
    def pid(self) -> int:
        """Process id of the shell, and of the process group."""
        return self._process.pid

    def when_done(self, callback: Callable[[int], None]) -> None:
        """Call *callback* with the exit status, from a thread, once COMMAND has ended."""

        def wait() -> None:
            callback(exit_status(self._process.wait()))

        threading.Thread(target=wait, name="COMMAND", daemon=True).start()

    def signal(self, number: int) -> None:
        """Send a signal to COMMAND's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> int:
        """End it: TERM, and KILL for what is left after :data:`KILL_AFTER` seconds."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=KILL_AFTER)
        self.signal(signal.SIGKILL)
        return exit_status(self._process.wait())


def read_command(directory: Path) -> bytes:
    """Read COMMAND, byte for byte as the user gave it."""
    return (directory / "command").read_bytes()
