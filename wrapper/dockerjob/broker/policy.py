# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this site allows of a request: each rule is one function, and names itself when it refuses."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from dockerjob_core.errors import ConfigError, PolicyError, RegistryError, RequestError

from ..config import Application, Config
from ..request import JobRequest

PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./ -]*")
"""Characters that have no meaning to a shell but as parts of words."""


def check_request(config: Config, request: JobRequest) -> Application:
    """Hold *request* against the site's policy, and return its application.

    Raises:
        RequestError, ConfigError, RegistryError: see :func:`choose_application`.
        PolicyError: the site doesn't allow it.
    """
    check_hosts(config, request)
    check_jobdir(config, request)
    check_environment(config, request)
    check_command(config, request)
    check_terminal(config, request)
    return choose_application(config, request.application)


def choose_application(config: Config, name: str) -> Application:
    """Look up APPLICATION in the catalogue, and pin its image if that is in the site's registry.

    Raises:
        RequestError: there is no such application; the message names the nearest.
        ConfigError: the catalogue names an image that the registry doesn't have.
        RegistryError: the registry does not answer.
    """
    application = config.applications.get(name)
    if application is not None and not in_registry(config, application.image):
        return application
    if config.registry and (application is not None or is_offered(config, name)):
        from ..registry import Registry, reference  # 20 ms: only sites that have one pay for it

        image = application.image if application else name
        with Registry(config.registry) as registry:
            digest = registry.digest(image)
        if digest:
            chosen = application or Application(image=name)
            return chosen.model_copy(update={"image": reference(config.registry, image, digest)})
        if application:
            raise ConfigError(
                f"{image}, the image of {name}, is not in the registry {config.registry.address}; "
                "tell the administrator"
            )
    raise unknown_application(config, name)


def in_registry(config: Config, image: str) -> bool:
    """Tell whether the catalogue's *image* is one of the site's registry."""
    return config.registry is not None and not image.startswith("sha256:")


def is_offered(config: Config, name: str) -> bool:
    """Tell whether a job may ask for *name* of the registry though the catalogue doesn't list it."""
    patterns = config.registry.offer if config.registry else ()
    return any(fnmatchcase(name, pattern) for pattern in patterns) and any(
        fnmatchcase(name, pattern) for pattern in config.policy.images
    )


def offered_names(config: Config, names: Iterable[str]) -> list[str]:
    """Return those of the registry's *names* for which :func:`is_offered` holds."""
    return [name for name in names if is_offered(config, name)]


def unknown_application(config: Config, name: str) -> RequestError:
    """Say that there is no such application, and which ones have the nearest names."""
    known = set(config.applications)
    if config.registry and config.registry.offer:
        from ..registry import Registry

        with contextlib.suppress(RegistryError), Registry(config.registry) as registry:
            known.update(offered_names(config, registry.names()))
    nearest = ", ".join(difflib.get_close_matches(name, sorted(known), n=3, cutoff=0)) or "none"
    return RequestError(
        f"APPLICATION={name} is not known here; the nearest of {len(known)}: {nearest}; "
        "'dockerjob images list' shows all"
    )


def check_hosts(config: Config, request: JobRequest) -> None:
    """Check that every host is the cluster's, and how many hosts and slots there are.

    Raises:
        PolicyError: a host is not in the cluster, or there are too many.
    """
    allocation, policy = request.allocation, config.policy
    strangers = [host.name for host in allocation.hosts if host.name not in config.hosts]
    if strangers:
        raise PolicyError(
            f"host {', '.join(strangers)} is not in this cluster; its administrator adds it with cluster_setup.yml"
        )
    for what, asked, most in (
        ("hosts", len(allocation.hosts), policy.hosts),
        ("slots", allocation.slots, policy.slots),
    ):
        if most is not None and asked > most:
            raise PolicyError(
                f"the job has {asked} {what}; this site allows container jobs {most} (policy.{what})"
            )


def is_mounted(config: Config, path: str) -> bool:
    """Tell whether *path* is a mounted path or lies under one."""
    return any(PurePosixPath(path).is_relative_to(mount.path) for mount in config.mounts)


def check_jobdir(config: Config, request: JobRequest) -> None:
    """Check that the containers will see JOBDIR.

    Whether it is what its name says, and the user's to enter, shows in the container, where it
    is opened with the user's own rights: nothing of ours opens it with others.

    Raises:
        PolicyError: it lies on no path that the site mounts.
    """
    if not is_mounted(config, request.jobdir):
        roots = ", ".join(mount.path for mount in config.mounts)
        raise PolicyError(f"JOBDIR={request.jobdir} is on no file system that the containers see ({roots})")


def check_environment(config: Config, request: JobRequest) -> None:
    """Check the names of the variables that COMMAND shall get.

    Raises:
        PolicyError: one matches none of the allowed patterns.
    """
    for name in request.environment:
        if not any(fnmatchcase(name, pattern) for pattern in config.policy.environment):
            raise PolicyError(f"this site doesn't pass {name} to COMMAND (policy.environment)")


def check_command(config: Config, request: JobRequest) -> None:
    """Check the length and the characters of COMMAND, and what it runs.

    Raises:
        PolicyError: it is too long, holds what it may not, or is not among the allowed ones.
    """
    policy = config.policy
    if len(request.command) > policy.command_length:
        raise PolicyError(
            f"COMMAND has {len(request.command)} bytes; "
            f"this site allows {policy.command_length} (policy.command_length)"
        )
    text = request.command.decode("utf-8", "surrogateescape")
    if policy.command_characters == "printable" and not text.isprintable():
        raise PolicyError("COMMAND holds characters that can't be printed (policy.command_characters)")
    if not policy.commands:
        return
    if not PLAIN.fullmatch(text):
        raise PolicyError(
            "COMMAND holds characters that a shell treats specially; "
            "this site allows plain commands only (policy.commands)"
        )
    if not any(fnmatchcase(" ".join(text.split()), pattern) for pattern in policy.commands):
        raise PolicyError(
            f"this site doesn't allow this COMMAND; it allows: {', '.join(policy.commands)} (policy.commands)"
        )


def check_terminal(config: Config, request: JobRequest) -> None:
    """Check that COMMAND may have a terminal, if it shall.

    Raises:
        PolicyError: it may not.
    """
    if request.terminal and not config.policy.interactive:
        raise PolicyError(
            "this site allows no interactive container jobs (policy.interactive); "
            "with DOCKERJOB_TERMINAL=0 COMMAND runs without a terminal"
        )
