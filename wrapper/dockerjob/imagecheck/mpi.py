# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which MPI does an image bring?  Told from its libraries and where its launchers lie; nothing is run."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import Literal

from .facts import Config, Files

Family = Literal["Open MPI", "MPICH", "MVAPICH", "Intel MPI"]

# The first that fits: MVAPICH and Intel MPI are made from MPICH and say so, too.
_FAMILIES: tuple[tuple[str, Family], ...] = (
    ("Open MPI v", "Open MPI"),
    ("MVAPICH", "MVAPICH"),
    ("Intel(R) MPI Library", "Intel MPI"),
    ("MPICH Version", "MPICH"),
)

_OPEN_MPI = ("mpirun.openmpi", "mpirun", "mpiexec", "orterun", "prterun")
_HYDRA = ("mpiexec.hydra", "mpirun.mpich", "mpiexec.mpich", "mpirun", "mpiexec")
_OF_OPEN_MPI = re.compile("openmpi|orterun|prte")
_OF_HYDRA = re.compile("hydra|mpich")


@dataclass(frozen=True)
class Mpi:
    """An MPI in the image; ``launcher`` is its mpirun, ``in_path`` whether a job finds it by its name."""

    family: Family
    version: str | None
    library: str
    launcher: str | None
    in_path: bool

    def __str__(self) -> str:
        """Return family, version and place."""
        return f"{self.family} {self.version or 'of unknown version'} ({self.launcher or self.library})"


def find_mpi(files: Files, config: Config) -> list[Mpi]:
    """Return every MPI of the image, by the path of its library."""
    found: dict[tuple[Family, str | None, str | None], Mpi] = {}
    for library in files.named("libmpi.so", "libmpich.so"):
        marks = files.marks.get(library, ())
        family = _family(marks)
        if family is None:
            continue
        launcher = _launcher(files, library, family)
        one = Mpi(family, _version(family, marks), library, launcher, _in_path(files, config, launcher))
        found.setdefault((family, one.version, launcher), one)
    return list(found.values())


def _family(marks: tuple[str, ...]) -> Family | None:
    for mark, family in _FAMILIES:
        if any(one.startswith(mark) for one in marks):
            return family
    return None


def _version(family: Family, marks: tuple[str, ...]) -> str | None:
    if family == "Intel MPI":
        for mark in marks:
            if match := re.fullmatch(r"Intel\(R\) MPI Library ([0-9.]+)", mark):
                return match[1]
    # The others' have three parts; shorter ones are of something that they bring along.
    return next((mark for mark in marks if re.fullmatch(r"[0-9]\.[0-9]+\.[0-9]+(rc[0-9]+)?", mark)), None)


def _launcher(files: Files, library: str, family: Family) -> str | None:
    """Look for the launcher in ``bin`` beside the library's directory, then further up."""
    names, foreign = (_OPEN_MPI, _OF_HYDRA) if family == "Open MPI" else (_HYDRA, _OF_OPEN_MPI)
    directory = posixpath.dirname(library)
    while directory != "/":
        for name in names:
            path = files.which(f"{directory}/bin/{name}", [])
            if path and not foreign.search(posixpath.basename(files.resolve(path))):
                return path
        directory = posixpath.dirname(directory)
    return None


def _in_path(files: Files, config: Config, launcher: str | None) -> bool:
    """Whether the launcher, or a script that calls it, is in a directory of PATH."""
    if launcher is None:
        return False
    place = files.resolve(posixpath.dirname(launcher))
    path = {files.resolve(directory) for directory in config.path}
    return place in path or any(
        posixpath.dirname(script) in path and f"{place}/" in text for script, text in files.texts.items()
    )
