# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running programs, waiting, locking: the little that all parts of the lab share."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .model import LabError

CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
"""What a host's first process gets: nothing of the caller's own."""


TIME_SLICE = 100_000
"""Nanoseconds; the least that the kernel takes. All hosts share a few cores, and MPI spins."""
_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


def shorten_time_slice() -> None:
    """Give this process, and all that it will start, a short time slice (sched_setattr(2)).

    Linux before 6.12 takes the call and ignores the slice; where the call is not known, things
    are only slower.
    """
    number = _SYS_SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return
    # struct sched_attr: size, policy (SCHED_OTHER), flags, nice, priority, runtime, deadline, period.
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, nice, 0, TIME_SLICE, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def progress(text: str) -> None:
    """Tell on stderr what is being done."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(argv: Sequence[str], *, text: str = "", timeout: float = 60) -> str:
    """Run *argv* with *text* on stdin and return its stdout; raise :class:`LabError` if it fails."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed; run lab/bootstrap.sh") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)}: no end within {timeout:g} s") from error
    if done.returncode:
        raise LabError(
            f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll *condition* until it holds; False if it doesn't within *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def write_if_changed(path: Path, text: str, mode: int = 0o644) -> bool:
    """Let *path* hold *text*, all of it or what it held before; True if it did not."""
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Jobs that are submitted at the same time write the same files.
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text)
    new.chmod(mode)
    new.replace(path)
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on *path*, and remove the file at the end.

    Since the file goes away, whoever got the lock checks that the name still leads to
    the file it locked.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
