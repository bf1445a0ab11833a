# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Get the facts of an image from a Docker daemon.  None of the image's programs is started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound
from dockerjob_agent import check
from dockerjob_core.errors import HostError, RequestError

from .facts import Config, Facts, Layer
from .finding import Finding
from .scan import scan

CHECK_PATH = "/run/dockerjob-check.py"
NOBODY = "65534:65534"
TIMEOUT = 300
"""Seconds for one answer of the daemon, and for the layer's own check."""


@contextmanager
def daemon(address: str | None) -> Iterator[docker.DockerClient]:
    """Connect to the Docker daemon at *address*, ``unix:///path``; by default where the environment says.

    Raises:
        RequestError: the daemon doesn't have the image that was asked for.
        HostError: it can't be reached, or failed.
    """
    try:
        client = (
            docker.DockerClient(base_url=address, timeout=TIMEOUT)
            if address
            else docker.from_env(timeout=TIMEOUT)
        )
        with closing(client):
            yield client
    except ImageNotFound as error:
        raise RequestError("the image is not on this host; see 'docker image ls'") from error
    except (DockerException, requests.RequestException) as error:
        raise HostError(f"docker: {' '.join(str(error).split())}") from error


def gather(client: docker.DockerClient, image: str) -> Facts:
    """Return the facts of *image*, a name or id."""
    details = client.api.inspect_image(image)  # type: ignore[no-untyped-call]
    config = read_config(details)
    layers = tuple(
        Layer(step["Size"], " ".join((step["CreatedBy"] or step["Comment"]).split()))
        for step in reversed(client.api.history(details["Id"]))  # type: ignore[no-untyped-call]
    )
    with _container(client, details["Id"], command=["/"], network_mode="none") as container:
        files = scan(container.export(), (*config.entrypoint, *config.command))
    return Facts(image, details["Id"], config, files, layers, details["Size"], client.version()["Arch"])


def read_config(details: dict[str, Any]) -> Config:
    """Read what ``docker image inspect`` says; absent and null are the same there."""
    config = details.get("Config") or {}
    test = (config.get("Healthcheck") or {}).get("Test") or []
    return Config(
        user=config.get("User") or "",
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        env=dict(line.split("=", 1) for line in config.get("Env") or () if "=" in line),
        volumes=tuple(sorted(config.get("Volumes") or ())),
        ports=tuple(sorted(config.get("ExposedPorts") or ())),
        labels=config.get("Labels") or {},
        healthcheck=bool(test) and test != ["NONE"],
        workdir=config.get("WorkingDir") or "",
        architecture=details.get("Architecture") or "",
    )


def check_layer(client: docker.DockerClient, facts: Facts) -> list[Finding]:
    """Ask the infrastructure layer's own check, if the image has the layer: do its programs load?

    It runs as nobody, without network and capabilities, on a read-only image.

    Raises:
        HostError: the check itself failed.
    """
    if not facts.has_layer or facts.config.architecture != facts.host_architecture:
        return []
    settings: dict[str, Any] = {
        "entrypoint": ["/opt/dockerjob/bin/python", "-I", CHECK_PATH, "--json", "--no-application"],
        "user": NOBODY,
        "network_mode": "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "volumes": {check.__file__: {"bind": CHECK_PATH, "mode": "ro"}},
    }
    with _container(client, facts.id, **settings) as container:
        try:
            container.start()
        except APIError as error:
            return [
                Finding(
                    "infrastructure", "error", f"its Python does not start: {error.explanation}", check.INFRA
                )
            ]
        status = container.wait(timeout=TIMEOUT)["StatusCode"]
        output = container.logs(stdout=True, stderr=False)
        problem = container.logs(stdout=False, stderr=True).decode(errors="replace").strip()
    if status not in (0, 1):
        raise HostError(f"the layer's check in {facts.image} ended with status {status}: {problem}")
    return [
        Finding(found["name"], "error", found["detail"], found["remedy"])
        for found in json.loads(output)
        if found["level"] == "missing"
    ]


@contextmanager
def _container(client: docker.DockerClient, image: str, **settings: Any) -> Iterator[Any]:
    """Create a container, and remove it with its volumes."""
    container = client.containers.create(image, **settings)
    try:
        yield container
    finally:
        container.remove(force=True, v=True)
