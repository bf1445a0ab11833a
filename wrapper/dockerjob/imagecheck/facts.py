# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of an image: its configuration, its layers, and its files that matter to jobs."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dockerjob_core import names
from dockerjob_core.errors import HostError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What Docker sets for an image without a PATH of its own."""

MOST_LINKS = 40
"""How many symbolic links Linux follows for one path (path_resolution(7))."""

Kind = Literal["file", "directory", "link", "other"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the image; ``target`` is where a symbolic link points."""

    kind: Kind
    mode: int
    uid: int = 0
    target: str = ""


@dataclass(frozen=True)
class Layer:
    """A step of the image's history: the bytes it added, and the command."""

    size: int
    created_by: str


@dataclass(frozen=True)
class Config:
    """What the image's configuration says, as ``docker image inspect`` has it."""

    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    healthcheck: bool = False
    workdir: str = ""
    architecture: str = ""

    @property
    def path(self) -> list[str]:
        """Directories in which a program is looked for."""
        return [entry for entry in self.env.get("PATH", DEFAULT_PATH).split(":") if entry]


@dataclass(frozen=True)
class Files:
    """What the image's file system has, as far as findings need it.

    Attributes:
        entries: directories, symbolic links, and files with a name of interest.
        texts: contents of small files of interest.
        marks: what was found in a library that tells its origin: names and versions.
        setuid: programs with the set-uid or set-gid bit.
        capabilities: programs with file capabilities.
        writable: directories that everyone may write to and that lack the sticky bit.
        closed: files and directories that users other than their owner can't read.
        secrets: what looks like a private key.
        owners: number of files by uid.
        cached: bytes that package managers left in their caches.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    setuid: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    owners: Mapping[int, int] = field(default_factory=dict)
    cached: int = 0

    def resolve(self, path: str) -> str:
        """Follow every symbolic link in *path*, as a process inside the container would.

        Raises:
            HostError: the links go round in circles.
        """
        done, left, links = "/", [part for part in path.split("/") if part], 0
        while left:
            done = posixpath.normpath(posixpath.join(done, left.pop(0)))
            entry = self.entries.get(done)
            if entry is not None and entry.kind == "link":
                links += 1
                if links > MOST_LINKS:
                    raise HostError(f"{path} in the image: too many symbolic links")
                left = [part for part in entry.target.split("/") if part] + left
                done = "/" if entry.target.startswith("/") else posixpath.dirname(done)
        return done

    def find(self, path: str) -> Entry | None:
        """Return the entry that *path* leads to, or None; a link in a circle leads nowhere."""
        try:
            return self.entries.get(self.resolve(path))
        except HostError:
            return None

    def which(self, name: str, path: list[str]) -> str | None:
        """Return where in *path* the program *name* is, as the shell looks for it."""
        for place in [name] if "/" in name else [posixpath.join(directory, name) for directory in path]:
            entry = self.find(place)
            if entry is not None and entry.kind == "file" and entry.mode & 0o111:
                return place
        return None

    def named(self, *names: str) -> list[str]:
        """Return the paths of files whose name is one of *names* or begins with one and a dot."""
        return sorted(
            path
            for path, entry in self.entries.items()
            if entry.kind == "file" and _is_one_of(posixpath.basename(path), names)
        )


def _is_one_of(name: str, wanted: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in wanted)


@dataclass(frozen=True)
class Facts:
    """All that is known of an image."""

    image: str
    id: str
    config: Config
    files: Files
    layers: tuple[Layer, ...]
    size: int
    host_architecture: str

    @property
    def has_layer(self) -> bool:
        """Whether the image has the infrastructure layer, by its label."""
        return names.LABEL_INFRA in self.config.labels
