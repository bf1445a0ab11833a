# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying a job's data with rsync(1), by the user's own process: resumable, verified, with progress.

Names go to rsync over a pipe, separated by NUL: there is no shell, no limit of a command line,
and no name that could be taken for an option or for a remote host.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import time
from types import FrameType
from typing import IO

from dockerjob_core import names
from dockerjob_core.errors import ConfigError, StoppedError

from .cli import write_error

RSYNC = "/usr/bin/rsync"

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that end the copying; batch systems announce the end of a job's time by the last two."""

INTERVAL = 30.0
"""Seconds between two lines of progress in a file; a terminal shows each step in place."""

SHOWN = 65536
"""Bytes of rsync's messages that are looked at."""

_PROGRESS = re.compile(rb"\s*([0-9,]+)\s+([0-9]+%)\s+(\S+)")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What is copied where.

    Attributes:
        label: what messages call it: STAGE_IN or STAGE_OUT.
        root: directory that the names are relative to.
        names: files, and directories with all that is in them.
        target: the directory that gets them.
        keep_paths: whether they keep their directories below *root*, or only their last name.
        follow: whether links become what they lead to.
    """

    label: str
    root: str
    names: tuple[str, ...]
    target: str
    keep_paths: bool
    follow: bool

    def argv(self, *, verify: bool) -> list[str]:
        """Return rsync's command line.

        To *verify* is to compare both sides byte by byte, by checksums, and to copy what differs; else
        a file of the same size and time is taken to be the same.
        """
        return [
            RSYNC,
            "--recursive",
            "--copy-links" if self.follow else "--links",
            "--perms",
            "--times",
            # A file that was cut off is gone on with, and never seen under its own name.
            f"--partial-dir={names.STAGING_PARTIAL}",
            "--no-whole-file",
            # The share that is done is known from the beginning.
            "--no-inc-recursive",
            "--info=progress2",
            "--8-bit-output",
            "--from0",
            "--files-from=-",
            "--relative" if self.keep_paths else "--no-relative",
            *(["--checksum"] if verify else []),
            "--",
            f"{self.root}/",
            f"{self.target}/",
        ]


class Signals:
    """What comes while data are copied: the first signal that ends programs ends the copying."""

    def __init__(self) -> None:
        """Begin with none; see :meth:`install`."""
        self._number: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def install(self) -> None:
        """Take the signals; who ran before may have taken them for itself."""
        for number in ENDING:
            signal.signal(number, self._end)
        signal.signal(signal.SIGTSTP, self._suspend)

    def check(self) -> None:
        """Raise ``StoppedError`` if a signal has come that ends the job."""
        if self._number is not None:
            raise StoppedError(self._number)

    def run(self, argv: list[str], stdin: IO[bytes], stderr: IO[bytes], progress: Progress) -> int:
        """Run a program whose output is progress, and return its exit status.

        It has a process group of its own: USR2 to the wrapper's, from a batch system, would tell rsync's
        processes that all is done.

        Raises:
            ConfigError: there is no such program.
            StoppedError: a signal has come.
        """
        self.check()
        try:
            self._process = process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                process_group=0,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as error:
            raise ConfigError(
                f"can't start {argv[0]} on {os.uname().nodename}: {error.strerror}; cluster_setup.yml installs it"
            ) from error
        try:
            if self._number is not None:  # between the look above and now
                self._tell(signal.SIGTERM)
            assert process.stdout is not None  # noqa: S101  # stdout=PIPE
            while part := os.read(process.stdout.fileno(), 4096):
                progress.take(part)
            status = process.wait()
        finally:
            self._process = None
            process.stdout.close() if process.stdout else None
        progress.end()
        self.check()
        return status

    def _end(self, number: int, _frame: FrameType | None) -> None:
        if self._number is None:
            self._number = number
        self._tell(signal.SIGTERM)

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        self._tell(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._tell(signal.SIGCONT)

    def _tell(self, number: int) -> None:
        """Signal the first of rsync's processes, which tells the others its own way; stop and continue them all."""
        # Not yet waited for, so its number is nobody else's.
        if self._process and self._process.returncode is None:
            send = os.kill if number == signal.SIGTERM else os.killpg
            send(self._process.pid, number)


class Progress:
    """Shows on standard error how far rsync is."""

    def __init__(self, label: str) -> None:
        """*label* begins each line."""
        self._label = label
        self._live = os.isatty(2)
        self._shown = time.monotonic()
        self._said = False

    def take(self, part: bytes) -> None:
        """Read what rsync has written, of which the last step counts."""
        steps = _PROGRESS.findall(part)
        if not steps or not (self._live or time.monotonic() - self._shown >= INTERVAL):
            return
        self._shown = time.monotonic()
        done, share, speed = (text.decode() for text in steps[-1])
        line = f"hpc_submit_dockerjob: {self._label}: {share} done, {done} bytes, {speed}"
        write_error(f"\r{line}\033[K" if self._live else f"{line}\n")
        self._said = True

    def end(self) -> None:
        """Leave a terminal's line that was shown in place."""
        if self._live and self._said:
            write_error("\n")


def copy(transfer: Transfer, signals: Signals) -> str:
    """Copy, then compare both sides by their contents; return why that failed, empty if it did not.

    Raises:
        ConfigError: there is no rsync.
        StoppedError: a signal ended it; the next try goes on from there.
    """
    # From the root, wherever that is: one that begins with # would be a comment.
    listing = (f"/{name.lstrip('/')}" for name in transfer.names)
    with _memory(b"\0".join(map(os.fsencode, listing))) as listed:
        for verify in (False, True):
            listed.seek(0)
            with _memory() as messages:
                progress = Progress(f"{transfer.label}, comparing" if verify else transfer.label)
                status = signals.run(transfer.argv(verify=verify), listed, messages, progress)
                if status:
                    messages.seek(0)
                    return reason(messages.read(SHOWN), status)
    return ""


def reason(messages: bytes, status: int) -> str:
    """Return the first thing that rsync complains of, such as a full disk or quota, in the system's words."""
    for line in os.fsdecode(messages).splitlines():
        found = re.match(r"(?:rsync: |rsync error: )?(?:\[\w+\] )?(.+)", line)
        if found:
            return "".join(each if each.isprintable() else "?" for each in found[1])
    return f"rsync ended with status {status}"


def _memory(content: bytes = b"") -> IO[bytes]:
    file = os.fdopen(os.memfd_create("dockerjob"), "w+b")
    file.write(content)
    file.flush()
    return file
