# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing the catalogue's images to all hosts, and removing from them what nobody needs any more."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dockerjob_core import jobtree, node_program
from dockerjob_core.errors import HostError, RegistryError, RequestError

from ..config import Config, RegistrySettings
from ..registry import NAME_TAG, Registry, reference
from .catalogue import Facts, ask_all, images_of, stored_on
from .connections import PARALLEL, Connections
from .doctor import Finding
from .policy import in_registry, offered_names
from .pulls import Pulls

PRUNE_LIMIT = 600
"""Seconds that a host gets to remove old images."""

DAY = 86400


@dataclasses.dataclass(frozen=True)
class Current:
    """What the registry has now.

    Attributes:
        catalogue: per application its image, by name with digest.
        needed: names with digest that hosts may not lose: the catalogue's, and what may be asked for.
        superseded: repositories (``HOST:PORT/NAME``) of which hosts may lose all else.  One that the registry
            doesn't have, or lacks the catalogue's tag of, is none: hosts may have the only copies.
    """

    catalogue: Mapping[str, str]
    needed: frozenset[str]
    superseded: frozenset[str]

    def may_go(self, names: Sequence[str]) -> bool:
        """Tell whether a host may lose the image of these names."""
        return bool(names) and all(
            name.partition("@")[0] in self.superseded and name not in self.needed for name in names
        )


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
        EtcdError: etcd did not say which images jobs need; nothing was removed.
    """
    if not config.registry:
        tell("this site has no registry; cluster_setup.yml brings its images")
        return
    if strangers := [host for host in only if host not in config.hosts]:
        raise RequestError(f"{', '.join(strangers)} is not in this cluster")
    current = look_at_registry(config, config.registry)
    facts = ask_all(config, only)
    silent = {host: said.detail for host, said in facts.items() if isinstance(said, Finding)}
    failed = {
        host: why
        for name, image in current.catalogue.items()
        for host, why in _bring(config, name, image, facts, tell)
    }
    if older_than is not None:
        # Asked last: a job that was pinned before the registry was asked has its record by now.
        needed = current.needed | images_of_jobs(config)
        before = time.time() - older_than * DAY
        silent |= _prune(config, dataclasses.replace(current, needed=needed), before, facts, tell)
    if failed:
        raise RegistryError("not all hosts have all images: " + _reasons(failed))
    if silent:
        raise HostError("not done on: " + _reasons(silent))


def _reasons(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{host}: {why}" for host, why in failed.items())


def look_at_registry(config: Config, settings: RegistrySettings) -> Current:
    """Ask the registry what it has.

    Raises:
        RegistryError: it does not answer.
    """
    catalogue, missing = {}, set()
    with Registry(settings) as registry:
        names = registry.names()
        for name, application in config.applications.items():
            if not in_registry(config, application.image):
                continue
            if digest := registry.digest(application.image):
                catalogue[name] = reference(settings, application.image, digest)
            elif match := NAME_TAG.fullmatch(application.image):
                missing.add(match["name"])
        offered = {name: registry.digest(name) for name in offered_names(config, names)}
    needed = {reference(settings, name, digest) for name, digest in offered.items() if digest}
    there = {name.rpartition(":")[0] for name in names}
    return Current(
        catalogue,
        frozenset(needed | set(catalogue.values())),
        frozenset(f"{settings.address}/{name}" for name in there - missing),
    )


def images_of_jobs(config: Config) -> frozenset[str]:
    """Return the images of all jobs, also of those whose containers are not there yet.

    Raises:
        EtcdError: etcd does not answer.
    """
    with config.etcd.connect() as kvs:
        trees = jobtree.list_job_trees(kvs).values()
        return frozenset(str(tree.record.get("image", "")) for tree in trees)


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


def old_images(said: Mapping[str, Any] | Finding, current: Current, before: float) -> list[str]:
    """Return the names with digest of a host's images that may go, and were built before that time."""
    return [
        name
        for image in stored_on(said)
        if image["created"] < before and current.may_go(image["digests"])
        for name in image["digests"]
    ]


def _prune(
    config: Config, current: Current, before: float, facts: Facts, tell: Callable[[str], None]
) -> dict[str, str]:
    """Remove old images; return the hosts that could not, and why."""
    python, program = config.ansible.python_interpreter, node_program.directory()

    def one(host: str) -> str:
        old = old_images(facts[host], current, before)
        if not old:
            return ""
        try:
            done = subprocess.run(
                _argv(config, host, python, "-I", program, "prune", *old),
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
        results = dict(zip(facts, pool.map(one, facts), strict=True))
    return {host: why for host, why in results.items() if why}


def _argv(config: Config, host: str, *words: str) -> list[str]:
    return Connections(config, [host], Path("/nonexistent")).argv(host, *words)
