# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's directory on a host: ``ro/`` is root's, ``rw/`` belongs to the user.

The user's processes write in ``rw/`` while root reads from it and deletes it.  So root
goes by directory descriptors, opens nothing through a symbolic link, reads regular
files of the user's own up to a limit, and deletes without descending into what the
names say at a second look.  The directory itself is closed to everyone but root; the
container sees its two halves as mounts.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import command, names
from .errors import HostError
from .locks import lock_within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

READ_ONLY = "ro"
WRITABLE = "rw"
RUN = "run"
AGENT_LOG = "agent.log"
EXIT_STATUS = "exit_status"

WRITABLE_OPTIONS = "size=32m,nr_inodes=4096,mode=0700,nosuid,nodev,noexec"
"""Logs, keys and host files of the largest job take less than a tenth of it."""

LOG_BYTES = 256 * 1024
LOG_LINES = 200
STATUS_BYTES = 64
LOCK_TIMEOUT = 60
READERS_TIME = 0.2
RUN_BYTES = 32

SETTLED = 60.0
"""Seconds after which a directory that does not say whose run it is is no longer one that is just being made."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True)
class JobFile:
    """A file of the job's directory."""

    name: str
    content: bytes
    mode: int = 0o444
    owner: Literal["root", "user"] = "root"


@dataclass(frozen=True)
class JobDirectory:
    """The directory of one job below the runtime root, which is root's alone."""

    job_id: str
    runtime_root: str = names.RUNTIME_ROOT

    @property
    def path(self) -> str:
        """Its path on the host."""
        return names.host_job_directory(self.job_id, self.runtime_root)

    def exists(self) -> bool:
        """Tell whether it is there, as whatever kind of file."""
        return os.path.lexists(self.path)

    def create(self, run: str = "") -> None:
        """Make the directory, marked with the *run* of the job; there must be none of that name."""
        with self._translated("make"):
            os.makedirs(os.path.dirname(self.path), mode=0o711, exist_ok=True)
            os.mkdir(self.path, 0o700)
            with (
                _opened(self.path) as top,
                os.fdopen(os.open(RUN, _NEW_FILE, 0o600, dir_fd=top), "w") as file,
            ):
                file.write(f"{run}\n")

    def run(self) -> str | None:
        """Return the run that the directory is marked with; None: there is none, or no mark in it (yet)."""
        try:
            with _opened(self.path) as top, os.fdopen(os.open(RUN, _READ, dir_fd=top), "r") as file:
                mark = file.read(RUN_BYTES)
        except FileNotFoundError:
            return None
        return mark[:-1] if mark.endswith("\n") else None

    def settled(self) -> bool:
        """Tell whether the directory is older than the moment in which it is made."""
        try:
            return time.time() - os.stat(self.path, follow_symlinks=False).st_ctime > SETTLED
        except FileNotFoundError:
            return True

    def bound(self) -> None:
        """Make the user's half a file system of its own, of a limited size.

        It lies on the host's ``/run``, and services fail on a host whose ``/run`` is full.
        """
        path = os.path.join(self.path, WRITABLE)
        with self._translated("make"):
            os.mkdir(path, 0o700)
        command.run(["mount", "-t", "tmpfs", "-o", WRITABLE_OPTIONS, names.LABEL_JOB, path])

    def _unbind(self) -> None:
        path = os.path.join(self.path, WRITABLE)
        if os.path.ismount(path):
            # Lazily: whatever still has a file open there doesn't hold the end of the job up.
            command.run(["umount", "--lazy", path])

    def fill(self, read_only: Sequence[JobFile], writable: Sequence[JobFile], uid: int, gid: int) -> None:
        """Make the two halves with all their files."""
        with self._translated("make"), _opened(self.path) as top:
            for name, files, mode in ((READ_ONLY, read_only, 0o755), (WRITABLE, writable, 0o700)):
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=top)
                with _opened(name, top) as directory:
                    for file in files:
                        _write(directory, file, uid, gid)
                    if name == WRITABLE:
                        os.fchown(directory, uid, gid)
                    os.fchmod(directory, mode)

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the directory's lock, waiting for whoever has it; yields whether there is a directory.

        A set-up outlives the connection it was started over, so a teardown can come while it
        is still at work.
        """
        try:
            directory = os.open(self.path, _DIRECTORY)
        except OSError:
            yield False  # nothing to lock: nobody is at work on this job
            return
        try:
            self._lock(directory)
            yield os.fstat(directory).st_nlink > 0
        finally:
            os.close(directory)

    def _lock(self, directory: int) -> None:
        if not lock_within(directory, LOCK_TIMEOUT):
            raise HostError(f"another run is still at work on job {self.job_id} after {LOCK_TIMEOUT} s")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HostError(f"cannot {what} {self.path}: {error}") from error

    def remove(self) -> bool:
        """Delete it with all that is in it; return whether there was anything."""
        self._unbind()
        with self._translated("remove"):
            return remove_path(self.path)

    def agent_log(self) -> str | None:
        """Return the last lines of the agent's log, or ``None`` if there is none that can be trusted."""
        content = self._read_users(AGENT_LOG, LOG_BYTES)
        if content is None:
            return None
        return "\n".join(content.decode(errors="replace").splitlines()[-LOG_LINES:])

    def exit_status(self) -> str | None:
        """Return what the agent left as COMMAND's exit status, or ``None``."""
        content = self._read_users(EXIT_STATUS, STATUS_BYTES)
        return None if content is None else content.decode(errors="replace").strip()

    def _read_users(self, name: str, limit: int) -> bytes | None:
        """Read the end of a file in ``rw/``, if it is a regular file that belongs to the directory's owner."""
        try:
            with _opened(self.path) as top, _opened(WRITABLE, top) as directory:
                owner = os.fstat(directory).st_uid
                descriptor = os.open(name, _READ, dir_fd=directory)
                with os.fdopen(descriptor, "rb") as file:
                    status = os.fstat(file.fileno())
                    # A hard link can bring in a file of somebody else; a link or a pipe fails below.
                    if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
                        return None
                    file.seek(max(0, status.st_size - limit))
                    return file.read(limit)
        except OSError:
            return None


