# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images of this host's Docker: is one there, get it from the site's registry, remove old ones.

The daemon has the registry's authority and the read-only account from the role ``docker_host``, and
reaches no other registry.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .container import DOCKER_HOST
from .errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from docker import APIClient

PATIENCE = 10.0
"""Seconds that the daemon may take to say whether it has an image."""

SILENCE = 300
"""Seconds without a word from the daemon after which a pull has failed."""

NEWS = 1.0
"""Seconds between two lines of progress, at least."""


def lacks(image: str, address: str = DOCKER_HOST) -> bool:
    """Tell whether the daemon says that it has no such image; one that does not answer says nothing.

    Without the SDK, which takes longer to load than the whole answer: the job's guard asks at each job.
    """
    question = f"GET /images/{image}/json HTTP/1.0\r\nHost: docker\r\n\r\n"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(address.removeprefix("unix://"))
            connection.sendall(question.encode())
            return connection.recv(64).split(maxsplit=2)[1:2] == [b"404"]
    except OSError:
        return False


@dataclass(frozen=True)
class StoredImage:
    """An image of this host; ``digests`` are the names, with digest, that it was pulled by."""

    id: str
    digests: tuple[str, ...]
    size: int
    created: int


def stored_images(address: str = DOCKER_HOST) -> tuple[StoredImage, ...]:
    """Return all images of this host.

    Raises:
        HostError: the daemon does not answer.
    """
    with _daemon(address) as client:
        return tuple(
            StoredImage(
                item["Id"], tuple(item.get("RepoDigests") or ()), int(item["Size"]), int(item["Created"])
            )
            for item in client.images()
        )


@dataclass
class Progress:
    """How far a pull has come: half of it is the transfer, half is unpacking."""

    _layers: dict[str, tuple[float, int]] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the daemon's."""
        layer, status = str(event.get("id", "")), event.get("status")
        detail = event.get("progressDetail") or {}
        _, total = self._layers.get(layer, (0.0, 0))
        total = int(detail.get("total") or total)
        if status == "Downloading":
            self._layers[layer] = (detail.get("current", 0) / 2, total)
        elif status == "Download complete":
            self._layers[layer] = (total / 2, total)
        elif status == "Extracting":
            self._layers[layer] = ((total + detail.get("current", 0)) / 2, total)
        elif status == "Pull complete":
            self._layers[layer] = (total, total)

    @property
    def percent(self) -> int:
        """What is done, in percent of the layers that the daemon has named so far."""
        total = sum(size for _, size in self._layers.values())
        done = sum(part for part, _ in self._layers.values())
        return min(99, int(100 * done / total)) if total else 0


def pull(image: str, limit: str, address: str = DOCKER_HOST) -> int:
    """Get *image* from the registry; write lines of JSON, ``{"percent": N}`` and perhaps ``{"error": WHY}``.

    Nothing that is here already is transferred again.  After *limit* seconds SIGALRM ends the process, and
    with its connection the daemon ends the pull; so does the end of who reads the lines.
    """
    signal.alarm(max(1, int(float(limit))))
    progress, last = Progress(), -NEWS
    try:
        with _daemon(address) as client:
            for event in client.pull(image, stream=True, decode=True):
                if "error" in event:
                    raise HostError(str(event["error"]))
                progress.take(event)
                if time.monotonic() - last >= NEWS:
                    last = time.monotonic()
                    _say({"percent": progress.percent})
    except (HostError, ImportError) as error:
        _say({"error": str(error)})
        return 1
    return 0


def prune(*digests: str, address: str = DOCKER_HOST) -> int:
    """Remove images by their names with digest; say which in lines of JSON, ``{"removed": NAME}``.

    What a container uses, in whatever state, the daemon doesn't remove, and neither does this.
    """
    try:
        with _daemon(address) as client:
            _remove(client, digests)
    except (HostError, ImportError) as error:
        _say({"error": str(error)})
        return 1
    return 0


def _remove(client: APIClient, digests: Sequence[str]) -> None:
    """Take the images' names from them; without the last one, and unused, an image is gone."""
    from docker.errors import APIError

    for digest in digests:
        try:
            client.remove_image(digest, noprune=False)
        except APIError as error:
            if error.status_code not in (404, 409):  # 409: a container uses it
                raise
        else:
            _say({"removed": digest})


def _say(news: Mapping[str, Any]) -> None:
    print(json.dumps(news), flush=True)


@contextmanager
def _daemon(address: str) -> Iterator[APIClient]:
    """Connect to the daemon; its errors become those of this project.

    Raises:
        HostError: it does not answer or refuses.
        ImportError: there is no Docker SDK for Python.
    """
    from docker import APIClient
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = APIClient(base_url=address, version="auto", timeout=SILENCE)
        try:
            yield client
        finally:
            client.close()
    except (DockerException, RequestException) as error:
        raise HostError(f"the Docker daemon at {address}: {error}") from error
