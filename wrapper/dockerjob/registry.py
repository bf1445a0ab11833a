# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's image registry: what is in it, and which digest a tag has now.

Its API is that of the OCI distribution specification (``/v2/…``).  The standard library speaks it
well enough, and is loaded in a tenth of the time that the Docker SDK or requests take.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import ssl
from collections.abc import Iterable
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

from dockerjob_core.errors import RegistryError

from .config import RegistrySettings

MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
NAME_TAG = re.compile(
    r"(?P<name>[a-z0-9]+(?:(?:\.|_|__|-+|/)[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))"
)
"""A name in a registry with its tag or digest (distribution/reference of the Docker project)."""

PAGE = 1000
LARGEST_ANSWER = 32 << 20


@dataclasses.dataclass(frozen=True)
class RegistryImage:
    """An image in the registry: name with tag, digest of its manifest, bytes to be transferred."""

    name: str
    digest: str
    size: int


class Registry:
    """The registry, over one connection; a context manager.  Every method raises RegistryError if it fails."""

    def __init__(self, settings: RegistrySettings) -> None:
        """Read the site's authority and the account's password; nothing is sent yet.

        Raises:
            RegistryError: one of them can't be read.
        """
        self._address = settings.address
        try:
            password = Path(settings.password_file).read_text().strip()
            context = ssl.create_default_context(cafile=settings.ca)
        except (OSError, ValueError) as error:
            raise RegistryError(
                f"registry {self._address}: {settings.password_file} or {settings.ca}: {error}"
            ) from error
        token = base64.b64encode(f"{settings.username}:{password}".encode()).decode()
        self._headers = {"Accept": ", ".join(MANIFESTS), "Authorization": f"Basic {token}"}
        self._connection = HTTPSConnection(settings.address, timeout=settings.timeout, context=context)

    def __enter__(self) -> Registry:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._connection.close()

    def digest(self, image: str) -> str | None:
        """Return the digest of the image that ``NAME:TAG`` or ``NAME@DIGEST`` has now, None if there is none."""
        match = NAME_TAG.fullmatch(image)
        if not match:
            return None
        answer, _ = self._ask("HEAD", f"{match['name']}/manifests/{match['tag'] or match['digest']}")
        if answer is None:
            return None
        digest = answer.getheader("Docker-Content-Digest", "")
        if not DIGEST.fullmatch(digest):
            raise RegistryError(f"registry {self._address}: it gives no digest of {image}")
        return digest

    def names(self) -> list[str]:
        """Return all that is in the registry, as ``NAME:TAG``."""
        return sorted(f"{name}:{tag}" for name in self._repositories() for tag in self._tags(name))

    def images(self, names: Iterable[str]) -> list[RegistryImage]:
        """Return those of *names* (``NAME:TAG`` or ``NAME@DIGEST``) that are there, with digests and sizes."""
        found = (self._image(name) for name in names)
        return [image for image in found if image is not None]

    def _repositories(self) -> list[str]:
        """Read the catalogue page by page; the end of a page is where the next begins."""
        names: list[str] = []
        while True:
            last = f"&last={names[-1]}" if names else ""
            page = (self._json(f"_catalog?n={PAGE}{last}") or {}).get("repositories") or []
            new = [name for name in page if NAME_TAG.fullmatch(f"{name}:x") and name not in names]
            names += new
            if len(page) < PAGE or not new:
                return names

    def _tags(self, name: str) -> list[str]:
        # A repository whose tags are all deleted is still listed, with none.
        return (self._json(f"{name}/tags/list") or {}).get("tags") or []

    def _image(self, name: str) -> RegistryImage | None:
        digest = self.digest(name)
        match = NAME_TAG.fullmatch(name)
        if not digest or not match:
            return None
        manifest = self._json(f"{match['name']}/manifests/{digest}") or {}
        if own := next(filter(_is_of_these_hosts, manifest.get("manifests", ())), None):
            manifest = self._json(f"{match['name']}/manifests/{own['digest']}") or {}
        parts = [manifest.get("config", {}), *manifest.get("layers", ())]
        return RegistryImage(name, digest, sum(int(part.get("size", 0)) for part in parts))

    def _json(self, path: str) -> dict[str, Any] | None:
        answer, body = self._ask("GET", path)
        if answer is None:
            return None
        try:
            document = json.loads(body)
        except ValueError as error:
            raise RegistryError(f"registry {self._address}: no JSON at /v2/{path}: {error}") from error
        if not isinstance(document, dict):
            raise RegistryError(f"registry {self._address}: no object at /v2/{path}")
        return document

    def _ask(self, method: str, path: str) -> tuple[HTTPResponse | None, bytes]:
        """Send a request; the answer is None where the registry has nothing of this name."""
        try:
            self._connection.request(method, f"/v2/{path}", headers=self._headers)
            answer = self._connection.getresponse()
            body = answer.read(LARGEST_ANSWER)
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise RegistryError(
                f"registry {self._address} is out of reach: {error or type(error).__name__}; try again later"
            ) from error
        if answer.status == 404:
            return None, b""
        if answer.status != 200:
            raise RegistryError(
                f"registry {self._address} refused /v2/{path}: {answer.status} {answer.reason}"
            )
        return answer, body


def _is_of_these_hosts(entry: dict[str, Any]) -> bool:
    """Tell whether an entry of an index (of images for several platforms) is for Linux on this machine's processor."""
    platform = entry.get("platform", {})
    machine = os.uname().machine
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return bool(platform.get("os") == "linux" and platform.get("architecture") == architecture)


def reference(settings: RegistrySettings, image: str, digest: str) -> str:
    """Name an image so that every host's Docker runs exactly it: address, name, digest."""
    match = NAME_TAG.fullmatch(image)
    name = match["name"] if match else image
    return f"{settings.address}/{name}@{digest}"
