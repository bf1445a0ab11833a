# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's terminal, while COMMAND has it; batch jobs don't load this file.

Until COMMAND begins the terminal is as it was, but that Ctrl-Z and Ctrl-\\ do nothing: Ctrl-C ends the
job.  While COMMAND has it, it is raw: every byte goes to the terminal in node 0, which makes signals of
the ones that are.  Whatever ends that, the terminal is as before when the broker's last words are written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import termios
import tty
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from dockerjob_core.terminal_lines import (
    BEGUN,
    ENDED,
    TYPED,
    WINDOW,
    Data,
    Lines,
    Size,
    Taken,
    Word,
    encode,
)

from ..request import Terminal

IN, OUT, ERR = 0, 1, 2
KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")
PIPE_BYTES = 65536
"""What a pipe holds (pipe(7))."""

Attributes = list[Any]
"""What termios.tcgetattr() returns."""


def find_terminal(environment: Mapping[str, str]) -> Terminal | None:
    """Describe the terminal that standard input and output are; None if it is not ours to use: in the background."""
    if not is_foreground():
        return None
    kind = environment.get("TERM", "")
    rows, columns = termios.tcgetwinsize(OUT)
    return Terminal(rows, columns, kind if KIND.fullmatch(kind) else "dumb")


def is_foreground() -> bool:
    """Tell whether the terminal is this process group's now; one that is nobody's is, too."""
    try:
        return os.tcgetpgrp(IN) == os.getpgrp()
    except OSError:
        return True


def streams() -> tuple[int, int | None]:
    """Return how the broker's output and error are connected: to us, for we know when they may be written."""
    # Standard error that is a file needs no care.
    return subprocess.PIPE, subprocess.PIPE if os.isatty(ERR) else None


class Session:
    """One job at this terminal."""

    def __init__(self, broker: subprocess.Popen[bytes], send: Callable[[bytes], None]) -> None:
        """Use *send* for lines to the broker; it must be callable from a signal handler."""
        assert broker.stdout  # noqa: S101  # stdout=PIPE
        self._broker = broker
        self._send = send
        self._out: int | None = broker.stdout.fileno()
        self._err: int | None = broker.stderr.fileno() if broker.stderr else None
        self._lines = Lines()
        self._credit = WINDOW
        self._raw = False
        self._hung_up = False
        self._saved: Attributes = termios.tcgetattr(IN)

    def run(self) -> int:
        """Copy until the broker has ended, and return its exit status as Popen has it."""
        with self._handlers(), open(os.pidfd_open(self._broker.pid), "rb", buffering=0) as end:
            try:
                self._apply()
                while not self._round(end.fileno()):
                    pass
            finally:
                self._restore()
        return self._broker.wait()

    # -- the terminal's state --------------------------------------------------------------

    def _apply(self) -> None:
        """Put the terminal into the state that it should have now; from the background that would stop us."""
        if not is_foreground():
            return
        with contextlib.suppress(termios.error):
            if self._raw:
                tty.setraw(IN, termios.TCSADRAIN)
            else:
                termios.tcsetattr(IN, termios.TCSADRAIN, without_stops(self._saved))

    def _restore(self) -> None:
        self._raw = False
        if is_foreground():
            with contextlib.suppress(termios.error):
                termios.tcsetattr(IN, termios.TCSADRAIN, self._saved)

    @contextlib.contextmanager
    def _handlers(self) -> Iterator[None]:
        """Take the signals that concern a terminal, beside those that the wrapper passes on anyway."""
        go_on = signal.getsignal(signal.SIGCONT)

        def resized(_number: int, _frame: FrameType | None) -> None:
            self._send_size()

        def continued(number: int, frame: FrameType | None) -> None:
            # A shell has the terminal as it wants it while it has stopped us.
            self._apply()
            self._send_size()
            if callable(go_on):
                go_on(number, frame)

        def quit_(_number: int, _frame: FrameType | None) -> None:
            self._signal(signal.SIGTERM)

        mine = {signal.SIGWINCH: resized, signal.SIGCONT: continued, signal.SIGQUIT: quit_}
        before = {number: signal.signal(number, handler) for number, handler in mine.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # -- copying ---------------------------------------------------------------------------

    def _round(self, end: int) -> bool:
        """Wait for something to do and do it; say whether the broker has ended, with all that it wrote."""
        typing = self._raw and self._credit > 0 and not self._hung_up
        ready = wait_for(end, self._out, self._err, IN if typing else None)
        if self._out in ready:
            self._read_broker()
        if self._err in ready:
            # What was written to the other pipe before, comes before.
            for _ in range(2):
                if wait_for(self._out, patience=0):
                    self._read_broker()
            self._err = self._pass_on(self._err)
        if IN in ready:
            self._read_terminal()
        return ready == {end}

    def _read_broker(self) -> None:
        if self._out is None:
            return
        data = os.read(self._out, PIPE_BYTES)
        if not data:
            self._out = None
        for word in self._lines.feed(data):
            self._take(word)

    def _take(self, word: Word) -> None:
        if isinstance(word, Data):
            write(OUT, word.data)
        elif isinstance(word, Taken):
            self._credit += word.count
        elif word == BEGUN:
            self._raw = True
            self._apply()
            # It may have changed while nobody listened.
            self._send_size()
        elif word == ENDED:
            self._restore()

    def _pass_on(self, source: int | None) -> int | None:
        """Write what the broker says; return None at its end."""
        data = os.read(source, PIPE_BYTES) if source is not None else b""
        write(ERR, data.replace(b"\n", b"\r\n") if self._raw else data)
        return source if data else None

    def _read_terminal(self) -> None:
        try:
            data = os.read(IN, min(TYPED, self._credit))
        except OSError:
            data = b""
        if not data:
            self._hung_up = True
            self._signal(signal.SIGHUP)
            return
        self._credit -= len(data)
        self._send(encode(Data(data)))

    def _send_size(self) -> None:
        with contextlib.suppress(termios.error):
            self._send(encode(Size(*termios.tcgetwinsize(OUT))))

    def _signal(self, number: int) -> None:
        self._send(json.dumps({"signal": number}).encode() + b"\n")


def without_stops(attributes: Attributes) -> Attributes:
    """Return *attributes* without the keys that would stop or kill us: we could not say so to the broker."""
    *flags, keys = attributes
    keys = list(keys)
    keys[termios.VSUSP] = keys[termios.VQUIT] = b"\0"
    return [*flags, keys]


def wait_for(*descriptors: int | None, patience: float | None = None) -> set[int]:
    """Return which of *descriptors* can be read, or have ended, in *patience* seconds."""
    poll = select.poll()
    for descriptor in descriptors:
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if patience is None else patience * 1000)}


def write(target: int, data: bytes) -> None:
    """Write all of *data*; a terminal that is gone takes nothing."""
    view = memoryview(data)
    with contextlib.suppress(OSError):
        while view:
            view = view[os.write(target, view) :]
