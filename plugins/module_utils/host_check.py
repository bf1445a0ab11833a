# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host says of itself to ``dockerjob doctor``: facts only, what they mean is for the asker."""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import names, ovs
from .container import Engine
from .errors import HostError
from .images import StoredImage, stored_images
from .infra import directory_on_host

if TYPE_CHECKING:
    from collections.abc import Callable

VOLUMES = ("/run", "/var/lib/docker")


def facts(bridge: str, runtime_root: str = names.RUNTIME_ROOT) -> dict[str, Any]:
    """Look at this host; changes nothing.

    Returns:
        ``docker``, ``bridge`` and ``relay``: why they can't be used, or an empty text;
        ``infra``: likewise, why there is no portable infrastructure;
        ``images``: ids of the images there are; ``stored``: what each of these is;
        ``jobs``: jobs with containers or files here;
        ``free``: per volume, the share of it that is free; ``time``: seconds since the epoch.
    """
    stored: list[StoredImage] = []
    jobs: set[str] = set()

    def look_at_docker() -> None:
        with Engine.connect() as engine:
            jobs.update(engine.jobs())

    def look_at_images() -> None:
        stored.extend(stored_images())

    docker = _problem(look_at_docker) or _problem(look_at_images)
    directory = f"{runtime_root}/jobs"
    if os.path.isdir(directory):
        jobs.update(os.listdir(directory))
    return {
        "docker": docker,
        "images": [image.id for image in stored],
        "stored": [asdict(image) for image in stored],
        "bridge": _problem(lambda: ovs.read_state().guarded_bridge(bridge)),
        "relay": _problem(lambda: _connect(f"{runtime_root}/relay/etcd.sock")),
        "infra": _problem(lambda: directory_on_host(names.INFRA_HOST)),
        "jobs": sorted(jobs),
        "free": {path: _free(path) for path in VOLUMES if os.path.isdir(path)},
        "time": time.time(),
    }


def _problem(action: Callable[[], object]) -> str:
    try:
        action()
    except (HostError, ImportError, OSError) as error:
        return str(error)
    return ""


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        probe.connect(path)


def _free(path: str) -> float:
    usage = shutil.disk_usage(path)
    return round(usage.free / usage.total, 3) if usage.total else 1.0
