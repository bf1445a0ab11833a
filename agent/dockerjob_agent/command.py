# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""COMMAND: started on the master, with the container's own output, in a process group of its own.

In an interactive job it has a terminal instead, and a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from dockerjob_core.errors import RequestError

from .spec import JobSpec, usable_shell

EXIT_STATUS_NAME = "exit_status"
TAKE_TERMINAL = b'exec "$@" <>"$0" >&0 2>&0'
"""For a shell that leads a session: the first terminal it opens becomes the session's own (tty_ioctl(4))."""

ENDING = (signal.SIGTERM, signal.SIGINT)
KILL_AFTER = 2.0
"""Seconds COMMAND gets between TERM and KILL when its job is over."""


def exit_status(returncode: int) -> int:
    """Turn ``Popen.returncode`` into the status a shell would report: 128+n for signal n."""
    return returncode if returncode >= 0 else 128 - returncode


class Command:
    """The user's COMMAND while it runs."""

    def __init__(
        self, spec: JobSpec, text: bytes, environment: Mapping[str, str], terminal: int | None = None
    ) -> None:
        """Start it, on *terminal* if it is a file descriptor.

        Raises:
            RequestError: It could not be started: no such shell, or JOBDIR is not there.
        """
        self._on_terminal = terminal is not None
        if terminal is not None:
            self._process = _start(spec, text, environment, (terminal,) * 3, on_terminal=True)
            return
        # PID 1's output is the container's, which docker reads. supervisord must not stand in
        # between: it would hold lines back and stop the program when it is busy.
        with open("/proc/1/fd/1", "wb", buffering=0) as out, open("/proc/1/fd/2", "wb", buffering=0) as err:
            streams = (subprocess.DEVNULL, out.fileno(), err.fileno())
            self._process = _start(spec, text, environment, streams, on_terminal=False)

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
        """Send a signal to COMMAND's process group.

        A shell at a terminal ignores what ends programs; it is told by SIGHUP, and tells its own.
        """
        if self._on_terminal and number in ENDING:
            number = signal.SIGHUP
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


def _start(
    spec: JobSpec,
    text: bytes,
    environment: Mapping[str, str],
    streams: tuple[int, int, int],
    *,
    on_terminal: bool,
) -> subprocess.Popen[bytes]:
    argv = [os.fsencode(spec.shell), b"-c", text]
    stdin, stdout, stderr = streams
    if on_terminal:
        # Not by setsid(1), which not every image has.
        opener = os.fsencode(usable_shell("/bin/sh"))
        argv = [opener, b"-c", TAKE_TERMINAL, os.fsencode(os.ttyname(stdin)), *argv]
    try:
        return subprocess.Popen(
            argv,
            cwd=spec.jobdir,
            env={**environment, "PWD": spec.jobdir, "SHELL": spec.shell},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            # A group, not a session: a group without a parent in its session would ignore TSTP.
            process_group=None if on_terminal else 0,
            start_new_session=on_terminal,
        )
    except OSError as error:
        raise RequestError(f"COMMAND could not be started in {spec.jobdir}: {error}") from error


def read_command(directory: Path) -> bytes:
    """Read COMMAND, byte for byte as the user gave it."""
    return (directory / "command").read_bytes()
