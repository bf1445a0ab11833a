# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What APPLICATION can be here, which image that is now, and which hosts have it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..config import Application, Config
from ..registry import Registry, RegistryImage, reference
from .connections import PARALLEL
from .doctor import Finding, ask_host
from .policy import in_registry, offered_names


@dataclasses.dataclass(frozen=True)
class ListedImage:
    """One value that APPLICATION can have.

    ``image`` is what a job would run in if it were submitted now, empty if there is none; ``size`` is in bytes,
    of the transfer from the registry, or for an id of those on a host's disk; None if nobody has it.  ``hosts``
    are those that said they have it.
    """

    application: str
    image: str
    size: int | None
    description: str
    hosts: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return dataclasses.asdict(self)


Facts = Mapping[str, Mapping[str, Any] | Finding]
"""Per host, what it said of itself, or why it said nothing."""


def catalogue(config: Config, ask_hosts: Callable[[Config], Facts]) -> list[ListedImage]:
    """Return what APPLICATION can be, by name.

    *ask_hosts* is called when the registry has answered, so that one that is down costs the hosts nothing.

    Raises:
        RegistryError: the site's registry does not answer.
    """
    applications, stored = dict(config.applications), {}
    if config.registry:
        with Registry(config.registry) as registry:
            if config.registry.offer:
                offered = offered_names(config, registry.names())
                applications = {**{name: Application(image=name) for name in offered}, **applications}
            names = {item.image for item in applications.values() if in_registry(config, item.image)}
            stored = {image.name: image for image in registry.images(sorted(names))}
    facts = ask_hosts(config)
    return [
        _listed(config, name, application, stored, facts)
        for name, application in sorted(applications.items())
    ]


def _listed(
    config: Config,
    name: str,
    application: Application,
    stored: Mapping[str, RegistryImage],
    facts: Facts,
) -> ListedImage:
    image = application.image
    on_hosts = (item for said in facts.values() for item in stored_on(said))
    size = next((item["size"] for item in on_hosts if item["id"] == image), None)
    if config.registry and in_registry(config, image):
        found = stored.get(image)
        image = reference(config.registry, image, found.digest) if found else ""
        size = found.size if found else None
    hosts = tuple(host for host, said in facts.items() if image in images_of(said))
    return ListedImage(name, image, size, application.description, hosts)


def ask_all(config: Config, only: tuple[str, ...] = ()) -> Facts:
    """Have all hosts, or those of *only*, look at themselves."""
    hosts = [host for host in config.hosts if not only or host in only]
    with ThreadPoolExecutor(PARALLEL) as pool:
        return dict(zip(hosts, pool.map(lambda host: ask_host(config, host), hosts), strict=True))


def stored_on(said: Mapping[str, Any] | Finding) -> list[dict[str, Any]]:
    """Return what a host has said of its images, see :class:`~dockerjob_core.images.StoredImage`."""
    return [] if isinstance(said, Finding) else said["stored"]


def images_of(said: Mapping[str, Any] | Finding) -> set[str]:
    """Return ids, and names with digest, of a host's images."""
    return {name for image in stored_on(said) for name in (image["id"], *image["digests"])}
