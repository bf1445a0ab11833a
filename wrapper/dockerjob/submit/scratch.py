# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scratch space: a directory for one job, made and removed by the user's own wrapper, as the site wants it."""

from __future__ import annotations

import dataclasses
import errno
import os
import pwd
import shutil
import tempfile
from pathlib import Path

from dockerjob_core import names
from dockerjob_core.errors import ConfigError, PolicyError, RequestError, StageInError

from ..schedulers import SITE_FILE, site_setting

PATH = "DOCKERJOB_SCRATCH"
KEEP = "DOCKERJOB_SCRATCH_KEEP"

POLICIES = ("never", "failed", "always")
"""When a job's directory stays although its results have been brought out; ``failed``: its exit status is not 0."""


@dataclasses.dataclass(frozen=True)
class Scratch:
    """The user's own directory in the site's scratch space, and the site's policy."""

    base: str
    keep: str

    def make(self, job_id: str) -> str:
        """Make the directory of a job, which is the user's alone, and return its path.

        Raises:
            StageInError: it can't be made; the message says why, for one that the quota is used up.
        """
        try:
            return tempfile.mkdtemp(prefix=names.scratch_prefix(job_id), dir=self.base)
        except OSError as error:
            raise StageInError(
                f"can't make scratch space in {self.base}: {error.strerror}; COMMAND was not started"
            ) from error

    def keeps(self, status: int) -> bool:
        """Tell whether the directory of a job that ended with *status* stays."""
        return self.keep == "always" or (self.keep == "failed" and status != 0)


def find(site_file: Path = SITE_FILE) -> Scratch:
    """Return where this user has scratch space: ``<path>/<user>``, which is made if it can be.

    Raises:
        RequestError: the site has none.
        ConfigError: the site's setting is wrong.
        PolicyError: the user has no directory there.
    """
    path = site_setting(PATH, site_file)
    if not path:
        raise RequestError(
            "JOBDIR is not set, and this site has no scratch space; export JOBDIR in the submit script"
        )
    keep = site_setting(KEEP, site_file) or POLICIES[0]
    if keep not in POLICIES:
        raise ConfigError(f"{site_file}: {KEEP}={keep!r} is none of {', '.join(POLICIES)}")
    base = f"{path}/{pwd.getpwuid(os.getuid()).pw_name}"
    try:
        # In a directory such as /tmp, where everybody may make one.
        if not os.path.lexists(base):
            os.mkdir(base, 0o700)
        # A link of somebody else's could be led elsewhere at any time.
        if os.path.islink(base) and os.lstat(base).st_uid not in (0, os.getuid()):
            raise PermissionError(errno.EPERM, "it is a link of somebody else's", base)
        base = os.path.realpath(base)
        owner = os.stat(base).st_uid
    except OSError as error:
        raise PolicyError(
            f"you have no scratch space: {base}: {error.strerror}; ask the administrator"
        ) from error
    if owner != os.getuid():
        raise PolicyError(f"you have no scratch space: {base} belongs to uid {owner}; ask the administrator")
    return Scratch(base, keep)


def remove(directory: str) -> str:
    """Remove a job's directory with all that is in it; return why that failed, empty if it did not."""
    try:
        _open(directory)
        for base, directories, _ in os.walk(directory):
            for name in directories:
                _open(os.path.join(base, name))
        shutil.rmtree(directory)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _open(directory: str) -> None:
    """Make a directory of the user's one that can be listed and emptied, before it is entered."""
    if not os.path.islink(directory) and not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        os.chmod(directory, 0o700)
