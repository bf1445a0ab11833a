# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images: does one fit for jobs?  Asks inside a container of the image itself."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from dockerjob_agent import check
from dockerjob_agent.check import INFRA, Finding
from dockerjob_core import names
from dockerjob_core.errors import HostError, RequestError
from dockerjob_core.infra import directory_on_host

CHECK_PATH = "/run/dockerjob-check.py"


def check_image(image: str, docker_host: str | None = None, infra: str = names.INFRA_HOST) -> list[Finding]:
    """Return what *image* has and lacks for running jobs.

    Args:
        image: name or id of an image that the Docker daemon has.
        docker_host: address of the daemon, ``unix:///path``; default is the environment's.
        infra: directory of the portable infrastructure, which an image without the layer is checked with.

    Raises:
        RequestError: the daemon doesn't have the image.
        HostError: the daemon can't be reached or can't run the check.
    """
    try:
        client = docker.DockerClient(base_url=docker_host) if docker_host else docker.from_env()
        return _run(client, image, infra)
    except ImageNotFound as error:
        raise RequestError(f"image {image} is not on this host; see 'docker image ls'") from error
    except DockerException as error:
        raise HostError(f"docker: {' '.join(str(error).split())}") from error


def _run(client: docker.DockerClient, image: str, infra: str) -> list[Finding]:
    volumes = {check.__file__: {"bind": CHECK_PATH, "mode": "ro"}}
    python = "python3"
    if names.LABEL_INFRA not in client.images.get(image).labels:
        with contextlib.suppress(HostError):
            volumes[directory_on_host(infra)] = {"bind": names.INFRA_TARGET, "mode": "ro"}
            python = f"{names.INFRA_TARGET}/bin/python"
    settings: dict[str, Any] = {
        "entrypoint": [python, "-I", CHECK_PATH, "--json"],
        "network_mode": "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "volumes": volumes,
    }
    container = client.containers.create(image, **settings)
    try:
        container.start()
        status = container.wait(timeout=300)["StatusCode"]
        output = container.logs(stdout=True, stderr=False)
        errors = container.logs(stdout=False, stderr=True).decode(errors="replace").strip()
    except APIError as error:
        if "executable file not found" in str(error):
            return [Finding("python", "missing", "the image has no python3", INFRA)]
        raise
    finally:
        container.remove(force=True)
    if status not in (0, 1):
        raise HostError(f"the check in {image} ended with status {status}: {errors}")
    return [Finding(**finding) for finding in json.loads(output)]


def as_json(findings: list[Finding]) -> str:
    """Return findings as JSON text."""
    return json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2)
