# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An interactive job: the broker carries lines between the wrapper and COMMAND's terminal in node 0.

At the other end is ``dockerjob-agent terminal``, which ``docker exec`` has started as the user in the container: root
on the host opens nothing of the user's.  What comes from there goes to the wrapper as it is, for both are
the user's; what comes from the wrapper is read, bounded, and written anew.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from dockerjob_core.terminal_lines import ENDED, LONGEST_LINE, WINDOW, Data, Size, decode, encode

from ..request import Terminal

MOST_WAITING = 4 * WINDOW
"""Bytes for COMMAND that are kept; the wrapper's own are never more than the window, and some sizes."""

LAST_WORDS = 2000
"""Bytes that are kept of what ssh and docker say."""


class TerminalLink:
    """The way of the lines; :meth:`start` it when node 0 runs."""

    def __init__(self, terminal: Terminal, target: int = 1) -> None:
        """Write what comes from COMMAND to the file descriptor *target*."""
        self._target = target
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._moved = time.monotonic()
        self._over = threading.Event()
        self._said = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._put(encode(Size(terminal.rows, terminal.columns)))

    def take(self, line: bytes) -> None:
        """Pass on a line of the wrapper's if it is one for COMMAND; never blocks, and drops what is too much."""
        word = decode(line)
        if isinstance(word, Data | Size):
            self._put(encode(word))

    def start(self, argv: Sequence[str], on_lost: Callable[[str], None]) -> None:
        """Start the other end, *argv*; *on_lost* is told, from a thread, why it ended before COMMAND did."""
        self._process = process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        listening = threading.Thread(target=self._listen, args=(process,), daemon=True)
        listening.start()
        for target, arguments in ((self._type, (process,)), (self._copy, (process, listening, on_lost))):
            threading.Thread(target=target, args=arguments, name="terminal", daemon=True).start()

    def wait(self, patience: float) -> None:
        """Wait for the end of the output; give up when nothing has moved for *patience* seconds."""
        self._moved = time.monotonic()
        while self._process and not self._over.wait(max(0.0, self._moved + patience - time.monotonic())):
            if time.monotonic() > self._moved + patience:
                return

    def stop(self) -> None:
        """End it; harmless when it has ended."""
        self._queue.put(None)
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def _put(self, line: bytes) -> None:
        with self._lock:
            if self._waiting + len(line) <= MOST_WAITING:
                self._waiting += len(line)
                self._queue.put(line)

    def _type(self, process: subprocess.Popen[bytes]) -> None:
        """Write what was typed; the end of this pipe tells the other end to go."""
        assert process.stdin  # noqa: S101  # stdin=PIPE
        with contextlib.suppress(OSError), process.stdin as pipe:
            while line := self._queue.get():
                with self._lock:
                    self._waiting -= len(line)
                pipe.write(line)
                pipe.flush()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr  # noqa: S101  # stderr=PIPE
        while data := os.read(process.stderr.fileno(), 4096):
            self._said = (self._said + data)[-LAST_WORDS:]

    def _copy(
        self, process: subprocess.Popen[bytes], listening: threading.Thread, on_lost: Callable[[str], None]
    ) -> None:
        """Copy lines until COMMAND has ended; say so to the wrapper in any case."""
        assert process.stdout  # noqa: S101  # stdout=PIPE
        ended = False
        while line := process.stdout.readline(LONGEST_LINE):
            if decode(line) == ENDED:
                ended = True
                self._queue.put(None)
            else:
                self._write(line)
        # The line before may be half a one.
        self._write(b"\n" + encode(ENDED))
        self._over.set()
        status = process.wait()
        if not ended:
            listening.join(1)
            words = " ".join(self._said.decode(errors="replace").split())
            on_lost(words or f"ssh ended with {status}")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        # A wrapper that is gone ends the job by itself.
        with contextlib.suppress(OSError):
            while view:
                view = view[os.write(self._target, view) :]
                self._moved = time.monotonic()
