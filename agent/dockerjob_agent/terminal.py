# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""COMMAND's terminal: a pseudoterminal that ``dockerjob-agent terminal`` makes and gives to the agent.

The broker starts that program in node 0 (``docker exec``).  It keeps the pseudoterminal's master side, copies
between it and its own input and output, and passes the other side to the agent through a socket.  So
whatever ends it hangs COMMAND's terminal up, as the end of an ssh connection does: the kernel sends SIGHUP.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dockerjob_core.terminal_lines import (
    BEGUN,
    ENDED,
    WINDOW,
    WRITTEN,
    Data,
    Lines,
    Size,
    Taken,
    Word,
    encode,
)

from .spec import WRITABLE

SOCKET_NAME = "terminal"
ATTACH_TIME = 60.0
"""Seconds in which the agent must listen, from the start of the other program."""

GOODBYE = 10.0
"""Seconds that the last output has to get to the broker."""

UNSENT = 64 * 1024
"""Bytes of output above which no more is read from COMMAND's terminal."""

LAST_OUTPUT = 128 * 1024
"""Bytes that are read after COMMAND's end: the kernel keeps less, more is of what COMMAND has left running."""

QUIET = 0.2
"""Seconds without output after COMMAND's end that mean that there is no more."""


@dataclass(frozen=True)
class Attached:
    """COMMAND's side of the terminal has come: *slave*, by way of *peer*."""

    peer: socket.socket
    slave: int

    def begun(self) -> None:
        """Say that COMMAND has it; from now on it is COMMAND's alone."""
        os.close(self.slave)
        with contextlib.suppress(OSError):
            self.peer.send(b"\0")

    def ended(self) -> None:
        """Say that COMMAND has ended, and wait until its output has gone out."""
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_WR)
            self.peer.settimeout(GOODBYE)
            self.peer.recv(1)
        self.peer.close()


def await_terminal(directory: Path, on_attached: Callable[[Attached], None]) -> None:
    """Take the first terminal that comes to the socket in *directory*, in a thread."""
    path = directory / SOCKET_NAME
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def accept() -> None:
        with listener:
            peer, _ = listener.accept()
        path.unlink(missing_ok=True)
        _, descriptors, _, _ = socket.recv_fds(peer, 1, 1)
        if descriptors and os.isatty(descriptors[0]):
            on_attached(Attached(peer, descriptors[0]))

    threading.Thread(target=accept, name="terminal", daemon=True).start()


class Relay:
    """Copies between COMMAND's terminal and two pipes until COMMAND has ended, or the input has."""

    def __init__(self, master: int, agent: socket.socket, source: int = 0, target: int = 1) -> None:
        """Copy from *source* to *master*, and from there to *target*; *agent* ends when COMMAND does."""
        self._master, self._agent = master, agent
        self._source, self._target = source, target
        self._lines = Lines()
        self._typed = b""
        self._unsent = b""
        self._left = LAST_OUTPUT
        self._running = True
        self._connected = True
        self._hung_up = False
        for descriptor in (master, source, target):
            os.set_blocking(descriptor, False)

    def run(self) -> None:
        """Copy until it is over."""
        self._say(BEGUN)
        while self._connected and not self._round():
            pass
        self._say(ENDED)
        deadline = time.monotonic() + GOODBYE
        while self._connected and (left := deadline - time.monotonic()) > 0:
            self._hung_up, self._typed = True, b""
            self._act(self._ready(left))

    def take(self, words: list[Word]) -> None:
        """Do what came from the user's terminal."""
        for word in words:
            if isinstance(word, Data):
                # Who types more than may be on its way loses it.
                self._typed = (self._typed + word.data)[:WINDOW]
            elif isinstance(word, Size) and not self._hung_up:
                termios.tcsetwinsize(self._master, (word.rows, word.columns))

    def _round(self) -> bool:
        """Wait for something to do and do it; say whether COMMAND and all of its output are over."""
        ready = self._ready(None if self._running else QUIET)
        self._act(ready)
        if self._running or self._unsent:
            return False
        return self._hung_up or self._left <= 0 or self._master not in ready

    def _ready(self, patience: float | None) -> dict[int, int]:
        poll = select.poll()
        wanted = {
            self._source: select.POLLIN if self._connected else 0,
            self._agent.fileno(): select.POLLIN if self._running else 0,
            self._target: select.POLLOUT if self._unsent else 0,
            self._master: self._wanted_of_master(),
        }
        for descriptor, events in wanted.items():
            # Not registered with nothing: a terminal that is hung up would wake us for ever.
            if events:
                poll.register(descriptor, events)
        return dict(poll.poll(None if patience is None else patience * 1000))

    def _wanted_of_master(self) -> int:
        if self._hung_up:
            return 0
        may_read = len(self._unsent) < UNSENT and (self._running or self._left > 0)
        return (select.POLLIN if may_read else 0) | (select.POLLOUT if self._typed else 0)

    def _act(self, ready: dict[int, int]) -> None:
        if self._agent.fileno() in ready and not self._agent.recv(1):
            self._running = False
        if self._source in ready:
            self._read_source()
        if self._master in ready and not self._hung_up:
            self._serve_master(ready[self._master])
        if self._hung_up and self._typed:
            self._given(len(self._typed))
        if self._target in ready:
            self._send()

    def _read_source(self) -> None:
        data = os.read(self._source, 65536)
        if not data:
            self._connected = False
        self.take(self._lines.feed(data))

    def _serve_master(self, events: int) -> None:
        try:
            if events & select.POLLOUT and self._typed:
                self._given(os.write(self._master, self._typed))
            if events & (select.POLLIN | select.POLLHUP):
                data = os.read(self._master, WRITTEN)
                self._left -= 0 if self._running else len(data)
                self._say(Data(data))
        except BlockingIOError:
            return
        except OSError:
            # EIO: nobody has the other side open any more.
            self._hung_up = True

    def _given(self, count: int) -> None:
        self._typed = self._typed[count:]
        self._say(Taken(count))

    def _say(self, word: Word) -> None:
        self._unsent += encode(word)

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._target, self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._connected = False


def connect(directory: Path, patience: float) -> socket.socket:
    """Connect to the agent, which may still be starting.

    Raises:
        OSError: it does not listen within *patience* seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        agent = socket.socket(socket.AF_UNIX)
        try:
            agent.connect(str(directory / SOCKET_NAME))
        except (FileNotFoundError, ConnectionRefusedError):
            agent.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return agent


def first_size(source: int) -> Size:
    """Read the first line, which is the size of the window."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(source, 1)):
        line += byte
    words = Lines().feed(line)
    return words[0] if words and isinstance(words[0], Size) else Size(0, 0)


def main(directory: Path = WRITABLE) -> int:
    """Make the terminal, give it to the agent, and copy; the exit status is 1 if the agent didn't take it."""
    size = first_size(0)
    master, slave = os.openpty()
    termios.tcsetwinsize(master, (size.rows, size.columns))
    with connect(directory, ATTACH_TIME) as agent:
        socket.send_fds(agent, [b"\0"], [slave])
        # COMMAND begins when all nodes are ready.
        if not agent.recv(1):
            return 1
        os.close(slave)
        Relay(master, agent).run()
    return 0
