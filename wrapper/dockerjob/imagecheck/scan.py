# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read an image's file system as a tar stream: once, in order, and without keeping what it doesn't need."""

from __future__ import annotations

import posixpath
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO

from dockerjob_core.errors import HostError

from .facts import Entry, Files, Kind

CHUNK = 1 << 20
SMALL = 1 << 16
"""Bytes of a text that is still read as a whole."""

OVERLAP = 128
"""Bytes of a chunk that are looked at again with the next one; no mark is longer."""

NOT_THE_IMAGE_S = ("/proc", "/sys", "/dev")
"""Filled when a container is made."""

PRIVATE_BY_NATURE = (*NOT_THE_IMAGE_S, "/root", "/home", "/etc", "/var", "/run", "/tmp", "/lost+found")  # noqa: S108  # in the image
"""Where files that are closed to users are normal."""

CACHES = ("/var/cache/apt", "/var/cache/dnf", "/var/cache/yum", "/var/cache/apk", "/var/lib/apt/lists")

_PROGRAM = re.compile(
    r"sh|bash|dash|busybox|ssh|sshd|rsh|ping|python3|dockerjob-agent"
    r"|mpi(run|exec)([.-].*)?|orterun|prte|prterun|srun|hydra_pmi_proxy"
)
_LIBRARY = re.compile(
    r"lib(mpi|mpich|ibverbs|ucp|fabric|cuda|cudart|nccl)\.so[.0-9]*|libc\.so\.6|ld-musl-.*\.so\.1"
)
_MARKED = re.compile(r"lib(mpi|mpich)\.so[.0-9]*|libc\.so\.6|libc-2.*\.so|libc\.so|ld-musl-.*\.so\.1")
_TEXT = re.compile(r"(openmpi|prte)-mca-params\.conf|(mpirun|mpiexec)([.-].*)?")
_TEXT_PATHS = ("/etc/passwd", "/etc/group", "/etc/ssh/ssh_config")
_PROFILE = re.compile(r"/etc/profile\.d/[^/]+\.sh")
_SECRET = re.compile(r"ssh_host_[a-z0-9]+_key|id_(rsa|dsa|ecdsa|ed25519)")

MARKS = re.compile(
    rb"\0([0-9]{1,4}\.[0-9]{1,2}(?:\.[0-9]{1,2})?(?:rc[0-9]+)?)(?=\0)"
    rb"|(Open MPI v|MVAPICH|MPICH Version|Intel\(R\) MPI Library(?: [0-9][0-9.]*[0-9])?"
    rb"|musl libc|stable release version [0-9]+\.[0-9]+)"
)
"""What a library says of itself.

A version that stands alone between two zero bytes is how Open MPI, MPICH and musl hold theirs (seen in Debian's
packages and in the wheels of both MPIs on PyPI); Intel MPI and glibc have it in a sentence.
"""


class Scanner:
    """Takes the members of the stream one by one."""

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        """Look out for *wanted* too: names of files that the image's configuration speaks of."""
        self._wanted = frozenset(posixpath.basename(name) for name in wanted)
        self._entries: dict[str, Entry] = {}
        self._texts: dict[str, str] = {}
        self._marks: dict[str, tuple[str, ...]] = {}
        self._lists: dict[str, list[str]] = {
            name: [] for name in ("setuid", "capabilities", "writable", "closed", "secrets")
        }
        self._owners: Counter[int] = Counter()
        self._cached = 0

    def add(self, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        """Note what matters of *member*; *content* is a regular file's."""
        path = posixpath.normpath("/" + member.name)
        if _below(path, NOT_THE_IMAGE_S):
            return
        entry = Entry(_kind(member), member.mode, member.uid, member.linkname if member.issym() else "")
        self._owners[member.uid] += 1
        if entry.kind in ("directory", "link") or self._interesting(path):
            self._entries[path] = entry
        self._judge(path, entry, member)
        if content is not None:
            self._read(path, member.size, content)

    def files(self) -> Files:
        """Return what was found."""
        return Files(
            entries=self._entries,
            texts=self._texts,
            marks=self._marks,
            owners=dict(self._owners),
            cached=self._cached,
            **{name: tuple(sorted(paths)) for name, paths in self._lists.items()},
        )

    def _interesting(self, path: str) -> bool:
        name = posixpath.basename(path)
        patterns = (_PROGRAM, _LIBRARY, _MARKED, _TEXT)
        return (
            name in self._wanted
            or path in _TEXT_PATHS
            or bool(_PROFILE.fullmatch(path))
            or any(pattern.fullmatch(name) for pattern in patterns)
        )

    def _judge(self, path: str, entry: Entry, member: tarfile.TarInfo) -> None:
        """Sort *path* into the lists it belongs to."""
        name, mode = posixpath.basename(path), entry.mode
        is_program = entry.kind == "file" and bool(mode & 0o111)
        readable = 0o005 if entry.kind == "directory" or is_program else 0o004
        checks = {
            "setuid": is_program and bool(mode & (stat.S_ISUID | stat.S_ISGID)),
            "capabilities": "SCHILY.xattr.security.capability" in member.pax_headers,
            "writable": entry.kind == "directory" and mode & 0o1002 == 0o002,
            "closed": (
                entry.kind in ("file", "directory")
                and mode & readable != readable
                and not mode & stat.S_ISUID
                and path != "/"
                and not _below(path, PRIVATE_BY_NATURE)
            ),
            "secrets": entry.kind == "file" and bool(_SECRET.fullmatch(name)),
        }
        for list_name, belongs in checks.items():
            if belongs:
                self._lists[list_name].append(path)
        if entry.kind == "file" and _below(path, CACHES):
            self._cached += member.size

    def _read(self, path: str, size: int, content: IO[bytes]) -> None:
        name = posixpath.basename(path)
        text = _TEXT.fullmatch(name) or path in _TEXT_PATHS or name in self._wanted
        if text and size <= SMALL:
            self._texts[path] = content.read().decode(errors="replace")
        elif _MARKED.fullmatch(name):
            self._marks[path] = tuple(dict.fromkeys(_marks(content)))


def _kind(member: tarfile.TarInfo) -> Kind:
    if member.isdir():
        return "directory"
    if member.issym():
        return "link"
    return "file" if member.isreg() or member.islnk() else "other"


def _below(path: str, directories: tuple[str, ...]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


def _marks(content: IO[bytes]) -> Iterator[str]:
    """Yield what :data:`MARKS` finds, a chunk at a time."""
    kept = b""
    while chunk := content.read(CHUNK):
        kept += chunk
        for match in MARKS.finditer(kept):
            yield (match[1] or match[2]).decode()
        kept = kept[-OVERLAP:]


class _Stream:
    """Chunks of bytes, read like a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest += chunk
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def scan(chunks: Iterator[bytes], wanted: Iterable[str] = ()) -> Files:
    """Read a file system as ``docker export`` sends it.

    Args:
        chunks: the tar archive.
        wanted: names of files of interest beside those that always are.

    Raises:
        HostError: it is no whole tar archive.
    """
    scanner = Scanner(wanted)
    try:
        with tarfile.open(fileobj=_Stream(chunks), mode="r|", bufsize=CHUNK) as archive:  # type: ignore[call-overload]
            for member in archive:
                scanner.add(member, archive.extractfile(member) if member.isreg() else None)
                # It would keep them all; an image can have a million.
                archive.members = []
    except (tarfile.TarError, EOFError) as error:
        raise HostError(f"the image's files could not be read: {error}") from error
    return scanner.files()
