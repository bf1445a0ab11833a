# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Docker forgets of a container that it was just starting when it was stopped itself.

A dockerd that is restarted between having a container's task made and knowing of it takes
the container for one that never ran; removing it leaves the task's shim, runc's directory and
the cgroups (seen with Docker 20.10, whose init script stops containerd with it).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from .cgroup import Hierarchies
from .command import CommandError, run

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIM = b"containerd-shim"
RUNC_ROOT = "/run/docker/runtime-runc/moby"
"""Where dockerd has runc keep its state, whoever runs containerd."""


def remove(container_id: str) -> None:
    """Remove what is left of a container that Docker has no more; nothing is fine."""
    for pid in _shims(container_id):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if os.path.isdir(f"{RUNC_ROOT}/{container_id}"):
        with suppress(CommandError):  # containerd, which sees the shim go, may be at it as well
            run(("runc", "--root", RUNC_ROOT, "delete", "--force", container_id))
    for group in _cgroups(container_id):
        with suppress(OSError):
            os.rmdir(group)


def _shims(container_id: str) -> Iterator[int]:
    for name in os.listdir("/proc"):
        with suppress(ValueError, OSError), open(f"/proc/{int(name)}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if SHIM in words[0] and container_id.encode() in words:
                yield int(name)


def _cgroups(container_id: str) -> Iterator[str]:
    """Find them by name, the deepest first: where they are is up to dockerd's ``cgroup-parent``."""
    for point in Hierarchies.here().points:
        for path, _, _ in os.walk(point, topdown=False):
            if container_id in path:
                yield path
