# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A person at a terminal: pexpect, and what tests of interactive jobs ask of it."""

from __future__ import annotations

import re
import termios
from collections.abc import Sequence

import pexpect  # type: ignore[import-untyped]

WIDE = (40, 500)
"""So that no line wraps."""

SLEEP = "sh -c 'echo sleeps $((1+1)); exec sleep 1000'", r"sleeps 2\s"
"""A line to a shell, and what is seen when its program has the terminal: keys would act on the shell before."""


class Person:
    """Somebody who types and reads, at a terminal whose first process is *argv*."""

    def __init__(self, argv: Sequence[str], timeout: float = 60) -> None:
        """Start it; each expectation may take *timeout* seconds."""
        self.child = pexpect.spawn(argv[0], [*argv[1:]], timeout=timeout, dimensions=WIDE, maxread=65536)
        # A person needs no pause before each key.
        self.child.delaybeforesend = None

    def sees(self, pattern: str) -> re.Match[bytes]:
        """Wait until *pattern* is on the screen; return the match."""
        try:
            self.child.expect(pattern.encode())
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            raise AssertionError(f"no {pattern!r} in {self.child.before!r}") from error
        match = self.child.match
        assert isinstance(match, re.Match)
        return match

    def types(self, keys: str) -> None:
        self.child.send(keys)

    def asks(self, line: str, pattern: str) -> re.Match[bytes]:
        """Type a line, and wait for the answer; *pattern* must not be in the line as it is echoed."""
        self.types(f"{line}\r")
        return self.sees(pattern)

    def state(self) -> list[object]:
        """The terminal's attributes."""
        return termios.tcgetattr(self.child.fileno())

    def leaves(self) -> None:
        """Hang up, if it has not ended."""
        self.child.close(force=True)

    def ends(self) -> int:
        """Wait for the end; return the exit status, 128+n for a signal."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        signal = self.child.signalstatus
        return int(self.child.exitstatus if signal is None else 128 + signal)


def within(pid: int, *argv: str) -> list[str]:
    """Return what runs *argv* in a host, whose first process is *pid*, with the terminal as its own."""
    return ["nsenter", "-t", str(pid), "-a", "env", "--chdir=/", "setsid", "--ctty", "--wait", *argv]