@contextmanager
def _opened(name: str, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(directory: int, file: JobFile, uid: int, gid: int) -> None:
    if file.name in ("", ".", "..") or "/" in file.name or not file.name.isprintable():
        raise HostError(f"not the name of a job's file: {file.name!r}")
    with os.fdopen(os.open(file.name, _NEW_FILE, 0o600, dir_fd=directory), "wb") as out:
        out.write(file.content)
        if file.owner == "user":
            os.fchown(out.fileno(), uid, gid)
        os.fchmod(out.fileno(), file.mode)


def release_readers(directory: str) -> None:
    """Let go who waits to open a pipe below *directory* whose writer has died: an Ansible without its broker.

    Opening a FIFO to read blocks until somebody has it open to write (fifo(7)).
    """
    opened: list[int] = []
    for base, _, names_there in os.walk(directory):
        for name in names_there:
            path = os.path.join(base, name)
            try:
                if stat.S_ISFIFO(os.lstat(path).st_mode):
                    opened.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
            except OSError:
                continue
    if opened:
        time.sleep(READERS_TIME)
    for descriptor in opened:
        os.close(descriptor)


def remove_path(path: str) -> bool:
    """Delete *path*, in a directory that is not the user's, as :func:`remove_tree` does."""
    parent, name = os.path.split(path)
    try:
        with _opened(parent) as directory:
            return remove_tree(directory, name)
    except FileNotFoundError:
        return False


def remove_tree(parent: int, name: str) -> bool:
    """Delete *name* below the directory *parent*; return whether it was there.

    A user may nest directories deeper than recursion or the number of open files allows.
    So subdirectories are first moved up, next to each other, and then emptied one by one.
    """
    try:
        top = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent)
        return True
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)
    return True


def _empty(top: int) -> None:
    unused = secrets.token_hex(8)  # a name the user cannot have taken
    pending = deque(_unlink_files(top))
    number = 0
    while pending:
        current = pending.popleft()
        with _opened(current, top) as directory:
            for child in _unlink_files(directory):
                number += 1
                os.rename(child, f"{unused}-{number}", src_dir_fd=directory, dst_dir_fd=top)
                pending.append(f"{unused}-{number}")
        os.rmdir(current, dir_fd=top)


def _unlink_files(directory: int) -> list[str]:
    """Delete all entries but the directories, whose names are returned."""
    directories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=directory)
    return directories
