# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""COMMAND's output on its way to the batch system: byte for byte, both streams apart.

``docker logs --follow`` has one flaw (seen with dockerd 20.10): a last line without a
newline is written to the log as the container ends, and the follower may see the end
first.  So the last bytes that passed are kept, and whoever reads the log again at the end
can have what is missing written: see :meth:`Output.complete`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

from dockerjob_core.container import LOG_ENTRY_BYTES

CHUNK = 65536
PIECE = 16384
"""Bytes of a line in one entry of dockerd's log, which has a longer one in pieces."""

KEPT = 2 * PIECE
"""Bytes of a stream that are kept: the two entries that are read again, at their longest."""

RESTART_AFTER = 1.0
"""Seconds after which a follower that failed is started again."""

LAST_WORD = re.compile(
    rb"[^\n]*(error from daemon|cannot connect to the docker daemon)[^\n]*\n\Z", re.IGNORECASE
)
"""What ``docker logs`` says on its standard error when the daemon goes away under it."""

PATIENCE = 10.0
"""Seconds in which somebody must read what is written after the end of the job."""


def write_patiently(target: int, data: bytes, patience: float = PATIENCE) -> bool:
    """Write *data*; give up when nobody has read for *patience* seconds, and say whether all was written.

    A user who never reads must not hold up what comes after.  A pipe that poll(2) calls writable
    takes :data:`select.PIPE_BUF` bytes without blocking.
    """
    writable = select.poll()
    writable.register(target, select.POLLOUT)
    for begin in range(0, len(data), select.PIPE_BUF):
        view = memoryview(data)[begin : begin + select.PIPE_BUF]
        try:
            while view:
                if not writable.poll(patience * 1000):
                    return False
                view = view[os.write(target, view) :]
        except OSError:
            return False
    return True


def say(line: str) -> None:
    """Write one line to the user's standard error; a reader that is gone or asleep is no reason to stop."""
    write_patiently(2, line.encode(errors="backslashreplace") + b"\n")


class Output:
    """The follower and the two streams that it is copied to.

    A follower that fails, because the Docker daemon is restarted under a container that lives on,
    is started again, and what has passed already is passed over.
    """

    def __init__(
        self,
        argv: Sequence[str],
        on_end: Callable[[int, bool], None],
        targets: tuple[int, int] = (1, 2),
        limit: float = math.inf,
    ) -> None:
        """Start *argv* and copy its output and error to the file descriptors *targets*.

        When it has ended well, or is stopped, *on_end* is called from a thread, with its exit status and
        whether it was stopped because more than *limit* bytes of dockerd's log have passed.
        """
        self._argv = argv
        self._limit = limit
        self._on_end = on_end
        self._moved = time.monotonic()
        self._over = threading.Event()
        self._stopped = threading.Event()
        self._streams = tuple(_Stream(target, self._has_moved) for target in targets)
        self._process = self._start()
        threading.Thread(target=self._follow, name="output", daemon=True).start()

    def wait(self, patience: float) -> bool:
        """Wait for the end of the output; give up when nothing has moved for *patience* seconds."""
        self._has_moved()
        while not self._over.wait(max(0.0, self._moved + patience - time.monotonic())):
            if time.monotonic() > self._moved + patience:
                return False
        return True

    def complete(self, last: Sequence[bytes]) -> None:
        """Write the last line of each stream if it has no newline and has not come through.

        Args:
            last: the end of the container's log, its standard output and its standard error.
        """
        if self._over.is_set() and not self.too_much:
            for stream, end in zip(self._streams, last, strict=True):
                stream.complete(end)

    def stop(self) -> None:
        """End the follower for good; harmless when it has ended."""
        self._stopped.set()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    @property
    def too_much(self) -> bool:
        """Whether there was more than the limit: the rest has not been written."""
        return sum(stream.logged for stream in self._streams) > self._limit

    def _has_moved(self) -> None:
        self._moved = time.monotonic()
        if self.too_much:
            self.stop()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def _follow(self) -> None:
        while (status := self._copy()) and not self._stopped.wait(RESTART_AFTER):
            self._process = self._start()
        self._over.set()
        self._on_end(status, self.too_much)

    def _copy(self) -> int:
        process = self._process
        assert process.stdout and process.stderr  # noqa: S101, PT018  # both are PIPE
        threads = [
            threading.Thread(target=stream.copy, args=(source,), daemon=True)
            for stream, source in zip(self._streams, (process.stdout, process.stderr), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return process.wait()


class _Stream:
    """One stream; a reader that is gone is no reason to stop the job."""

    def __init__(self, target: int, has_moved: Callable[[], None]) -> None:
        self._target = target
        self._has_moved = has_moved
        self._last = b""
        self._passed = 0
        self._lines = 0

    @property
    def logged(self) -> int:
        """Bytes that what has passed takes in dockerd's log, at most."""
        return self._passed + LOG_ENTRY_BYTES * (self._lines + self._passed // PIECE)

    def complete(self, end: bytes) -> None:
        rest = end.rpartition(b"\n")[2]
        came = next(n for n in range(len(rest), -1, -1) if self._last.endswith(rest[:n]))
        write_patiently(self._target, rest[came:])

    def copy(self, source: IO[bytes]) -> None:
        """Copy *source* to its end, but for as many bytes as have been copied before."""
        if word := LAST_WORD.search(self._last):
            # The follower's own, and not of COMMAND's output.
            self._passed -= len(word[0])
            self._last = self._last[: word.start()]
        skip = self._passed
        while chunk := os.read(source.fileno(), CHUNK):
            new = chunk[skip:]
            skip -= len(chunk) - len(new)
            if new:
                self._passed += len(new)
                self._lines += new.count(b"\n")
                self._last = (self._last + new)[-KEPT:]
                self._write(new)
            self._has_moved()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while view:
                view = view[os.write(self._target, view) :]
