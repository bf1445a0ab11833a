# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What APPLICATION can be here, which image that is now, and which hosts have it; and bringing it to all of them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dockerjob_core import node_program
from dockerjob_core.errors import HostError, RegistryError, RequestError

from ..config import Application, Config
from ..registry import NAME_TAG, Registry, RegistryImage, reference
from .connections import PARALLEL, Connections
from .doctor import Finding, ask_host
from .policy import in_registry, is_offered
from .pulls import Pulls

PRUNE_LIMIT = 600
"""Seconds that a host gets to remove old images."""

DAY = 86400


@dataclasses.dataclass(frozen=True)
class ListedImage:
    """One value that APPLICATION can have.

    ``image`` is what a job would run in if it were submitted now, empty if there is none; ``size`` is in bytes,
    of the transfer from the registry, or None.  ``hosts`` are those that said they have it.
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


def catalogue(config: Config, facts: Facts) -> list[ListedImage]:
    """Return what APPLICATION can be, by name; *facts* are of the hosts.

    Raises:
        RegistryError: the site's registry does not answer.
    """
    applications, stored = dict(config.applications), {}
    if config.registry:
        with Registry(config.registry) as registry:
            applications = {**_offered(config, registry), **applications}
            names = {item.image for item in applications.values() if in_registry(config, item.image)}
            stored = {image.name: image for image in registry.images(sorted(names))}
    return [
        _listed(config, name, application, stored, facts)
        for name, application in sorted(applications.items())
    ]


def _offered(config: Config, registry: Registry) -> dict[str, Application]:
    """Return what jobs may ask for though the catalogue doesn't list it."""
    if not config.registry or not config.registry.offer:
        return {}
    return {name: Application(image=name) for name in registry.names() if is_offered(config, name)}


def _listed(
    config: Config,
    name: str,
    application: Application,
    stored: Mapping[str, RegistryImage],
    facts: Facts,
) -> ListedImage:
    image, size = application.image, None
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


def images_of(said: Mapping[str, Any] | Finding) -> set[str]:
    """Return ids, and names with digest, of a host's images."""
    stored = [] if isinstance(said, Finding) else said["stored"]
    return {name for image in stored for name in (image["id"], *image["digests"])}


def sync(
    config: Config,
    tell: Callable[[str], None],
    only: tuple[str, ...] = (),
    older_than: float | None = None,
) -> None:
    """Bring the catalogue's images to the hosts, and with *older_than* days remove others of the registry.

    Raises:
        RequestError: a host of *only* is none of the cluster's.
        RegistryError: the registry does not answer, or a host could not pull.
        HostError: a host could not be asked, or could not remove old images.
    """
    if not config.registry:
        tell("this site has no registry; cluster_setup.yml brings its images")
        return
    if strangers := [host for host in only if host not in config.hosts]:
        raise RequestError(f"{', '.join(strangers)} is not in this cluster")
    wanted, keep = kept_on_hosts(config)
    facts = ask_all(config, only)
    silent = {host: said.detail for host, said in facts.items() if isinstance(said, Finding)}
    failed = {
        host: why for name, image in wanted.items() for host, why in _bring(config, name, image, facts, tell)
    }
    if older_than is not None:
        hosts = [host for host in facts if host not in silent]
        silent |= _prune(config, hosts, older_than * DAY, keep, tell)
    if failed:
        raise RegistryError("not all hosts have all images: " + _reasons(failed))
    if silent:
        raise HostError("not done on: " + _reasons(silent))


def _reasons(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{host}: {why}" for host, why in failed.items())


def kept_on_hosts(config: Config) -> tuple[dict[str, str], list[str]]:
    """Return the catalogue's images by application, and beginnings of names that must not be removed.

    What the registry doesn't have, the hosts may have the only copies of: all of that name are kept.
    What jobs may ask for is not brought to all hosts, but stays where one has had it pulled.
    """
    assert config.registry  # noqa: S101  # the caller has looked
    wanted, keep = {}, []
    with Registry(config.registry) as registry:
        for name, application in config.applications.items():
            match = NAME_TAG.fullmatch(application.image)
            if not match or not in_registry(config, application.image):
                continue
            if digest := registry.digest(application.image):
                wanted[name] = reference(config.registry, application.image, digest)
            keep.append(wanted.get(name) or f"{config.registry.address}/{match['name']}@")
        for name in _offered(config, registry):
            if digest := registry.digest(name):
                keep.append(reference(config.registry, name, digest))
    return wanted, keep


def _bring(
    config: Config, name: str, image: str, facts: Facts, tell: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Pull one image on the hosts that lack it; yield those that failed, and why."""
    asked = {host: said for host, said in facts.items() if not isinstance(said, Finding)}
    lacking = [host for host, said in asked.items() if image not in images_of(said)]
    if not lacking:
        tell(f"{name}: all of {len(asked)} hosts have it")
        return
    pulls = Pulls(config, image, len(asked), lambda host, *words: _argv(config, host, *words))
    yield from pulls.run(lacking, lambda: None, lambda text: tell(f"{name}: {text}")).items()


def _prune(
    config: Config, hosts: list[str], seconds: float, keep: list[str], tell: Callable[[str], None]
) -> dict[str, str]:
    assert config.registry  # noqa: S101  # the caller has looked
    python, program = config.ansible.python_interpreter, node_program.directory()
    words = (python, "-I", program, "prune", config.registry.address, f"{seconds:.0f}", *keep)

    def one(host: str) -> str:
        try:
            done = subprocess.run(
                _argv(config, host, *words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PRUNE_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"old images were not removed within {PRUNE_LIMIT} s"
        news = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for word in news:
            if "removed" in word:
                tell(f"{host}: removed {word['removed']}")
        said = next((word["error"] for word in news if "error" in word), done.stderr.strip())
        return (said or f"ended with {done.returncode}") if done.returncode else ""

    with ThreadPoolExecutor(PARALLEL) as pool:
        results = dict(zip(hosts, pool.map(one, hosts), strict=True))
    return {host: why for host, why in results.items() if why}


def _argv(config: Config, host: str, *words: str) -> list[str]:
    return Connections(config, [host], Path("/nonexistent")).argv(host, *words)
