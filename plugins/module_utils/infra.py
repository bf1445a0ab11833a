# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a node has its infrastructure from: a layer of its image, or the host's portable one.

The portable infrastructure (agent, Python, ssh server and client, with their own loader and
libraries) is a directory of the host that the role C(job_infra) brings.  It is mounted read-only
where the layer would be, so an image needs nothing but its application, and one that has the layer
gets the agent of the site's version all the same.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from . import names
from .container import Mount
from .errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .container import ContainerSpec, Image

Infra = Literal["auto", "image", "injected"]
CHOICES: tuple[Infra, ...] = ("auto", "image", "injected")

MISLEADING = ("LD_", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "MALLOC_", "OPENSSL_", "SSH_")
"""What variables begin with that a program's loader or libraries read: an image sets them for its own.

Python's are no trouble, since the agent's interpreter ignores them (``-I``).
"""


def directory_to_mount(choice: Infra, image: Image, link: str) -> str | None:
    """Return the host's directory that the node gets mounted, None for the layer of its image.

    ``auto`` is the host's, and the layer only where the host of *link* has none.

    Raises:
        HostError: the host's is wanted, and there is none.
    """
    if choice == "image":
        return None
    try:
        return directory_on_host(link)
    except HostError:
        if choice == "auto" and names.LABEL_INFRA in image.labels:
            return None
        raise


def injected(
    spec: ContainerSpec, image: Image, directory: str, overlays: Sequence[Mount] = ()
) -> ContainerSpec:
    """Return *spec* with the portable infrastructure in it.

    Args:
        spec: the container as it is with an image that has the layer.
        image: what the daemon knows of its image.
        directory: the host's directory with the portable infrastructure.
        overlays: mounts that take the place of those with the same target.
    """
    misleading = {name: value for name, value in image.env.items() if name.startswith(MISLEADING)}
    kept = {names.IMAGE_VARIABLE + name: value for name, value in misleading.items()}
    own = (Mount(directory, names.INFRA_TARGET, read_only=True), *overlays)
    targets = {mount.target for mount in own}
    return replace(
        spec,
        env={**kept, **spec.env},
        unset=tuple(sorted(misleading.keys() - spec.env.keys())),
        mounts=(*(mount for mount in spec.mounts if mount.target not in targets), *own),
    )


def directory_on_host(link: str) -> str:
    """Return the directory with the version that new containers get.

    The directory and not the link, so that a container keeps its version when a new one comes.

    Raises:
        HostError: this host has none.
    """
    path = os.path.realpath(link)
    if not os.path.isfile(f"{path}/bin/dockerjob-agent"):
        raise HostError(
            f"the image is to get the portable infrastructure, and there is none in {link}; "
            "cluster_setup.yml --tags infra puts it there"
        )
    return path
